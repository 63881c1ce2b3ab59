"""Layouts from JSON descriptions: every type, arrays as each QEMU generation compresses them, and hostile ones."""

from __future__ import annotations

import json
import struct

import pytest

from qmig_e2k._core import Writer
from qmig_e2k.analyze.cursor import Cursor, StoredFile
from qmig_e2k.analyze.layout import Budget, Decoder, parse_device, parse_document, parse_layout
from qmig_e2k.savevm.text import description_text
from qmig_e2k.vmstate import (
    VMStateDescription,
    array,
    array2d,
    array_of_pointer,
    bitmap,
    bool_,
    buffer,
    cpu_double_u,
    gtree,
    int8,
    int16,
    int32,
    int64,
    qlist,
    qtailq,
    save,
    timer,
    uint8,
    uint16,
    uint32,
    uint64,
    uint64_equal,
    unused,
    varray,
    vbuffer,
    vstruct,
    with_tmp,
)
from qmig_e2k.vmstate import (
    struct as struct_,
)
from qmig_e2k.vmstate.refusal import Refusal

INNER = VMStateDescription("inner", fields=[uint8("a"), uint16("b")])
PARTED = VMStateDescription(
    "parted",
    fields=[uint8("a")],
    subsections=[VMStateDescription("parted/more", fields=[uint32("c")], needed=lambda obj: obj["c"] > 0)],
)


def read(described, raw, version=1, budget=None):
    """Decode `raw` by a JSON description; values, and how many bytes it took."""
    layout = parse_device(parse_document(described if isinstance(described, bytes) else json.dumps(described).encode()))
    file = StoredFile(raw)
    try:
        decoder = Decoder(Cursor(file, 0), layout, version, budget)
        decoder.run()
        return decoder.body.plain(), decoder.cursor.offset
    finally:
        file.close()


def there_and_back(description, obj, format_="7.2"):
    """What our own engine writes and describes, read by that description."""
    writer = Writer()
    made = save(description, obj, writer, format=format_)
    raw = writer.getvalue()
    values, end = read(description_text(made, loose=format_ == "2.9"), raw)
    assert end == len(raw)
    return values


@pytest.mark.parametrize("format_", ["2.9", "7.2", "10.0"])
def test_every_type(format_):
    description = VMStateDescription(
        "all",
        fields=[
            int8("i8"),
            int16("i16"),
            int32("i32"),
            int64("i64"),
            uint8("u8"),
            uint16("u16"),
            uint32("u32"),
            uint64("u64"),
            bool_("yes"),
            timer("alarm"),
            uint64_equal("same"),
            cpu_double_u("double"),
            cpu_double_u("nan"),
            buffer("raw", 3),
            unused(2),
            uint32("bits"),
            bitmap("map", "bits"),
            array("words", uint16, 3),
            array("one", uint16, 1),
            array2d("square", int8, 2, 2),
            uint8("n"),
            varray("some", uint32, "n"),
            vbuffer("bytes", "n"),
            struct_("inner", INNER),
            vstruct("fixed", INNER, 1),
            array("inners", INNER, 2),
        ],
    )
    inner = {"a": 1, "b": 2}
    obj = {
        "i8": -1,
        "i16": -2,
        "i32": -3,
        "i64": -4,
        "u8": 0xFF,
        "u16": 0xFFFF,
        "u32": 0xFFFFFFFF,
        "u64": (1 << 64) - 1,
        "yes": True,
        "alarm": -1,
        "same": 1 << 63,
        "double": 1.5,
        "nan": float("nan"),
        "raw": b"\1\2\3",
        "bits": 65,
        "map": [5, 1],
        "words": [1, 2, 3],
        "one": [9],
        "square": [[1, -1], [2, -2]],
        "n": 2,
        "some": [7, 8],
        "bytes": b"\xaa\xbb",
        "inner": inner,
        "fixed": inner,
        "inners": [inner, {"a": 3, "b": 4}],
    }
    expected = obj | {
        "nan": "0x7ff8000000000000",
        "raw": "010203",
        "unused": "0000",
        "one": 9,  # a description does not tell an array of one from a single number
        "square": [1, -1, 2, -2],
        "bytes": "aabb",
    }
    assert there_and_back(description, obj, format_) == expected


@pytest.mark.parametrize("format_", ["7.2", "10.0"])
def test_arrays_that_cannot_be_compressed(format_):
    """Each element has an entry; in 10.0 the last one without its index."""
    description = VMStateDescription("list", fields=[array("parts", PARTED, 3), uint8("end")])
    obj = {"parts": [{"a": 1, "c": 0}, {"a": 2, "c": 7}, {"a": 3, "c": 0}], "end": 9}
    assert there_and_back(description, obj, format_) == {
        "parts": [
            {"a": 1},
            {"a": 2, "subsections": {"parted/more": {"version": 1, "fields": {"c": 7}}}},
            {"a": 3},
        ],
        "end": 9,
    }


@pytest.mark.parametrize(
    "nulls", ["1000", "0111", "0100", "0010", "0001", "0110", "1111", "1010", "0101", "1001"], ids=lambda x: x
)
def test_pointers_with_nulls(nulls):
    """10.0 splits them in runs and may declare the first one too long."""
    description = VMStateDescription("pointers", fields=[array_of_pointer("p", INNER, 4), uint8("end")])
    values = [None if mark == "1" else {"a": index, "b": 5} for index, mark in enumerate(nulls)]
    assert there_and_back(description, {"p": values, "end": 9}, "10.0") == {"p": values, "end": 9}


def test_a_null_of_7_2():
    described = {
        "vmsd_name": "d",
        "version": 1,
        "fields": [
            {"name": "p", "index": 0, "type": "struct", "struct": {}, "size": 1},
            {"name": "q", "type": "uint64", "size": 1},
        ],
    }
    assert read(described, b"00") == ({"p": [None], "q": None}, 2)
    with pytest.raises(Refusal, match="null"):
        read(described, b"10")


@pytest.mark.parametrize(("field", "kind"), [(qtailq, "qtailq"), (qlist, "qlist")])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists(field, kind, count):
    description = VMStateDescription("queue", fields=[field("entries", INNER, dict), uint8("end")])
    entries = [{"a": index, "b": 300 + index} for index in range(count)]
    assert there_and_back(description, {"entries": entries, "end": 9}) == {"entries": entries, "end": 9}
    entry = {"name": "e", "type": kind, "vmsd_name": "i", "version": 1, "fields": [], "size": 2}
    with pytest.raises(Refusal, match="elements"):
        read({"vmsd_name": "q", "version": 1, "fields": [entry]}, bytes(1) if count else b"\1\1\0")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_trees(count):
    key = VMStateDescription("key", fields=[uint16("k")])
    plain = VMStateDescription("tree", fields=[gtree("nodes", INNER, dict), uint8("end")])
    nodes = {10 + index: {"a": index, "b": 1} for index in range(count)}
    values = there_and_back(plain, {"nodes": nodes, "end": 9})
    assert values["end"] == 9
    assert values["nodes"] == [{"key": number, "value": value} for number, value in nodes.items()]
    keyed = VMStateDescription("tree", fields=[gtree("nodes", INNER, dict, key=key, new_key=Key)])
    values = there_and_back(keyed, {"nodes": {Key(number): value for number, value in nodes.items()}})
    assert values["nodes"] == [{"key": {"k": number}, "value": value} for number, value in nodes.items()]


class Key:
    def __init__(self, k=0):
        self.k = k


@pytest.mark.parametrize(
    ("raw", "bodies"),
    [(b"\0\0\0\0\1", 0), (b"\0\0\0\1\0", 1), (b"\0\0\0\2" + (b"\1" + bytes(8)) * 2 + b"\0", 1)],
)
def test_trees_that_lie(raw, bodies):
    body = [("vmsd_name", "v"), ("version", 1), ("fields", [])] * bodies
    entry = description_text({"name": "t", "type": "gtree", "size": 1}, loose=False)[:-1]
    for name, value in body:
        entry += b', "%s": %s' % (name.encode(), json.dumps(value).encode())
    with pytest.raises(Refusal):
        read(b'{"vmsd_name": "d", "version": 1, "fields": [' + entry + b"}]}", raw)


def test_scratch_structures():
    scratch = VMStateDescription("scratch", fields=[uint16("a")])
    description = VMStateDescription("d", fields=[with_tmp(scratch, lambda _: {"a": 7})])
    assert there_and_back(description, {}) == {"tmp": {"a": 7}}


def test_capabilities():
    fields = [{"name": "caps", "array_len": 2, "type": "capability", "size": 3}]
    raw = b"\2ab\5defgh"
    assert read({"vmsd_name": "c", "version": 1, "fields": fields}, raw) == ({"caps": ["ab", "defgh"]}, 9)


def test_unknown_types_are_bytes():
    fields = [{"name": "x", "type": "virtio", "size": 3}, {"name": "y", "array_len": 2, "type": "odd", "size": 2}]
    values, _ = read({"vmsd_name": "c", "version": 1, "fields": fields}, bytes(range(7)))
    assert values == {"x": "000102", "y": ["0304", "0506"]}


def test_old_style():
    device = {"name": "slirp", "instance_id": 0, "size": 3, "fields": [{"name": "data", "size": 3, "type": "buffer"}]}
    assert read(device, b"\1\2\3") == ({"data": "010203"}, 3)


def test_subsections_of_the_outer_one_are_left_to_it():
    """Behind an inner structure the bytes belong to whoever lists that name."""
    inner = {"vmsd_name": "cpu/aau", "version": 1, "fields": []}
    outer = {"vmsd_name": "cpu/aau_prefetch", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]}
    described = {"vmsd_name": "cpu", "version": 1, "fields": [], "subsections": [inner, outer]}
    raw = b"\5\7cpu/aau\0\0\0\1" + b"\5\x10cpu/aau_prefetch\0\0\0\2\x63" + b"\5\1x"
    values, end = read(described, raw)
    assert values["subsections"] == {
        "cpu/aau": {"version": 1, "fields": {}},
        "cpu/aau_prefetch": {"version": 2, "fields": {"x": 0x63}},
    }
    assert end == len(raw) - 3


def test_offsets_and_sizes():
    fields = [{"name": "a", "type": "uint8", "size": 1}, {"name": "b", "array_len": 3, "type": "uint16", "size": 2}]
    layout = parse_layout({"vmsd_name": "d", "version": 1, "fields": fields})
    file = StoredFile(bytes(20))
    decoder = Decoder(Cursor(file, 10), layout, 1)
    decoder.run()
    file.close()
    assert [(field.name, field.offset, field.size) for field in decoder.body.fields] == [("a", 10, 1), ("b", 11, 6)]


# ---- what does not fit


def fields_of(*fields):
    return {"vmsd_name": "d", "version": 1, "fields": list(fields)}


INNER_JSON = {"vmsd_name": "i", "version": 1, "fields": [{"name": "x", "type": "uint32", "size": 4}]}


@pytest.mark.parametrize(
    ("field", "raw", "offset", "path"),
    [
        ({"name": "x", "type": "uint32", "size": 4}, bytes(3), 0, "d/x"),
        ({"name": "x", "array_len": 1 << 40, "type": "uint32", "size": 4}, bytes(8), 0, "d/x"),
        ({"name": "x", "type": "buffer", "size": 1 << 60}, bytes(8), 0, "d/x"),
        ({"name": "x", "array_len": 2, "type": "struct", "struct": INNER_JSON, "size": 4}, bytes(7), 4, "d/x[1].x"),
        ({"name": "x", "type": "qtailq", "size": 1}, b"", 0, "d/x"),
        ({"name": "x", "array_len": 3, "type": "capability", "size": 1}, b"\0\0\5", 2, "d/x[2]"),
    ],
)
def test_truncated(field, raw, offset, path):
    with pytest.raises(Refusal) as caught:
        read(fields_of(field), raw)
    error = caught.value.stream_error("d")
    assert (error.kind, error.path) == ("truncated", path)
    assert offset <= error.offset <= len(raw)


@pytest.mark.parametrize(("count", "fits"), [(0, True), (2, True), (1000, True), (1 << 17, False), (1 << 60, False)])
def test_elements_that_take_no_bytes(count, fits):
    """Those of a later version, for one; nothing in the stream says how many there can be, so they are dear."""
    nothing = {"vmsd_name": "i", "version": 1, "fields": []}
    field = {"name": "x", "array_len": count, "type": "struct", "struct": nothing, "size": 0}
    if fits:
        assert read(fields_of(field), b"") == ({"x": [{}] * count}, 0)
        return
    with pytest.raises(Refusal) as caught:
        read(fields_of(field), b"")
    assert caught.value.stream_error("d").kind == "limit-exceeded"


def test_what_was_read_before_the_end_is_kept():
    layout = parse_layout(
        fields_of(
            {"name": "a", "type": "uint8", "size": 1},
            {"name": "s", "type": "struct", "struct": INNER_JSON | {"fields": [*INNER_JSON["fields"] * 2]}, "size": 8},
        )
    )
    file = StoredFile(b"\5\0\0\0\6\0")
    decoder = Decoder(Cursor(file, 0), layout, 1)
    with pytest.raises(Refusal):
        decoder.run()
    file.close()
    assert decoder.body.plain()["a"] == 5
    assert decoder.body.plain()["s"] == {"x": [6]}


def test_a_description_may_not_cost_more_than_the_stream():
    """Elements that take no bytes are counted."""
    empty = {"vmsd_name": "e", "version": 1, "fields": []}
    wide = fields_of(*({"name": str(i), "type": "struct", "struct": empty, "size": 0} for i in range(5000)))
    much = fields_of({"name": "x", "array_len": 1000, "type": "struct", "struct": wide, "size": 1})
    with pytest.raises(Refusal, match="more than") as caught:
        read(much, bytes(10_000), budget=Budget(100_000))
    assert caught.value.kind == "limit-exceeded"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"3",
        b"{}",
        b'{"vmsd_name": "d"}',
        b'{"vmsd_name": "d", "version": true, "fields": []}',
        b'{"vmsd_name": "d", "version": 1, "fields": {}}' + b" ",
        b'{"vmsd_name": "d", "version": 1, "fields": [3]}',
        b'{"vmsd_name": "d", "version": 1, "fields": [{"name": "x", "type": "struct", "size": 1}]}',
        b'{"vmsd_name": "d", "version": 1, "fields": [{"name": "x", "type": "struct", "struct": 3, "size": 1}]}',
        b'{"vmsd_name": "d", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": -1}]}',
        b'{"vmsd_name": "d", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1.0}]}',
        b'{"vmsd_name": "d", "version": 1, "fields": [], "subsections": [[]]}',
        b'{"name": "d", "instance_id": 0, "size": -1}',
        b'{"vmsd_name": "d", "version": 1, "fields": [{"name": "x", "array_len": -1, "type": "uint8", "size": 1}]}',
        b'{"vmsd_name": "\xff", "version": 1, "fields": [{]}',
    ],
)
def test_malformed(text):
    if text.endswith(b'"fields": {}} '):
        # an empty object has no members, as a list has no elements
        assert parse_device(parse_document(text)).fields == ()
        return
    with pytest.raises(ValueError, match=r"\S"):
        parse_device(parse_document(text))


def test_nested_too_deep():
    made = {"vmsd_name": "d", "version": 1, "fields": []}
    for _ in range(70):
        made = {"vmsd_name": "d", "version": 1, "fields": [{"name": "x", "type": "struct", "struct": made, "size": 1}]}
    with pytest.raises(ValueError, match="deep"):
        parse_layout(made)


def test_raw_bytes_in_names():
    """2.9 escapes nothing; what is no UTF-8 is kept."""
    text = b'{ "vmsd_name" : "d\xff", "version" : 1, "fields" : [ { "name" : "x\t", "type" : "uint8", "size" : 1 } ] }'
    values, _ = read(text, struct.pack("B", 7))
    assert values == {"x\t": 7}
