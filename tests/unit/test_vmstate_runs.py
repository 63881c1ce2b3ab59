"""Runs of fields that are moved in one go do exactly what the fields do one by one."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.errors import MigrationError, StreamError
from qmig_e2k.savevm.text import description_text
from qmig_e2k.vmstate import (
    VMStateDescription,
    array,
    bool_,
    bool_strict,
    buffer,
    float64,
    int16,
    int32_positive_le,
    timer,
    uint8,
    uint16,
    uint32_equal,
    uint64,
    unused,
)
from qmig_e2k.vmstate.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS = (
    uint32_equal("id"),
    uint64("a"),
    unused(3),
    bool_("flag"),
    array("words", uint64, 4),
    buffer("raw", 5),
    unused(2),
    timer("expiry"),
    float64("ratio"),
    int32_positive_le("count"),
    array("short", uint16, 2),
    bool_strict("strict"),
    int16("last"),
)
DEVICE = VMStateDescription("dev", fields=FIELDS)
ONE_BY_ONE = VMStateDescription("dev", fields=FIELDS)
object.__setattr__(ONE_BY_ONE, "steps", ONE_BY_ONE.plan)
object.__setattr__(ONE_BY_ONE, "constant", None)


def values(**changes: Any) -> dict[str, Any]:
    made = {
        "id": 7,
        "a": 1 << 63,
        "flag": 2,
        "words": np.array([1, 2, 3, (1 << 64) - 1], np.uint64),
        "raw": bytearray(b"bytes"),
        "expiry": -1,
        "ratio": 0.1,
        "count": 9,
        "short": np.array([5, 6], np.uint16),
        "strict": True,
        "last": -2,
    }
    return made | changes


class Slots:
    __slots__ = tuple(values())


def slots(**changes: Any) -> Slots:
    made = Slots()
    for name, value in values(**changes).items():
        setattr(made, name, value)
    return made


class Guarded(SimpleNamespace):
    """Refuses a value, and lets nobody set another."""

    log: tuple[int, ...] = ()

    @property
    def a(self) -> int:
        return self._a

    @a.setter
    def a(self, value: int) -> None:
        if value == 13:
            raise ValueError("13 is unlucky")
        self._a = value

    @property
    def words(self) -> Any:
        return self._words

    @property
    def last(self) -> int:
        return -2


def guarded(**changes: Any) -> Guarded:
    made = Guarded()
    given = values(**changes)
    made._words = given.pop("words")
    assert given.pop("last") == -2
    for name, value in given.items():
        setattr(made, name, value)
    return made


def read_only(**changes: Any) -> Any:
    return MappingProxyType(values(**changes))


MAKERS: list[Callable[..., Any]] = [values, slots, lambda **changes: SimpleNamespace(**values(**changes)), guarded]


def state(obj: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return (
            value.tolist() if isinstance(value, np.ndarray) else bytes(value) if isinstance(value, bytearray) else value
        )

    members = obj if isinstance(obj, dict) else {name: getattr(obj, name, None) for name in values()}
    return {name: plain(members.get(name)) for name in values()}


def saved(description: VMStateDescription, obj: Any, **options: Any) -> tuple[bytes, Any] | tuple[str, str, str]:
    writer = Writer()
    try:
        made = vmstate.save(description, obj, writer, **options)
    except MigrationError as error:
        return error.kind, error.path, error.message
    return writer.getvalue(), made


def loaded(description: VMStateDescription, obj: Any, raw: bytes) -> tuple[Any, dict[str, Any]]:
    reader = Reader(raw, 1000)
    try:
        vmstate.load(description, obj, reader, 1)
    except StreamError as error:
        return (error.kind, error.path, error.offset, error.message), state(obj)
    return reader.offset, state(obj)


RAW = saved(ONE_BY_ONE, values())[0]


def test_what_is_joined() -> None:
    first, strict, last = DEVICE.steps
    assert isinstance(first, Run)
    assert isinstance(last, Run)
    assert [field.name for field, _ in first.rows] == [field.name for field in FIELDS[:11]]
    assert isinstance(strict, tuple)
    assert strict[0].name == "strict"
    # a test, a length or a place of its own stand alone; so does a field of a version that nobody writes
    fields = [
        uint8("a", exists=lambda obj, version: True),
        vmstate.varray("v", uint8, "a"),
        uint8("b", attr="x.b"),
        array("c", uint8, 2, start=1),
        uint8("d", version=2),
    ]
    assert not any(isinstance(step, Run) for step in VMStateDescription("dev", fields=fields).steps)
    twice = VMStateDescription("dev", fields=[uint8("a"), uint8("again", attr="a")])
    assert len(twice.steps) == 2, "the second one sees what the first one did"


def test_a_field_of_its_own_is_not_joined() -> None:
    class Odd(type(uint8("x"))):  # type: ignore[misc]
        def load(self, loader: Any, obj: Any) -> None:
            obj["odd"] = loader.reader.u8() ^ 0xFF

    odd = VMStateDescription("dev", fields=[uint8("a"), Odd("odd", uint8), uint8("b")])
    obj = {"a": 0, "odd": 0, "b": 0}
    assert loaded(odd, obj, b"\1\2\3")[0] == 1003
    assert obj == {"a": 1, "odd": 0xFD, "b": 3}


@pytest.mark.parametrize("make", [*MAKERS, read_only])
@pytest.mark.parametrize("format", ["2.9", "7.2", "10.0"])
def test_the_same_bytes_and_description(make: Callable[..., Any], format: Any) -> None:  # noqa: A002
    obj = make()
    assert saved(DEVICE, obj, format=format) == saved(ONE_BY_ONE, obj, format=format)
    leaf = VMStateDescription("leaf", fields=FIELDS[:11])
    for _ in range(2):  # the second text is a remembered one
        made = saved(leaf, obj, format=format)[1]
        for loose in (False, True):
            slow = saved(ONE_BY_ONE, obj, format=format)[1]["fields"][:13]
            text = description_text(made["fields"], loose=loose)
            assert text == description_text(
                [entry for entry in slow if entry["name"] not in ("strict", "last")], loose=loose
            )
    assert saved(leaf, obj, describe=False)[1] == {}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "change",
    [
        {"a": -1},
        {"a": 1.5},
        {"a": None},
        {"a": np.uint64(5)},
        {"flag": []},
        {"words": [1, 2, 3, 4]},
        {"words": np.arange(5, dtype=np.uint64)},
        {"words": np.arange(3, dtype=np.uint64)},
        {"words": np.arange(4, dtype=np.int64)},
        {"words": np.arange(4, dtype=">u8")},
        {"words": np.arange(4, dtype=np.uint64).reshape(2, 2)},
        {"words": np.arange(8, dtype=np.uint64)[::2]},
        {"words": None},
        {"raw": b"other"},
        {"raw": b"more bytes"},
        {"raw": b"less"},
        {"raw": memoryview(bytearray(b"views"))},
        {"short": np.array([1, 1 << 16], np.uint32)},
        {"ratio": float("nan")},
        {"ratio": "x"},
        {"count": 1 << 31},
        {"expiry": True},
    ],
)
def test_unusual_values(make: Callable[..., Any], change: dict[str, Any]) -> None:
    assert saved(DEVICE, make(**change)) == saved(ONE_BY_ONE, make(**change))
    here, there = (loaded(description, make(**change), RAW) for description in (DEVICE, ONE_BY_ONE))
    assert str(here) == str(there)


@pytest.mark.parametrize("make", MAKERS)
def test_what_arrives(make: Callable[..., Any]) -> None:
    raw = bytearray(RAW)
    raw[4:12] = bytes(range(8))
    raw[15] = 0
    obj = make()
    words, view = (obj["words"], obj["raw"]) if isinstance(obj, dict) else (obj.words, obj.raw)
    words[:] = 0
    got = loaded(DEVICE, obj, bytes(raw))
    assert got == loaded(ONE_BY_ONE, make(), bytes(raw))
    assert got[0] == 1000 + len(raw)
    assert got[1] == state(values(a=0x0001020304050607, flag=False))
    assert words.tolist()[:3] == [1, 2, 3], "in place"
    assert view is (obj["raw"] if isinstance(obj, dict) else obj.raw)


@pytest.mark.parametrize("make", MAKERS)
def test_a_stream_that_ends_anywhere(make: Callable[..., Any]) -> None:
    before = state(make(words=np.zeros(4, np.uint64), a=3))
    for length in range(len(RAW)):
        obj = make(words=np.zeros(4, np.uint64), a=3)
        got = loaded(DEVICE, obj, RAW[:length])
        assert got == loaded(ONE_BY_ONE, make(words=np.zeros(4, np.uint64), a=3), RAW[:length])
        assert got[0][0] == "truncated"
        assert got[1] == before


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("at", "value", "path"),
    [(0, 1, "dev/id"), (4, 13, "dev/a"), (74, 255, "dev/count"), (71, 255, "dev/count"), (79, 2, "dev/strict")],
)
def test_refused_values_leave_no_trace(make: Callable[..., Any], at: int, value: int, path: str) -> None:
    raw = bytearray(RAW)
    raw[4:12] = bytes(8)
    raw[at if at != 4 else 11] = value
    before = state(make(a=5, flag=True))
    got = loaded(DEVICE, make(a=5, flag=True), bytes(raw))
    assert got == loaded(ONE_BY_ONE, make(a=5, flag=True), bytes(raw))
    if path == "dev/a" and make is not guarded:
        assert got[0] == 1000 + len(raw)
        return
    assert got[0][1] == path
    assert got[1] == before


def test_a_setter_that_refuses_in_the_middle() -> None:
    class Careful(SimpleNamespace):
        @property
        def second(self) -> int:
            return 2

        @second.setter
        def second(self, value: int) -> None:
            raise ValueError(f"{value} is not what I want")

    device = VMStateDescription("dev", fields=[uint8("first"), uint8("second"), uint8("third")])
    obj = Careful(first=1, third=3)
    assert loaded(device, obj, bytes(3))[0] == ("device-state", "dev/second", 1001, "0 is not what I want")
    assert vars(obj) == {"first": 1, "third": 3}


def test_members_that_are_missing() -> None:
    assert saved(DEVICE, {}) == saved(ONE_BY_ONE, {})
    assert saved(DEVICE, SimpleNamespace()) == saved(ONE_BY_ONE, SimpleNamespace())
    given = {"id": 7, "count": 10}
    assert loaded(DEVICE, dict(given), RAW) == loaded(ONE_BY_ONE, dict(given), RAW)
    obj = SimpleNamespace(**given)
    assert loaded(DEVICE, obj, RAW[:-1])[0][0] == "truncated"
    assert vars(obj) == given, "what was made is gone again"


def test_a_failing_channel_is_told_as_it_is() -> None:
    class Broken:
        offset = 5

        def read(self, length: int) -> bytes:
            error = MigrationError("cut")
            error.kind, error.message, error.offset, error.path = "io", "cut", None, ""
            raise error

    with pytest.raises(MigrationError) as caught:
        vmstate.load(DEVICE, values(), Broken(), 1)  # type: ignore[arg-type]
    assert (type(caught.value), caught.value.kind) == (MigrationError, "io")
