"""Versions, hooks, subsections, errors and taking back (spec/stream.md 3.2, 3.3, 3.6)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.errors import MigrationError, StreamError, migration_error, stream_error
from qmig_e2k.vmstate import VMStateDescription, array, buffer, qtailq, struct, uint8, uint8_equal, uint16, uint32


def save(description: VMStateDescription, obj: Any, **options: Any) -> tuple[bytes, Any]:
    writer = Writer()
    made = vmstate.save(description, obj, writer, **options)
    return writer.getvalue(), made


def load(description: VMStateDescription, obj: Any, raw: bytes, version: int = 1, rest: int = 0) -> Any:
    reader = Reader(raw, 100)
    vmstate.load(description, obj, reader, version)
    assert reader.offset == 100 + len(raw) - rest
    return obj


def refused(description: VMStateDescription, obj: Any, raw: bytes, version: int = 1) -> StreamError:
    with pytest.raises(StreamError) as caught:
        load(description, obj, raw, version)
    assert str(caught.value).startswith(caught.value.path)
    return caught.value


def sub(name: str, payload: bytes = b"", version: int = 1) -> bytes:
    return b"\x05" + bytes([len(name)]) + name.encode() + version.to_bytes(4, "big") + payload


# -- versions


DEVICE = VMStateDescription(
    "dev",
    version_id=3,
    minimum_version_id=1,
    fields=[uint8("a"), uint8("b", version=2), uint8("c", exists=lambda obj, version: version == 1 or obj["a"] == 7)],
)


def test_fields_by_version_and_test() -> None:
    assert load(DEVICE, {"b": 99}, b"\1\3", 1) == {"a": 1, "b": 99, "c": 3}
    assert load(DEVICE, {}, b"\1\2", 2) == {"a": 1, "b": 2}
    assert load(DEVICE, {}, b"\7\2\3", 3) == {"a": 7, "b": 2, "c": 3}
    assert "version 4 in the stream, at most 3" in refused(DEVICE, {}, b"", 4).message
    assert "version 0 in the stream, at least 1" in refused(DEVICE, {}, b"", 0).message


def test_save_of_an_older_version() -> None:
    obj = {"a": 1, "b": 2, "c": 3}
    raw, made = save(DEVICE, obj, version=1)
    assert raw == b"\1\3"
    assert [entry["name"] for entry in made["fields"]] == ["a", "c"]
    assert made["version"] == 1
    assert save(DEVICE, obj, version=1, format="2.9")[0] == b"\1\2\3", "2.9 leaves out by test only"
    assert save(DEVICE, obj, describe=False) == (b"\1\2", {})


def test_load_state_old() -> None:
    def old(obj: dict[str, int], reader: Reader, version: int) -> None:
        obj["a"] = reader.u8() + version
        if obj["a"] > 200:
            raise ValueError("too old")

    device = VMStateDescription(
        "dev", version_id=3, minimum_version_id=2, fields=[uint8("a")], load_state_old=old, minimum_version_id_old=1
    )
    assert load(device, {}, b"\5", 1) == {"a": 6}
    assert load(device, {}, b"\5", 2) == {"a": 5}
    assert "at least 1" in refused(device, {}, b"\5", 0).message
    assert refused(device, {}, b"\xff", 1).message == "too old"
    with pytest.raises(ValueError, match="minimum_version_id_old"):
        VMStateDescription("dev", load_state_old=old)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VMStateDescription(""),
        lambda: VMStateDescription("x" * 256),
        lambda: VMStateDescription("dev", version_id=1, minimum_version_id=2),
        lambda: VMStateDescription("dev", subsections=[VMStateDescription("other/part")]),
        lambda: VMStateDescription("dev", subsections=[VMStateDescription("dev")]),
        lambda: VMStateDescription("dev", subsections=[VMStateDescription("dev/a"), VMStateDescription("dev/a")]),
    ],
)
def test_descriptions_are_checked_when_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r"version|name|begin|bytes"):
        make()


# -- hooks


def test_order_of_hooks() -> None:
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda obj, *version: calls.append(f"{name}{version[0] if version else ''}")

    part = VMStateDescription(
        "dev/part",
        pre_save=note("sub pre_save"),
        needed=lambda _: calls.append("needed") or True,
        post_load=note("sub post_load"),
    )
    device = VMStateDescription(
        "dev",
        fields=[uint8("a")],
        subsections=[part],
        pre_save=note("pre_save"),
        post_save=note("post_save"),
        pre_load=note("pre_load"),
        post_load=note("post_load"),
    )
    raw, _ = save(device, {"a": 1})
    assert calls == ["pre_save", "needed", "sub pre_save", "post_save"]
    calls.clear()
    load(device, {"a": 0}, raw)
    assert calls == ["pre_load", "sub post_load1", "post_load1"]


@pytest.mark.parametrize("hook", ["pre_load", "post_load"])
def test_hooks_refuse_a_load(hook: str) -> None:
    def bad(*_: Any) -> None:
        raise ValueError("register out of range")

    device = VMStateDescription("dev", fields=[uint8("a")], **{hook: bad})
    local = {"a": 9}
    error = refused(device, local, b"\1")
    assert (error.kind, error.message, error.path, error.offset) == (
        "device-state",
        "register out of range",
        "dev",
        100,
    )
    assert isinstance(error.__cause__, ValueError)
    assert local == {"a": 9}
    zero = VMStateDescription("dev", fields=[uint8("a")], **{hook: lambda *_: 0})
    assert load(zero, {"a": 9}, b"\1") == {"a": 1}
    for result in (-22, True, "no"):
        returning = VMStateDescription("dev", fields=[uint8("a")], **{hook: lambda *_, r=result: r})
        assert refused(returning, {"a": 9}, b"\1").message == f"{hook} returned {result!r}"


def test_any_exception_of_a_hook_is_a_refusal() -> None:
    device = VMStateDescription("dev", post_load=lambda obj, _: obj["nothing"])
    assert refused(device, {}, b"").message == "KeyError: 'nothing'"

    def own(*_: Any) -> None:
        raise stream_error("device-state", "inner", path="chip/reg")

    error = refused(VMStateDescription("dev", post_load=own), {}, b"")
    assert (error.path, error.message) == ("dev/chip/reg", "inner")


def test_channel_failures_pass_through() -> None:
    for kind in ("cancelled", "closed", "io"):

        def gone(*_: Any, kind: str = kind) -> None:
            raise migration_error(kind, "gone")

        local = {"a": 9}
        with pytest.raises(MigrationError) as caught:
            load(VMStateDescription("dev", fields=[uint8("a")], post_load=gone), local, b"\1")
        assert caught.value.kind == kind
        assert local == {"a": 9}

    def stuck(*_: Any) -> None:
        raise migration_error("invalid-state", "not now")

    assert refused(VMStateDescription("dev", post_load=stuck), {}, b"").kind == "invalid-state"


def test_interrupts_pass_and_take_back() -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    local = {"a": 9}
    with pytest.raises(KeyboardInterrupt):
        load(VMStateDescription("dev", fields=[uint8("a")], post_load=stop), local, b"\1")
    assert local == {"a": 9}


def test_hooks_refuse_a_save() -> None:
    calls = []

    def bad(_: Any) -> None:
        raise RuntimeError("busy")

    device = VMStateDescription("dev", pre_save=bad, post_save=calls.append)
    with pytest.raises(MigrationError, match=r"^dev: RuntimeError: busy") as caught:
        save(device, {})
    assert (caught.value.kind, caught.value.path) == ("device-state", "dev")
    assert not calls
    with pytest.raises(MigrationError, match="dev/a"):
        save(VMStateDescription("dev", fields=[uint8("a")], post_save=calls.append), {})
    assert calls == [{}], "post_save is called after a failure too"
    with pytest.raises(MigrationError, match="dev/a"):
        save(VMStateDescription("dev", fields=[uint8("a")], post_save=bad), {})
    with pytest.raises(MigrationError, match="busy"):
        save(VMStateDescription("dev", post_save=bad), {})
    with pytest.raises(MigrationError, match="pre_save returned -1"):
        save(VMStateDescription("dev", pre_save=lambda _: -1), {})


def test_unmigratable() -> None:
    device = VMStateDescription("dev", unmigratable=True)
    with pytest.raises(MigrationError, match="cannot be migrated"):
        save(device, {})
    assert "cannot be migrated" in refused(device, {}, b"").message


# -- subsections


PART = VMStateDescription(
    "dev/part",
    version_id=2,
    minimum_version_id=1,
    fields=[uint8("p"), uint8("q", version=2)],
    needed=lambda obj: obj.get("p"),
)
DEEP = VMStateDescription("dev/outer/inner", fields=[uint8("deep")])
OUTER = VMStateDescription("dev/outer", fields=[uint8("o")], subsections=[DEEP], needed=lambda obj: "o" in obj)
OWNER = VMStateDescription("dev", fields=[uint8("a")], subsections=[PART, OUTER])


def test_subsections_round_trip() -> None:
    obj = {"a": 1, "p": 2, "q": 3, "o": 4, "deep": 5}
    raw, made = save(OWNER, obj)
    assert raw == b"\1" + sub("dev/part", b"\2\3", 2) + sub("dev/outer", b"\4" + sub("dev/outer/inner", b"\5"))
    assert [part["vmsd_name"] for part in made["subsections"]] == ["dev/part", "dev/outer"]
    assert list(made) == ["vmsd_name", "version", "fields", "subsections"]
    assert made["subsections"][1]["subsections"][0]["vmsd_name"] == "dev/outer/inner"
    assert load(OWNER, {}, raw) == obj
    raw, made = save(OWNER, {"a": 1})
    assert (raw, "subsections" in made) == (b"\1", False)
    assert load(OWNER, {"p": 8}, raw) == {"a": 1, "p": 8}
    assert load(OWNER, {}, b"\1" + sub("dev/part", b"\2", 1)) == {"a": 1, "p": 2}
    # any order is accepted
    assert load(OWNER, {}, b"\1" + sub("dev/outer", b"\4") + sub("dev/part", b"\2", 1)) == {"a": 1, "p": 2, "o": 4}


def test_what_is_no_subsection_is_left_alone() -> None:
    for rest in (b"", b"\x7e", b"\x05", b"\x05\x03dev", b"\x05\x05other!!!!", b"\x05\x08dev/pa", sub("elsewhere/part")):
        assert load(OWNER, {}, b"\1" + rest, rest=len(rest)) == {"a": 1}


def test_a_subsection_whose_name_begins_like_its_neighbours_is_the_owners() -> None:
    twins = [VMStateDescription(name, fields=[uint8(name[4:])]) for name in ("dev/aau", "dev/aau_prefetch")]
    device = VMStateDescription("dev", fields=[uint8("a")], subsections=twins)
    state = {"a": 1, "aau": 2, "aau_prefetch": 3}
    raw, _ = save(device, state)
    assert load(device, {}, raw) == state
    assert refused(device, {}, b"\1" + sub("dev/aau", b"\2") + sub("dev/aau_other")).path == "dev/dev/aau"


def test_bad_subsections() -> None:
    error = refused(OWNER, {}, b"\1" + sub("dev/new", b""))
    assert (error.message, error.offset, error.path) == ("subsection dev/new unknown", 101, "dev")
    assert "unknown" in refused(OWNER, {}, b"\1" + sub("device", b"")).message, "the prefix has no separator"
    error = refused(OWNER, {}, b"\1" + sub("dev/part", b"\2", 1) * 2)
    assert (error.message, error.offset) == ("subsection dev/part comes twice", 101 + 15)
    error = refused(OWNER, {}, b"\1" + sub("dev/part", b"", 0x102))
    assert "version 258" in error.message, "all 32 bits count"
    assert error.path == "dev/dev/part"
    error = refused(OWNER, {}, b"\1" + sub("dev/outer", b"\4" + sub("dev/outer/inner", b"")))
    assert (error.kind, error.path) == ("truncated", "dev/dev/outer.dev/outer/inner.deep")
    assert "\\xff" in refused(OWNER, {}, b"\1\x05\x05dev/\xff\0\0\0\1").message


def test_nested_owner_is_offered_the_bytes_first() -> None:
    inner = VMStateDescription("in", fields=[uint8("x")], subsections=[VMStateDescription("in/s", fields=[uint8("s")])])
    device = VMStateDescription("dev", fields=[struct("i", inner), uint8("z")], subsections=[PART])
    obj = load(device, {"i": {}}, b"\1" + sub("in/s", b"\2") + b"\3" + sub("dev/part", b"\4", 1))
    assert obj == {"i": {"x": 1, "s": 2}, "z": 3, "p": 4}
    last = VMStateDescription("dev", fields=[struct("i", inner)], subsections=[PART])
    assert load(last, {"i": {}}, b"\1" + sub("dev/part", b"\4", 1)) == {"i": {"x": 1}, "p": 4}


def test_description_that_contains_itself_is_stopped() -> None:
    row: Any = struct("me", DEEP, attr=".")
    row.vmsd = loop = VMStateDescription("loop", fields=[row])
    assert "nested more than 64 deep" in refused(loop, {}, b"").message
    with pytest.raises(MigrationError, match="nested more than 64 deep"):
        save(loop, {})


# -- errors


def test_truncation_names_field_and_offset() -> None:
    device = VMStateDescription("dev", fields=[uint8("a"), uint32("b")])
    error = refused(device, {}, b"\1\2\3")
    assert (error.kind, error.path, error.offset) == ("truncated", "dev/b", 101)


def test_failed_load_takes_everything_back() -> None:
    part = VMStateDescription("dev/part", fields=[uint8("p")])
    inner = VMStateDescription("in", fields=[uint8("x")])
    device = VMStateDescription(
        "dev",
        fields=[
            uint8("a"),
            uint8("fresh"),
            array("numbers", uint16, 2),
            array("matrix", uint8, 4),
            array("rows", uint8, 4),
            array("frozen", uint8, 2),
            buffer("raw", 2),
            buffer("text", 2),
            struct("i", inner),
            qtailq("q", inner, dict),
            uint8_equal("last"),
        ],
        subsections=[part],
    )

    def make() -> dict[str, Any]:
        return {
            "a": 1,
            "numbers": np.array([1, 2], np.uint16),
            "matrix": np.array([[1, 2], [3, 4]], np.uint8),
            "rows": [[1, 2], [3, 4]],
            "frozen": (1, 2),
            "raw": bytearray(b"ab"),
            "text": b"ab",
            "i": SimpleNamespace(x=1),
            "q": [{"x": 1}],
            "last": 5,
        }

    good = b"\x09" * (1 + 1 + 4 + 4 + 4 + 2 + 2 + 2 + 1) + b"\1\x09\0" + b"\5"
    changed = load(device, make(), good)
    assert changed["numbers"].tolist() == [0x909, 0x909]
    assert (changed["fresh"], changed["i"].x, changed["q"]) == (9, 9, [{"x": 9}])
    for raw in (good[:-1] + b"\6", good + sub("dev/part", b"")):
        local = make()
        queue = local["q"]
        refused(device, local, raw)
        assert repr(local) == repr(make())
        assert local["q"] is queue


def test_attributes_may_be_properties_and_slots() -> None:
    class Chip:
        __slots__ = ("_v",)

        def __init__(self) -> None:
            self._v = 0

        @property
        def v(self) -> int:
            return self._v * 2

        @v.setter
        def v(self, value: int) -> None:
            if value % 2:
                raise ValueError("odd")
            self._v = value // 2

    device = VMStateDescription("dev", fields=[uint8("v")])
    chip = load(device, Chip(), b"\4")
    assert chip.v == 4
    assert save(device, chip)[0] == b"\4"
    assert refused(device, chip, b"\5").message == "odd"
    assert chip.v == 4
