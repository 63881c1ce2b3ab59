"""Sections of live handlers other than RAM whose payload says itself where it ends (spec/stream.md 10.4, 10.5, 16.1).

What they hold is only summed up: it is contents of disks, not state of devices.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

from qmig_e2k.analyze.model import Body, Field
from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.analyze.cursor import Cursor
    from qmig_e2k.analyze.layout import Budget

CHUNK = 1 << 20
MOST_BITS = 10240
FIELDS_PER_RECORD = 8
"""Fields that cost as much as a record of a bitmap."""
BITS_PER_FIELD = 128
"""Hex digits of a bitmap that cost as much as a field."""


def _put(body: Body, cursor: Cursor, **values: Any) -> None:
    body.fields += [Field(name, "summary", cursor.offset, 0, value) for name, value in values.items()]


def _name(cursor: Cursor) -> str:
    return cursor.take(cursor.take(1)[0]).decode("utf-8", "backslashreplace")


def read_block(cursor: Cursor, body: Body, _kind: str, budget: Budget) -> None:
    """Chunks of disks."""
    chunks: Counter[str] = Counter()
    zero: Counter[str] = Counter()
    progress: int | None = None
    while True:
        at = cursor.offset
        (word,) = struct.unpack(">Q", cursor.take(8))
        flags, sector = word & 0x1FF, word >> 9
        if flags & 0x01:
            name = _name(cursor)
            if name not in chunks and name not in zero and not budget.spend(1):
                raise Refusal("more disks than anybody has", at, "limit-exceeded")
            (zero if flags & 0x08 else chunks)[name] += 1
            if not flags & 0x08:
                _pass(cursor, CHUNK)
        elif flags & 0x04:
            progress = sector
        elif not flags & 0x02:
            raise Refusal(f"record {word:#x} has flags {flags:#x}, which is none of a disk's", at, "bad-flags")
        if flags & 0x02:
            break
    _put(body, cursor, chunks=dict(chunks), zero_chunks=dict(zero))
    if progress is not None:
        _put(body, cursor, progress=progress)


def read_dirty_bitmap(cursor: Cursor, body: Body, _kind: str, budget: Budget) -> None:
    """Dirty bitmaps of disks."""
    records: list[dict[str, Any]] = []
    further = 0
    while True:
        at = cursor.offset
        flags = cursor.take(1)[0]
        if flags & 0x80:
            raise Refusal(f"flags {flags:#x} announce a wider word, which nobody uses", at, "bad-flags")
        record: dict[str, Any] = {}
        if flags & 0x08:
            record["node"] = _name(cursor)
        if flags & 0x04:
            record["bitmap"] = _name(cursor)
        if flags & 0x10:
            record["granularity"], record["flags"] = struct.unpack(">IB", cursor.take(5))
        elif flags & 0x20:
            record["complete"] = True
        elif flags & 0x40:
            record["sector"], record["sectors"] = struct.unpack(">QI", cursor.take(12))
            if not flags & 0x02:
                at = cursor.offset
                (size,) = struct.unpack(">Q", cursor.take(8))
                if size > MOST_BITS:
                    raise Refusal(f"{size} bytes of bitmap, {MOST_BITS} are possible", at, "limit-exceeded")
                record["bits"] = cursor.take(size).hex()
        if record:
            if budget.spend(FIELDS_PER_RECORD + len(record.get("bits", "")) // BITS_PER_FIELD):
                records.append(record)
            else:
                further += 1
        if flags & 0x01:
            break
        if not record:
            raise Refusal(f"flags {flags:#x} say nothing", at, "bad-flags")
    _put(body, cursor, records=records)
    if further:
        _put(body, cursor, further_records=further)


def read_htab(cursor: Cursor, body: Body, kind: str, _budget: Budget) -> None:
    """The page table of a pseries machine."""
    (word,) = struct.unpack(">I", cursor.take(4))
    if kind == "start":
        _put(body, cursor, log2_size=word)
        return
    valid = invalid = 0
    while True:
        _, used, unused = struct.unpack(">IHH", cursor.take(8))
        if not used and not unused:
            break
        _pass(cursor, used * 16)
        valid += used
        invalid += unused
    _put(body, cursor, valid=valid, invalid=invalid)


def _pass(cursor: Cursor, length: int) -> None:
    cursor.take(length)


READERS: dict[str, Callable[[Cursor, Body, str, Budget], None]] = {
    "block": read_block,
    "dirty-bitmap": read_dirty_bitmap,
    "spapr/htab": read_htab,
}
"""By idstr."""
