"""Loading device state: `python fuzz/python/run.py vmstate`.

Input: a byte that chooses the section, then its payload. The sections are those of machine `e2k` with two CPUs and
every option, of `e2k-qemu`, and of two devices with a field of each family.

Asserted: nothing but a StreamError, with the section's name and a place inside the payload; a device that refused is as
it was; one that accepted saves, and another one loads that and saves the same.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k import StreamError
from qmig_e2k._core import Reader
from qmig_e2k.e2k import build
from qmig_e2k.e2k.full import OPTIONS
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, VmStateHandler, load_section, save_full
from qmig_e2k.testing import filled
from qmig_e2k.vmstate import (
    VMStateDescription,
    array,
    array_of_pointer,
    bitmap,
    bool_strict,
    buffer,
    gtree,
    int32,
    int32_positive_le,
    qtailq,
    struct,
    uint8,
    uint16,
    uint32,
    uint32_equal,
    uint64,
    unused_varray,
    validate,
    varray,
    vbuffer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmig_e2k.savevm import Entry

BASE = 1000
"""Stream offset of the payload: an offset that is lost shows."""
PART = VMStateDescription(
    "part",
    version_id=2,
    minimum_version_id=1,
    fields=[uint16("a"), uint8("b", version=2)],
    subsections=[VMStateDescription("part/more", fields=[uint32("c")], needed=lambda part: part["c"] != 0)],
)


def _part() -> dict[str, int]:
    return {"a": 0, "b": 0, "c": 0}


COUNTED = VMStateDescription(
    "counted",
    fields=[
        int32("n"),
        varray("numbers", uint16, "n"),
        int32("room"),
        vbuffer("bytes", "room", alloc=True),
        int32("bits"),
        bitmap("map", "bits"),
        uint8("holes"),
        unused_varray("holes", 2),
        int32_positive_le("at"),
        validate("order", lambda device, _version: device["at"] <= device["n"]),
    ],
)
NESTED = VMStateDescription(
    "nested",
    version_id=3,
    minimum_version_id=1,
    fields=[
        uint32_equal("model"),
        bool_strict("on"),
        struct("one", PART),
        array("two", PART, 2),
        array_of_pointer("maybe", PART, 3),
        array("words", uint64, 4),
        buffer("raw", 5),
        qtailq("queue", PART, _part),
        gtree("tree", PART, _part),
    ],
    subsections=[VMStateDescription("nested/late", fields=[uint8("late")], needed=lambda device: device["late"] != 0)],
)


def _counted() -> dict[str, Any]:
    return {
        "n": 2,
        "numbers": [1, 2, 0, 0],
        "room": 3,
        "bytes": b"abc",
        "bits": 70,
        "map": [5, 1],
        "holes": 1,
        "at": 2,
    }


def _nested() -> dict[str, Any]:
    return {
        "model": 7,
        "on": True,
        "one": _part(),
        "two": [_part(), _part() | {"a": 5}],
        "maybe": [None, _part(), None],
        "words": np.arange(4, dtype=np.uint64),
        "raw": bytearray(b"12345"),
        "queue": [_part(), _part()],
        "tree": {3: _part()},
        "late": 0,
    }


class _Kind:
    """A section with its handler, another one like it, and how to bring both back to what they were.

    Attributes:
        blank: the payload after that.
    """

    def __init__(self, entry: Entry, other: Entry, reset: Callable[[], None]) -> None:
        self.entry, self.other, self.reset = entry, other, reset
        reset()
        self.blank = _payload(entry)


def _kinds() -> Iterator[_Kind]:
    for kind, options in (("e2k", {"cpus": 2, "model": "e16c", "options": OPTIONS}), ("e2k-qemu", {})):
        both = []
        for _ in range(2):
            registry = Registry(Profile(footers=False))
            build(kind, 1 << 20, **options).register(registry, VirtualClock(), GlobalState(Profile()))
            both.append(registry)
        for entry, twin in zip(*both, strict=True):
            if isinstance(entry.handler, VmStateHandler) and isinstance(twin.handler, VmStateHandler):
                yield _Kind(entry, twin, partial(_reset, entry.handler.obj, twin.handler.obj))
    for description, new in ((COUNTED, _counted), (NESTED, _nested)):
        devices, entries = (new(), new()), []
        for device in devices:
            registry = Registry(Profile(footers=False))
            entries.append(registry.register_description(description, device))
        yield _Kind(entries[0], entries[1], partial(_renew, devices, new))


def _reset(*devices: Any) -> None:
    for device in devices:
        device.reset()


def _renew(devices: tuple[dict[str, Any], ...], new: Callable[[], dict[str, Any]]) -> None:
    for device in devices:
        device.update(new())


def _payload(entry: Entry) -> bytes:
    alone = Registry(Profile(footers=False))
    alone.register(entry.idstr, entry.handler, instance_id=entry.instance_id)
    return save_full(alone).data[14 + len(entry.idstr.encode()) :]


KINDS = list(_kinds())


def check(data: bytes) -> None:
    """Load the section that the first byte chooses."""
    if not data:
        return
    kind, raw = KINDS[data[0] % len(KINDS)], data[1:]
    kind.reset()
    entry = kind.entry
    try:
        load_section(entry, Reader(raw, BASE), entry.handler.version_id)
    except StreamError as error:
        assert error.path.startswith(entry.path), error.path
        assert error.offset is not None, str(error)
        assert BASE <= error.offset <= BASE + len(raw), str(error)
        assert entry.idstr == "globalstate" or _payload(entry) == kind.blank, (
            f"{entry.path} kept part of what it refused"
        )
        return
    after = _payload(entry)
    load_section(kind.other, Reader(after, BASE), kind.other.handler.version_id)
    assert _payload(kind.other) == after, f"{entry.path} saves what loads as something else"


def seeds() -> Iterator[bytes]:
    """Every section as it is after a reset, and with another value in every register."""
    for number, kind in enumerate(KINDS):
        yield bytes([number]) + kind.blank
    nested = Registry(Profile(footers=False))
    yield bytes([len(KINDS) - 1]) + _payload(
        nested.register_description(NESTED, _nested() | {"one": _part() | {"c": 9}, "late": 1})
    )
    machine, registry = filled(build("e2k", 1 << 20, cpus=2, model="e16c", options=OPTIONS)), Registry()
    machine.register(registry, VirtualClock(), GlobalState(Profile()))
    paths = {kind.entry.path: number for number, kind in reversed(list(enumerate(KINDS)))}
    for entry in registry:
        if not entry.handler.live:
            yield bytes([paths[entry.path]]) + _payload(entry)


def close() -> None:
    """Nothing is left."""
