"""Each field family: its bytes, its JSON entry, and the way back (spec/stream.md 3.4, 3.5, 2.6.1)."""

from __future__ import annotations

import struct as pack
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.errors import MigrationError, StreamError
from qmig_e2k.vmstate import (
    Members,
    VMStateDescription,
    array,
    array2d,
    array_of_pointer,
    bitmap,
    bool_,
    bool_strict,
    buffer,
    capability,
    cpu_double_u,
    fd,
    float64,
    gtree,
    int8,
    int16,
    int32,
    int32_equal,
    int32_positive_le,
    int64,
    nullptr,
    pointer,
    qlist,
    qtailq,
    struct,
    timer,
    uint8,
    uint8_equal,
    uint16,
    uint16_equal,
    uint32,
    uint32_equal,
    uint64,
    uint64_equal,
    unused,
    unused_varray,
    validate,
    varray,
    vbuffer,
    vstruct,
    with_tmp,
)


def save(fields: list[Any], obj: Any, **options: Any) -> tuple[bytes, list[Any]]:
    writer = Writer()
    made = vmstate.save(VMStateDescription("dev", fields=fields), obj, writer, **options)
    assert not isinstance(made, Members)
    return writer.getvalue(), made["fields"]


def load(fields: list[Any], obj: Any, raw: bytes, version: int = 1) -> Any:
    reader = Reader(raw)
    vmstate.load(VMStateDescription("dev", fields=fields), obj, reader, version)
    assert reader.offset == len(raw), "left over"
    return obj


def refused(fields: list[Any], obj: Any, raw: bytes) -> StreamError:
    with pytest.raises(StreamError) as caught:
        load(fields, obj, raw)
    assert caught.value.kind in ("device-state", "bad-version", "truncated", "unsupported")
    return caught.value


POINT = VMStateDescription("point", version_id=3, minimum_version_id=2, fields=[uint8("x"), uint8("y", version=3)])


def point(x: int = 0, y: int = 0) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y)


@pytest.mark.parametrize(
    ("kind", "value", "raw", "name"),
    [
        (bool_, True, "01", "bool"),
        (int8, -2, "fe", "int8"),
        (int16, -2, "fffe", "int16"),
        (int32, -2, "fffffffe", "int32"),
        (int64, -2, "fffffffffffffffe", "int64"),
        (uint8, 0xAB, "ab", "uint8"),
        (uint16, 0xABCD, "abcd", "uint16"),
        (uint32, 0xABCDEF01, "abcdef01", "uint32"),
        (uint64, 0xABCDEF0123456789, "abcdef0123456789", "uint64"),
        (uint8_equal, 7, "07", "uint8 equal"),
        (uint16_equal, 7, "0007", "uint16 equal"),
        (int32_equal, -7, "fffffff9", "int32 equal"),
        (uint32_equal, 7, "00000007", "uint32 equal"),
        (uint64_equal, 7, "0000000000000007", "int64 equal"),
        (int32_positive_le, 7, "00000007", "int32 le"),
        (float64, 1.5, "3ff8000000000000", "float64"),
        (cpu_double_u, -2.0, "c000000000000000", "CPU_Double_U"),
        (timer, -1, "ffffffffffffffff", "timer"),
        (timer, 1 << 40, "0000010000000000", "timer"),
        (capability, "mapped-ram", "0a6d61707065642d72616d", "capability"),
        (nullptr, None, "30", "nullptr"),
    ],
)
def test_single(kind: Any, value: Any, raw: str, name: str) -> None:
    data, entries = save([kind("v")], {"v": value})
    assert data.hex() == raw
    assert entries == [{"name": "v", "type": name, "size": len(data)}]
    assert list(entries[0]) == ["name", "type", "size"]
    local = SimpleNamespace(v=value)
    assert load([kind("v")], local, data).v == value
    # an array of one-element lists goes the same way, except where there is nothing to compare with
    if kind is not nullptr:
        many, _ = save([array("v", kind, 3)], {"v": [value] * 3})
        assert many == data * 3
        assert load([array("v", kind, 3)], {"v": [value] * 3}, many)["v"] == [value] * 3


def test_bool_is_normalised_unless_strict() -> None:
    assert load([bool_("v")], {"v": False}, b"\x80")["v"] is True
    assert load([array("v", bool_, 3)], {"v": [False] * 3}, b"\x80\0\1")["v"] == [True, False, True]
    assert "0x80 is no bool" in refused([bool_strict("v")], {"v": False}, b"\x80").message
    assert load([bool_strict("v")], {"v": False}, b"\1")["v"] is True


def test_nan_bits_survive() -> None:
    raw = bytes.fromhex("7ff0dead0000beef")
    obj = load([float64("v")], {"v": 0.0}, raw)
    assert save([float64("v")], obj)[0] == raw
    vector = np.zeros(2)
    load([array("v", float64, 2)], {"v": vector}, raw * 2)
    assert save([array("v", float64, 2)], {"v": vector})[0] == raw * 2


def test_equal_keeps_and_compares() -> None:
    error = refused([uint32_equal.with_hint("use -smp")("cpus")], {"cpus": 4}, b"\0\0\0\5")
    assert error.message == "0x5 in the stream, 0x4 here; use -smp"
    assert (error.offset, error.path) == (0, "dev/cpus")
    assert "nothing here" in refused([uint32_equal("cpus")], {}, b"\0\0\0\5").message
    assert refused([array("v", uint8_equal, 2)], {"v": [1, 2]}, b"\1\3").path == "dev/v[1]"


@pytest.mark.parametrize("value", [-1, 8])
def test_positive_le(value: int) -> None:
    assert "0 to 7" in refused([int32_positive_le("v")], {"v": 7}, pack.pack(">i", value)).message
    assert load([int32_positive_le("v")], {"v": 7}, pack.pack(">i", 3))["v"] == 3


def test_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(MigrationError, match="dev/v") as caught:
        save([uint8("v")], {"v": 256})
    assert (caught.value.kind, caught.value.path) == ("device-state", "dev/v")
    for fields, obj in (
        ([array("v", uint8, 2)], {"v": [1, 256]}),
        ([array("v", uint8, 2)], {"v": np.array([1, 256])}),
        ([array("v", uint8, 2)], {"v": [1]}),
        ([array("v", uint8, 2)], {"v": None}),
        ([uint8("v")], {"v": "text"}),
        ([uint8("v")], {}),
        ([uint8("v")], object()),
        ([buffer("v", 3)], {"v": b"ab"}),
        ([buffer("v", 3)], {"v": None}),
        ([struct("v", POINT)], {"v": None}),
        ([array("v", POINT, 2)], {"v": [point(), None]}),
        ([array("v", POINT, 2)], {"v": [point()]}),
        ([array("v", POINT, 2)], {"v": None}),
        ([nullptr("v")], {"v": 1}),
        ([int8("n"), vbuffer("v", "n")], {"n": -1, "v": b""}),
    ):
        with pytest.raises(MigrationError) as caught:
            save(fields, obj)
        assert caught.value.path.startswith("dev/v")


def test_fd_is_refused_by_name() -> None:
    with pytest.raises(MigrationError, match="cpr") as caught:
        save([fd("v")], {"v": 3})
    assert caught.value.kind == "unsupported"
    assert refused([fd("v")], {"v": 3}, b" ").kind == "unsupported"


# -- arrays


@pytest.mark.parametrize(
    "container", [[1, 2, 3], np.array([1, 2, 3], np.uint16), np.array([1, 2, 3], ">u2"), (1, 2, 3)]
)
def test_array(container: Any) -> None:
    fields = [array("v", uint16, 3)]
    data, entries = save(fields, {"v": container})
    assert data.hex() == "000100020003"
    assert entries == [{"name": "v", "array_len": 3, "type": "uint16", "size": 2}]
    assert list(entries[0]) == ["name", "array_len", "type", "size"]
    obj = load(fields, {"v": container}, bytes.fromhex("000900080007"))
    assert list(obj["v"]) == [9, 8, 7]
    assert type(obj["v"]) is type(container)
    if not isinstance(container, tuple):
        assert obj["v"] is container, "filled in place"


def test_array_of_one_has_no_length() -> None:
    assert save([array("v", uint16, 1)], {"v": [1]})[1] == [{"name": "v", "type": "uint16", "size": 2}]
    assert save([array("v", uint16, 0)], {"v": []}) == (b"", [])


def test_sub_array() -> None:
    fields = [array("v", uint8, 2, start=1)]
    assert save(fields, {"v": [1, 2, 3, 4]})[0] == b"\2\3"
    assert load(fields, {"v": [1, 2, 3, 4]}, b"\x0a\x0b")["v"] == [1, 10, 11, 4]
    vector = np.array([1, 2, 3, 4], np.uint8)
    load(fields, {"v": vector}, b"\x0a\x0b")
    assert vector.tolist() == [1, 10, 11, 4]
    assert load(fields, {"v": (1, 2, 3, 4)}, b"\x0a\x0b")["v"] == (1, 10, 11, 4)


def test_array2d() -> None:
    fields = [array2d("v", uint8, 2, 3)]
    for container in ([[1, 2, 3], [4, 5, 6]], np.array([[1, 2, 3], [4, 5, 6]], np.uint8)):
        data, entries = save(fields, {"v": container})
        assert data == b"\1\2\3\4\5\6"
        assert entries[0]["array_len"] == 6
        obj = load(fields, {"v": container}, b"\6\5\4\3\2\1")
        assert np.asarray(obj["v"]).tolist() == [[6, 5, 4], [3, 2, 1]]
        assert obj["v"] is container
    column = np.zeros((2, 6), np.uint8)[:, ::2]
    assert load(fields, {"v": column}, b"\6\5\4\3\2\1")["v"].tolist() == [[6, 5, 4], [3, 2, 1]]


def test_array_with_test_is_described_one_by_one() -> None:
    fields = [array("v", uint8, 3, exists=lambda _obj, _version: True)]
    element = {"name": "v", "index": 0, "type": "uint8", "size": 1}
    assert save(fields, {"v": [1, 2, 3]})[1] == [element, element | {"index": 1}, element | {"index": 2}]
    assert save(fields, {"v": [1, 2, 3]}, format="10.0")[1] == [
        element,
        element | {"index": 1},
        {"name": "v", "type": "uint8", "size": 1},
    ]


def test_array_needs_room() -> None:
    assert "room for 1" in refused([array("v", uint8, 2)], {"v": [0]}, b"\1\2").message
    assert load([array("v", uint8, 2)], {"v": None}, b"\1\2")["v"] == [1, 2]
    assert load([array("v", uint8, 2, start=1)], {}, b"\1\2")["v"] == [0, 1, 2]
    assert "cannot hold" in refused([array("v", uint64, 1)], {"v": np.zeros(1, np.int64)}, bytes(8)).message


@pytest.mark.parametrize("kind", [int32, uint32, uint16, uint8])
def test_varray(kind: Any) -> None:
    fields = [kind("n"), varray("v", uint16, "n")]
    data, entries = save(fields, {"n": 2, "v": [1, 2, 3]})
    assert data[-4:].hex() == "00010002"
    assert entries[1] == {"name": "v", "array_len": 2, "type": "uint16", "size": 2}
    assert load(fields, {"n": 0, "v": [9, 9, 9]}, data) == {"n": 2, "v": [1, 2, 9]}
    empty, entries = save(fields, {"n": 0, "v": [1]})
    assert [entry["name"] for entry in entries] == ["n"]
    assert load(fields, {"n": 5, "v": [9]}, empty) == {"n": 0, "v": [9]}
    assert "room for 1" in refused(fields, {"n": 0, "v": [9]}, data).message


def test_varray_count_is_signed() -> None:
    fields = [int32("n"), varray("v", uint8, "n")]
    error = refused(fields, {"n": 0, "v": []}, b"\xff\xff\xff\xff")
    assert (error.path, error.offset) == ("dev/v", 4)
    assert "n is -1" in error.message
    fields = [uint32("n"), varray("v", uint8, "n", alloc=True)]
    assert "n is 2147483648" in refused(fields, {"n": 0}, b"\x80\0\0\0").message


def test_varray_alloc() -> None:
    fields = [uint32("n"), varray("v", uint16, "n", alloc=True)]
    assert load(fields, {"v": None}, bytes.fromhex("0000000200010002"))["v"] == [1, 2]
    made = load(fields, {"v": np.zeros(9, np.uint16)}, bytes.fromhex("0000000200010002"))["v"]
    assert made.dtype == np.uint16
    narrow = {"v": np.zeros(9, np.uint8)}
    assert "array of uint8 cannot hold uint16" in refused(fields, narrow, bytes.fromhex("0000000200010002")).message
    assert made.tolist() == [1, 2]
    # the announced size is neither allocated nor believed
    assert refused(fields, {}, bytes.fromhex("00100000") + b"short").kind == "truncated"
    assert "exceed the limit" in refused(fields, {}, bytes.fromhex("7fffffff")).message


def test_varray_multiply() -> None:
    fields = [uint8("n"), varray("v", uint8, "n", multiply=3)]
    assert save(fields, {"n": 2, "v": [1, 2, 3, 4, 5, 6]})[0] == b"\2\1\2\3\4\5\6"
    assert len(save(fields, {"n": 200, "v": bytes(600)})[0]) == 601
    wide = [uint32("n"), varray("v", uint8, "n", multiply=3)]
    assert "0 to 715827882" in refused(wide, {"n": 0, "v": []}, b"\x30\0\0\0").message


# -- buffers


def test_buffer() -> None:
    fields = [buffer("v", 3)]
    for container in (b"abc", bytearray(b"abc"), np.frombuffer(b"abc", np.uint8), memoryview(b"abc")):
        data, entries = save(fields, {"v": container})
        assert data == b"abc"
        assert entries == [{"name": "v", "type": "buffer", "size": 3}]
    assert load(fields, {"v": b"..."}, b"abc")["v"] == b"abc"
    assert load(fields, {"v": None}, b"abc")["v"] == b"abc"
    container = bytearray(b"...!")
    assert load(fields, {"v": container}, b"abc")["v"] is container
    assert container == b"abc!"
    vector = np.zeros(3, np.uint8)
    assert load(fields, {"v": vector}, b"abc")["v"].tobytes() == b"abc"
    assert "room for 2" in refused(fields, {"v": b".."}, b"abc").message


def test_partial_buffer() -> None:
    fields = [buffer("v", 2, start=1)]
    assert save(fields, {"v": b"abcd"})[0] == b"bc"
    assert load(fields, {"v": b"abcd"}, b"BC")["v"] == b"aBCd"
    assert load(fields, {"v": bytearray(b"abcd")}, b"BC")["v"] == b"aBCd"


def test_vbuffer() -> None:
    fields = [int32("n"), vbuffer("v", "n", multiply=2)]
    data, entries = save(fields, {"n": 2, "v": b"abcdef"})
    assert data == b"\0\0\0\2abcd"
    assert entries[1] == {"name": "v", "type": "buffer", "size": 4}
    assert load(fields, {"n": 0, "v": bytearray(6)}, data)["v"] == b"abcd\0\0"
    assert "room for 3" in refused(fields, {"n": 0, "v": bytearray(3)}, data).message
    assert "room for 0" in refused(fields, {"n": 0, "v": None}, data).message
    assert "-1" not in refused(fields, {"n": 0, "v": b""}, b"\xff\xff\xff\xff").path
    inside = [int32("n"), vbuffer("v", "n", start=1)]
    assert save(inside, {"n": 2, "v": b"abcd"})[0] == b"\0\0\0\2bc"
    fresh = [int32("n"), vbuffer("v", "n", alloc=True)]
    assert load(fresh, {}, b"\0\0\0\2ab")["v"] == b"ab"
    assert load(fresh, {"v": bytearray()}, b"\0\0\0\2ab")["v"] == bytearray(b"ab")
    assert "exceed the limit" in refused(fresh, {}, b"\x7f\xff\xff\xff").message


def test_bitmap() -> None:
    fields = [int32("bits"), bitmap("v", "bits")]
    words = [1, 1 << 63]
    for container, empty in ((words, [0, 0]), (np.array(words, np.uint64), np.zeros(2, np.uint64))):
        data, entries = save(fields, {"bits": 65, "v": container})
        assert data == (65).to_bytes(4, "big") + (1).to_bytes(8, "big") + (1 << 63).to_bytes(8, "big")
        assert entries[1] == {"name": "v", "type": "bitmap", "size": 16}
        assert [int(word) for word in load(fields, {"bits": 0, "v": empty}, data)["v"]] == words
    assert "room for 64" in refused(fields, {"bits": 0, "v": [0]}, data).message
    assert "room for 0" in refused(fields, {"bits": 0, "v": None}, data).message


def test_unused() -> None:
    assert save([unused(3)], {}) == (b"\0\0\0", [{"name": "unused", "type": "unused_buffer", "size": 3}])
    assert load([unused(3)], {}, b"abc") == {}
    fields = [uint8("n"), unused_varray("n", 2)]
    data, entries = save(fields, {"n": 2})
    assert data == b"\2\0\0\0\0"
    assert entries[1] == {"name": "unused", "array_len": 2, "type": "unused_buffer", "size": 2}
    assert load(fields, {}, b"\2abcd") == {"n": 2}


def test_repeated_names_are_numbered() -> None:
    entries = save([unused(1), uint8("v"), unused(2), unused(3, version=9)], {"v": 1})[1]
    assert [entry["name"] for entry in entries] == ["unused[0]", "v", "unused[1]"]


# -- structures


def test_struct() -> None:
    data, entries = save([struct("p", POINT)], SimpleNamespace(p=point(1, 2)))
    assert data == b"\1\2"
    nested = {
        "vmsd_name": "point",
        "version": 3,
        "fields": [{"name": "x", "type": "uint8", "size": 1}, {"name": "y", "type": "uint8", "size": 1}],
    }
    assert entries == [{"name": "p", "type": "struct", "struct": nested, "size": 2}]
    inner = point()
    assert load([struct("p", POINT)], SimpleNamespace(p=inner), data).p is inner
    assert inner == point(1, 2)
    assert "must exist" in refused([struct("p", POINT)], SimpleNamespace(p=None), data).message
    assert load([struct("base", POINT, attr=".")], point(), data) == point(1, 2)
    assert load([uint8("x", attr="p.x")], SimpleNamespace(p={"x": 0}), b"\5").p == {"x": 5}


def test_vstruct_has_a_fixed_version() -> None:
    fields = [vstruct("p", POINT, 2)]
    data, entries = save(fields, {"p": point(1, 2)})
    assert data == b"\1"
    assert entries == [
        {
            "name": "p",
            "type": "vstruct",
            "vmsd_name": "point",
            "version": 2,
            "fields": [{"name": "x", "type": "uint8", "size": 1}],
            "size": 1,
        }
    ]
    assert load(fields, {"p": point(9, 9)}, data)["p"] == point(1, 9)
    assert "at least 2" in refused([vstruct("p", POINT, 1)], {"p": point()}, data).message
    many = [array("p", POINT, 2, struct_version=2)]
    data, entries = save(many, {"p": [point(1), point(2)]})
    assert data == b"\1\2"
    assert [entry["type"] for entry in entries] == ["vstruct"]


def test_pointer() -> None:
    assert save([pointer("v", uint8)], {"v": 1})[0] == b"\1"
    assert load([pointer("p", POINT)], {"p": point()}, b"\1\2")["p"] == point(1, 2)
    with pytest.raises(MigrationError):
        save([pointer("v", uint8)], {"v": None})


def test_struct_array_is_compressed_if_its_fields_are() -> None:
    data, entries = save([array("p", POINT, 2)], {"p": [point(1, 2), point(3, 4)]})
    assert data == b"\1\2\3\4"
    assert [(entry["array_len"], entry["size"]) for entry in entries] == [(2, 2)]
    tested = VMStateDescription("t", fields=[uint8("x", exists=lambda _o, _v: True)])
    entries = save([array("p", tested, 2)], {"p": [point(), point()]})[1]
    assert [entry["index"] for entry in entries] == [0, 1]
    with_sub = VMStateDescription("t", fields=[], subsections=[VMStateDescription("t/s", needed=lambda _: False)])
    entries = save([array("p", with_sub, 2)], {"p": [point(), point()]}, format="10.0")[1]
    assert [entry.get("index") for entry in entries] == [0, None]
    assert list(entries[0]) == ["name", "index", "type", "struct", "size"]


def test_struct_varray() -> None:
    fields = [uint8("n"), varray("p", POINT, "n")]
    data, _ = save(fields, {"n": 1, "p": [point(1, 2), point(3, 4)]})
    assert data == b"\1\1\2"
    assert load(fields, {"n": 0, "p": [point()]}, data)["p"] == [point(1, 2)]
    assert "room for 0" in refused(fields, {"n": 0, "p": []}, data).message
    fresh = [uint32("n"), varray("p", POINT, "n", alloc=True, new=point)]
    assert load(fresh, {}, b"\0\0\0\1\1\2")["p"] == [point(1, 2)]
    assert "exceed the limit" in refused(fresh, {}, b"\x7f\xff\xff\xff").message
    with pytest.raises(ValueError, match="new="):
        varray("p", POINT, "n", alloc=True)


def test_path_leads_into_structures() -> None:
    inner = VMStateDescription("inner", fields=[array("v", uint8_equal, 2)])
    error = refused([uint8("a"), array("p", inner, 2)], {"p": [{"v": [1, 2]}, {"v": [3, 4]}]}, b"\0\1\2\3\5")
    assert (error.path, error.offset) == ("dev/p[1].v[1]", 4)
    with pytest.raises(MigrationError) as caught:
        save([array("p", POINT, 2)], {"p": [point(), point(0, 256)]})
    assert caught.value.path == "dev/p[1].y"


@pytest.mark.parametrize("element", [uint8, VMStateDescription("e", fields=[uint8("x")])])
def test_array_of_pointer(element: Any) -> None:
    def value(x: int) -> Any:
        return x if element is uint8 else SimpleNamespace(x=x)

    fields = [array_of_pointer("v", element, 4)]
    data, entries = save(fields, {"v": [value(1), None, None, value(4)]})
    assert data == b"\x01\x30\x30\x04"
    assert [entry["array_len"] for entry in entries] == [4]
    obj = load(fields, {"v": [value(0), None, None, value(0)]}, data)
    assert obj["v"] == [value(1), None, None, value(4)]
    error = refused(fields, {"v": [value(0), None, None, value(0)]}, b"\1\x31")
    assert (error.path, error.offset) == ("dev/v[1]", 1)


def test_null_elements_in_each_generation() -> None:
    element = VMStateDescription("e", fields=[uint8("x")])
    fields = [array_of_pointer("v", element, 4)]
    body = {"vmsd_name": "e", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]}
    null_first = {"v": [None, None, point(3), point(4)]}
    assert save(fields, null_first, format="7.2")[1] == [
        {"name": "v", "array_len": 4, "type": "struct", "struct": {}, "size": 1}
    ]
    assert save(fields, null_first, format="10.0")[1] == [
        {"name": "v", "array_len": 2, "type": "nullptr", "size": 1},
        {"name": "v", "array_len": 2, "type": "struct", "struct": body, "size": 1},
    ]
    # the first run of an array that starts non-null is declared too long: 10.0 does so
    assert save(fields, {"v": [point(1), None, point(3), point(4)]}, format="10.0")[1] == [
        {"name": "v", "array_len": 4, "type": "struct", "struct": body, "size": 1},
        {"name": "v", "type": "nullptr", "size": 1},
        {"name": "v", "array_len": 2, "type": "struct", "struct": body, "size": 1},
    ]


# -- lists and trees


@pytest.mark.parametrize("family", [qtailq, qlist])
@pytest.mark.parametrize("container", [list, deque])
def test_lists(family: Any, container: Any) -> None:
    fields = [family("q", POINT, point)]
    local = container([point(9, 9)])
    for values, raw in (([], "00"), ([point(1, 2)], "01010200"), ([point(1, 2), point(3, 4)], "01010201030400")):
        data, _ = save(fields, {"q": values})
        assert data.hex() == raw
        assert load(fields, {"q": local}, data)["q"] is local
        assert list(local) == values
    assert load(fields, {"q": local}, bytes.fromhex("ff010200"))["q"] == container([point(1, 2)])
    assert load(fields, {}, b"\0")["q"] == []


def test_list_description_repeats_its_members() -> None:
    fields = [qtailq("q", VMStateDescription("e", fields=[]), point)]
    assert save(fields, {"q": []})[1] == [{"name": "q", "type": "qtailq", "size": 1}]
    one = {"name": "q", "type": "qtailq", "vmsd_name": "e", "version": 1, "fields": [], "size": 2}
    assert save(fields, {"q": [point()]})[1] == [one]
    (entry,) = save(fields, {"q": [point(), point()]})[1]
    assert isinstance(entry, Members)
    assert [name for name, _ in entry] == ["name", "type", *["vmsd_name", "version", "fields"] * 2, "size"]


def test_list_limits_and_versions() -> None:
    fields = [qtailq("q", POINT, point, element_version=2)]
    assert load(fields, {"q": []}, bytes.fromhex("010500"))["q"] == [point(5)]
    with pytest.raises(ValueError, match="no version 1"):
        qtailq("q", POINT, point, element_version=1)
    error = refused([qtailq("q", POINT, point)], {"q": []}, b"\1\1\2\1\1")
    assert (error.kind, error.path, error.offset) == ("truncated", "dev/q[1].y", 5)


def test_endless_list_is_stopped() -> None:
    empty = VMStateDescription("e", fields=[])
    error = refused([qtailq("q", empty, object)], {"q": []}, b"\1" * ((1 << 20) + 2))
    assert "more than 1048576 elements" in error.message


def test_gtree() -> None:
    fields = [gtree("t", POINT, point)]
    data, entries = save(fields, {"t": {7: point(3, 4), 5: point(1, 2)}})
    assert data.hex() == "000000020100000000000000050102010000000000000007030400"
    assert isinstance(entries[0], Members)
    assert load(fields, {"t": {1: point()}}, data)["t"] == {5: point(1, 2), 7: point(3, 4)}
    key = VMStateDescription("key", fields=[uint8("k")])

    class Key:
        k = 0

    keyed = [gtree("t", POINT, point, key=key, new_key=Key)]
    first = Key()
    first.k = 9
    data, _ = save(keyed, {"t": {first: point(1, 2)}})
    assert data.hex() == "000000010109010200"
    ((got, value),) = load(keyed, {}, data)["t"].items()
    assert (got.k, value) == (9, point(1, 2))
    with pytest.raises(ValueError, match="belong together"):
        gtree("t", POINT, point, key=key)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("0000000100", "0 nodes instead of the 1"),
        ("0000000001", "more nodes than the 0"),
        ("000000020100000000000000050102010000000000000005010200", "the same key twice"),
        ("7fffffff", "exceed the limit"),
    ],
)
def test_gtree_damage(raw: str, text: str) -> None:
    assert text in refused([gtree("t", POINT, point)], {"t": {}}, bytes.fromhex(raw)).message


def test_with_tmp() -> None:
    class Tmp:
        def __init__(self, parent: dict[str, int]) -> None:
            self.parent = parent
            self.low = self.high = 0

        def fill(self) -> None:
            self.high, self.low = divmod(self.parent["v"], 16)

        def take(self, _version: int) -> None:
            self.parent["v"] = self.high * 16 + self.low

    tmp = VMStateDescription("tmpv", fields=[uint8("low"), uint8("high")], pre_save=Tmp.fill, post_load=Tmp.take)
    fields = [with_tmp(tmp, Tmp)]
    data, entries = save(fields, {"v": 0x35})
    assert data == b"\5\3"
    assert [entries[0][m] for m in ("name", "type", "vmsd_name", "size")] == ["tmp", "tmp", "tmpv", 2]
    assert load(fields, {"v": 0}, data) == {"v": 0x35}


def test_validate_and_must_exist() -> None:
    fields = [uint8("v"), validate("small", lambda obj, _version: obj["v"] < 4)]
    assert save(fields, {"v": 3}) == (b"\3", [{"name": "v", "type": "uint8", "size": 1}])
    assert load(fields, {"v": 0}, b"\3") == {"v": 3}
    local = {"v": 0}
    error = refused(fields, local, b"\4")
    assert (error.path, error.offset) == ("dev/small", 1)
    assert local == {"v": 0}, "taken back"
    with pytest.raises(MigrationError, match="impossible"):
        save(fields, {"v": 4})
    must = [uint8("v", exists=lambda _obj, version: version > 1, must_exist=True)]
    assert "does not hold" in refused(must, {"v": 0}, b"").message
