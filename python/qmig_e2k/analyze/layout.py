"""The layout of a device as a JSON description gives it, and reading a payload by it (spec/stream.md 2.6.1).

The descriptions in streams are advisory and may be hostile: what does not fit refuses the payload, never more.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from qmig_e2k.analyze.model import Body, Field
from qmig_e2k.limits import DEFAULT
from qmig_e2k.vmstate.json import Members
from qmig_e2k.vmstate.kinds import NULL_MARKER
from qmig_e2k.vmstate.refusal import Place, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from qmig_e2k.analyze.cursor import Cursor
    from qmig_e2k.vmstate.json import JsonObject

MAX_DEPTH = 64
NUMBERS_PER_FIELD = 4
"""Numbers of an array that cost as much as a field."""
BYTES_PER_FIELD = 64
"""Bytes of a buffer that cost as much as a field."""
FIELDS_PER_EMPTY = 16
"""Fields that an element costs which takes no bytes: nothing else bounds how many there are."""
SUBSECTION = 0x05

NUMBERS = {
    "int8": "b",
    "uint8": "B",
    "uint8 equal": "B",
    "int16": "h",
    "uint16": "H",
    "uint16 equal": "H",
    "int32": "i",
    "int32 equal": "i",
    "int32 le": "i",
    "uint32": "I",
    "uint32 equal": "I",
    "int64": "q",
    "uint64": "Q",
    "int64 equal": "Q",
    "timer": "q",
}
"""`struct` codes by type name. `int64 equal` is QEMU's name for the unsigned comparison."""
FLOATS = ("float64", "CPU_Double_U")
LISTS = ("qtailq", "qlist")
NESTED = ("vstruct", "tmp", *LISTS, "gtree")
"""Types whose description stands directly in the entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `fields`.

    Attributes:
        name, type, size: as there; the size is that of the first element.
        count: elements that it stands for; None: one that is no array.
        index: number of the element, where each has an entry.
        bodies: nested descriptions.
    """

    name: str
    type: str
    size: int
    count: int | None
    index: int | None
    bodies: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """One description object.

    Attributes:
        name: name of the description.
        version: version that was written.
        fields: in stream order, each with its entries: several where elements of an array have one each.
        subsections: optional parts by the bytes of their name.
    """

    name: str
    version: int
    fields: tuple[tuple[Entry, ...], ...]
    subsections: Mapping[bytes, Layout]


# ---- from JSON


def parse_document(text: bytes) -> JsonObject:
    """The description's text as members in order; ValueError if it is none."""
    try:
        made = json.loads(text.decode("utf-8", "surrogateescape"), object_pairs_hook=Members, strict=False)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(made, Members):
        raise ValueError("no JSON object")  # noqa: TRY004 - the text is wrong, not a type of ours
    return made


def member(of: JsonObject, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """A member of that type; ValueError if it is another, or is absent without a default."""
    for key, value in of.items() if isinstance(of, dict) else of:
        if key == name:
            if not isinstance(value, kind) or isinstance(value, bool):
                break
            return value
    else:
        if default is not ...:
            return default
    raise ValueError(f"member {name!r} is not what it should be")


def parse_device(device: JsonObject) -> Layout:
    """The layout of one element of `devices`; old-style handlers have a single buffer."""
    name = member(device, "vmsd_name", str, None)
    if name is None:
        size = member(device, "size", int)
        if size < 0:
            raise ValueError("a size below 0")
        return Layout(member(device, "name", str), 0, ((Entry("data", "buffer", size, None, None, ()),),), {})
    return parse_layout(device)


def parse_layout(of: JsonObject, depth: int = 0) -> Layout:
    """A description object; ValueError says what is wrong with it."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    name, version = member(of, "vmsd_name", str), member(of, "version", int)
    entries = [_entry(_object(entry), depth) for entry in member(of, "fields", list)]
    parts = [parse_layout(_object(part), depth + 1) for part in member(of, "subsections", list, [])]
    return Layout(
        name,
        version,
        tuple(tuple(group) for _, group in groupby(entries, lambda entry: entry.name)),
        {part.name.encode("utf-8", "surrogateescape"): part for part in parts},
    )


def _object(value: Any) -> JsonObject:
    if not isinstance(value, Members | dict):
        raise ValueError("an object was expected")  # noqa: TRY004 - the text is wrong, not a type of ours
    return value


def _entry(of: JsonObject, depth: int) -> Entry:
    kind = member(of, "type", str)
    size, count = member(of, "size", int), member(of, "array_len", int, None)
    if size < 0 or (count is not None and count < 0):
        raise ValueError("a size or count below 0")
    bodies: Sequence[Layout] = ()
    if kind == "struct":
        nested = _object(member(of, "struct", (Members, dict)))
        bodies = [parse_layout(nested, depth + 1)] if nested else []
    elif kind in NESTED:
        bodies = [parse_layout(part, depth + 1) for part in _repeated(of)]
    return Entry(member(of, "name", str), kind, size, count, member(of, "index", int, None), tuple(bodies))


def _repeated(of: JsonObject) -> Iterator[Members]:
    """The description objects whose members stand one after the other in an entry; each begins with its name."""
    current: Members | None = None
    for key, value in of.items() if isinstance(of, dict) else of:
        if key == "vmsd_name":
            if current is not None:
                yield current
            current = Members()
        if current is not None and key != "size":
            current.append((key, value))
    if current is not None:
        yield current


# ---- reading


class Budget:
    """How many fields may still be read by all who share it."""

    __slots__ = ("_left", "most")

    def __init__(self, most: int = DEFAULT.fields) -> None:
        """`most` of them."""
        self._left = self.most = most

    def spend(self, count: int) -> bool:
        """Take `count` fields off, if there are as many; whether there were."""
        if count > self._left:
            return False
        self._left -= count
        return True


class Decoder:
    """Reads one payload. What was read before a refusal is in `body`."""

    def __init__(self, cursor: Cursor, layout: Layout, version: int, budget: Budget | None = None) -> None:
        """`version` is that of the section header; `budget` is shared with the other sections of a stream."""
        self.cursor = cursor
        self.layout = layout
        self.body = Body(layout.name, version)
        self._budget = budget or Budget()

    def run(self) -> None:
        """Read it all; Refusal with offset and path where it does not fit."""
        self._fill(self.layout, self.body)

    def _spend(self, count: int) -> None:
        if not self._budget.spend(count):
            raise Refusal(f"more than {self._budget.most} fields in all sections", self.cursor.offset, "limit-exceeded")

    def _fill(self, layout: Layout, body: Body) -> None:
        for entries in layout.fields:
            self._spend(len(entries))
            name = entries[0].name
            item = Field(name, entries[0].type, self.cursor.offset)
            body.fields.append(item)
            try:
                with Place(name, self.cursor.offset):
                    self._read(entries, item)
            except Refusal:
                if item.value is None:
                    body.fields.pop()
                raise
            finally:
                item.size = self.cursor.offset - item.offset
        self._subsections(layout, body)

    def _read(self, entries: Sequence[Entry], item: Field) -> None:
        """A field: one value, or the elements of an array, with one entry for all, for each, or for each run."""
        if len(entries) == 1 and entries[0].count is None and entries[0].index is None:
            self._one(entries[0], lambda value: setattr(item, "value", value))
            return
        counts = [1 if entry.count is None else entry.count for entry in entries]
        # an array of pointers that begins with one that is not null counts the runs behind, too
        counts[0] = max(counts[0] - sum(counts[1:]), 1) if counts[0] > 1 else counts[0]
        values: list[Any] = []
        item.value = values
        for entry, count in zip(entries, counts, strict=True):
            self._some(entry, count, values)

    def _some(self, entry: Entry, count: int, values: list[Any]) -> None:
        code = NUMBERS.get(entry.type)
        if code is not None and entry.size == struct.calcsize(f">{code}"):
            raw = self._take(count * entry.size)
            self._spend(count // NUMBERS_PER_FIELD)
            values += struct.unpack(f">{count}{code}", raw)
            return
        if not entry.size:
            self._spend(count * FIELDS_PER_EMPTY)
        elif 1 < count > self.cursor.left:
            raise Refusal(f"{count} elements, more than the stream has", self.cursor.offset, "truncated")
        for _ in range(count):
            with Place(len(values), self.cursor.offset):
                self._one(entry, values.append)

    def _take(self, length: int) -> bytes:
        """The next bytes, paid for. That the stream is too short for them says more than that they are too many."""
        if length <= self.cursor.left:
            self._spend(length // BYTES_PER_FIELD)
        return self.cursor.take(length)

    def _one(self, entry: Entry, keep: Callable[[Any], None]) -> None:
        """One element, kept as early as there is something to keep: what follows may be cut off."""
        self._spend(1)
        if entry.type in LISTS:
            self._list(entry, keep)
        elif entry.type == "gtree":
            self._tree(entry, keep)
        elif entry.type in {"struct", "vstruct", "tmp"} and entry.bodies:
            self._nested(entry.bodies[0], keep)
        else:
            keep(self._plain(entry))

    def _plain(self, entry: Entry) -> Any:
        kind, size = entry.type, entry.size
        if kind == "capability":
            raw = self.cursor.take(1)
            return self.cursor.take(raw[0]).decode("utf-8", "backslashreplace")
        raw = self._take(size)
        code = NUMBERS.get(kind)
        if code is not None and size == struct.calcsize(f">{code}"):
            return struct.unpack(f">{code}", raw)[0]
        if kind == "bool" and size == 1:
            return raw != b"\0"
        if raw == bytes([NULL_MARKER]) and kind in {"nullptr", "struct", "uint64"}:
            return None
        if kind in {"nullptr", "struct"}:
            raise Refusal(
                f"{raw.hex()} where a null pointer's mark {NULL_MARKER:#x} should be", self.cursor.offset - size
            )
        if kind in FLOATS and size == 8:
            value = struct.unpack(">d", raw)[0]
            return value if value - value == 0 else f"0x{raw.hex()}"
        if kind == "bitmap" and size % 8 == 0:
            return list(struct.unpack(f">{size // 8}Q", raw))
        return raw.hex()

    def _nested(self, layout: Layout, keep: Callable[[Body], None]) -> None:
        body = Body(layout.name, layout.version)
        keep(body)
        self._fill(layout, body)

    def _list(self, entry: Entry, keep: Callable[[Any], None]) -> None:
        made: list[Body] = []
        keep(made)
        while self.cursor.take(1) != b"\0":
            if len(made) == len(entry.bodies):
                raise Refusal(f"more than the {len(made)} elements described", self.cursor.offset - 1)
            with Place(len(made)):
                self._nested(entry.bodies[len(made)], made.append)
        if len(made) != len(entry.bodies):
            raise Refusal(f"{len(made)} elements, {len(entry.bodies)} are described", self.cursor.offset - 1)

    def _tree(self, entry: Entry, keep: Callable[[Any], None]) -> None:
        made: list[Body] = []
        keep(made)
        (count,) = struct.unpack(">I", self.cursor.take(4))
        # keys have descriptions of their own, or are plain numbers and have none
        bodies = iter(entry.bodies)
        kinds = ["struct", "struct"] if len(entry.bodies) == 2 * count else ["uint64", "struct"]
        while self.cursor.take(1) != b"\0":
            if len(made) == count:
                raise Refusal(f"more than the {count} nodes announced", self.cursor.offset - 1)
            self._spend(1)
            node = Body("node", 0)
            made.append(node)
            with Place(len(made) - 1):
                for name, kind in zip(("key", "value"), kinds, strict=True):
                    item = Field(name, kind, self.cursor.offset)
                    node.fields.append(item)
                    self._part_of_node(item, bodies)
                    item.size = self.cursor.offset - item.offset
        if len(made) != count:
            raise Refusal(f"{len(made)} nodes, {count} are announced", self.cursor.offset - 1)

    def _part_of_node(self, item: Field, bodies: Iterator[Layout]) -> None:
        if item.type == "uint64":
            (item.value,) = struct.unpack(">Q", self.cursor.take(8))
            return
        layout = next(bodies, None)
        if layout is None:
            raise Refusal("a node without a description", item.offset)
        self._nested(layout, lambda value: setattr(item, "value", value))

    def _subsections(self, layout: Layout, body: Body) -> None:
        while layout.subsections:
            head = self.cursor.peek(2)
            if len(head) < 2 or head[0] != SUBSECTION:
                return
            part = layout.subsections.get(self.cursor.peek(2 + head[1])[2:])
            if part is None:
                return
            with Place(part.name, self.cursor.offset):
                self.cursor.take(2 + head[1])
                (version,) = struct.unpack(">I", self.cursor.take(4))
                made = Body(part.name, version)
                body.subsections.append(made)
                self._spend(1)
                self._fill(part, made)
