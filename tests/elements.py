"""Takes a stream apart, knowing nothing of the code under test: page records on one side, all other bytes on the other.

Only for whole streams with footers, whose device payloads do not contain their own footer (spec/stream.md 1, 2, 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

PAGE = 4096
ZERO, MEM_SIZE, RAW, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
START, PART, END, FULL, FOOTER = 0x01, 0x02, 0x03, 0x04, 0x7E


class Record(NamedTuple):
    """One page record; `named`: the block's name stands in it, else CONTINUE is set."""

    block: bytes
    offset: int
    zero: bool
    named: bool
    data: bytes


class Element(NamedTuple):
    """One top-level element without its page records. `offset`: where it begins in the stream; `name`: for people."""

    name: str
    offset: int
    data: bytes


@dataclass
class Parts:
    """A stream taken apart.

    Attributes:
        elements: in order; of equal neighbours (PARTs, once their pages are out) only the first.
        records: page records in order.
        blocks: name to length of every RAM block.
    """

    elements: list[Element] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    blocks: dict[bytes, int] = field(default_factory=dict)

    def element(self, name: str) -> Element:
        """The element of that name."""
        return next(element for element in self.elements if element.name == name)

    def memory(self, block: bytes) -> bytes:
        """The content that the records give `block`."""
        made = bytearray(self.blocks[block])
        for record in self.records:
            if record.block == block:
                made[record.offset : record.offset + PAGE] = record.data * PAGE if record.zero else record.data
        return bytes(made)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        assert self.at + length <= len(self.data), f"the stream ends inside {length} bytes at {self.at:#x}"
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def text(self) -> bytes:
        return self.take(self.number(1))


def take_apart(stream: bytes) -> Parts:
    """Every element of `stream`."""
    reader, parts = _Reader(stream), Parts()

    def add(name: str, begin: int, data: bytes | None = None) -> None:
        made = Element(name, begin, stream[begin : reader.at] if data is None else data)
        if not parts.elements or parts.elements[-1].data != made.data:
            parts.elements.append(made)

    reader.take(8)
    add("header", 0)
    reader.take(1)
    reader.take(reader.number(4))
    add("configuration", 8)
    names: dict[int, bytes] = {}
    while True:
        begin = reader.at
        kind = reader.number(1)
        if kind == 0x00:
            add("end", begin)
            break
        if kind == 0x08:
            reader.take(2)
            reader.take(reader.number(2))
            add("command", begin)
            continue
        assert START <= kind <= FULL, f"element {kind:#x} at {begin:#x}"
        number = reader.number(4)
        if kind in (START, FULL):
            names[number] = reader.text()
            reader.take(8)
        if kind == FULL:
            reader.at = stream.index(bytes([FOOTER]) + number.to_bytes(4, "big"), reader.at) + 5
            add(names[number].decode(), begin)
        else:
            rest = stream[begin : reader.at] + _ram(reader, parts)
            rest += reader.take(5)
            assert rest.endswith(bytes([FOOTER]) + number.to_bytes(4, "big"))
            add({START: "start", PART: "part", END: "last"}[kind], begin, rest)
    begin = reader.at
    assert reader.number(1) == 0x06
    reader.take(reader.number(4))
    add("description", begin)
    assert reader.at == len(stream), "bytes behind the description"
    return parts


def _ram(reader: _Reader, parts: Parts) -> bytes:
    """One RAM payload; returns what is no page record."""
    rest = b""
    while True:
        begin = reader.at
        word = reader.number(8)
        offset, flags = word & ~(PAGE - 1), word & (PAGE - 1)
        if flags == MEM_SIZE:
            total = 0
            while total < offset:
                name = reader.text()
                parts.blocks[name] = reader.number(8)
                total += parts.blocks[name]
            assert total == offset
        elif flags == EOS:
            return rest + reader.data[begin : reader.at]
        else:
            assert flags & ~CONTINUE in (ZERO, RAW), f"record {word:#x} at {begin:#x}"
            named = not flags & CONTINUE
            block = reader.text() if named else parts.records[-1].block
            zero = bool(flags & ZERO)
            parts.records.append(Record(block, offset, zero, named, reader.take(1 if zero else PAGE)))
            continue
        rest += reader.data[begin : reader.at]
