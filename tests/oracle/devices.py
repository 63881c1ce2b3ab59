"""Payloads of devices for the oracle: a few layouts by heart, and any other by the stream's own description.

Fields are raw bytes here; what they mean is no matter of framing (spec/stream.md 2.6, 3.3 to 3.6).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from oracle.source import Source

SUBSECTION = 5
LINES_MAX = 256
LISTS = {"qtailq", "qlist", "gtree"}
"""Fields whose entry has the members of every element (2.6.1), and their size: they are read by that."""


def subsection(source: Source, owner: bytes, *, only: bool = False) -> bytes | None:
    """3.6, steps 1 to 4: the name of a subsection of `owner` that comes next; nothing is consumed.

    Args:
        only: a 5 can be nothing else here, so a stream that ends inside the name is cut off.
    """
    head = source.peek(2 + 255)
    if not head or head[0] != SUBSECTION:
        return None
    if len(head) == 1 or (head[1] > len(owner) and len(head) < 2 + head[1]):
        if only:
            raise source.refused("truncated", source.at)
        return None
    name = head[2 : 2 + head[1]]
    return name if len(name) > len(owner) and name.startswith(owner) else None


Known = dict[bytes, "tuple[int, Callable[[], None]]"]
"""Subsections by name: version, and what consumes the payload and what belongs to it."""


def subsections(source: Source, owner: bytes, known: Known, outer: Sequence[Known] = (), *, only: bool = False) -> None:
    """All subsections of `owner` that come.

    Args:
        outer: those of the descriptions around it. A name that stands there is none of `owner`'s, though it may begin
            so: `cpu/aau_prefetch` behind `cpu/aau` (spec/e2k-machine.md 2), which 3.6 warns of.
    """
    seen = set()
    while (name := subsection(source, owner, only=only)) is not None:
        at = source.at
        if name not in known and any(name in others for others in outer):
            return
        if name not in known or name in seen:
            raise source.refused("device-state", at)
        seen.add(name)
        source.raw(2 + len(name))
        version, consume = known[name]
        at = source.at
        if source.number(4) != version:
            raise source.refused("bad-version", at)
        consume()


def by_heart(source: Source, idstr: bytes, instance: int, version: int) -> None:
    """Machine `none`, and the public qemu-system-e2k. `instance` is any: buses repeat."""
    versions = {b"timer": 2, b"globalstate": 1, b"cpu_common": 1, b"PCIHost": 1, b"PCIBUS": 1, b"escc": 2}
    name = idstr.rsplit(b"/")[-1]
    if version != versions[name]:
        raise KeyError(idstr)
    known: Known = {}
    if name == b"PCIBUS":
        at = source.at
        lines = source.number(4)
        if lines > LINES_MAX:
            raise source.refused("limit-exceeded", at)
        if lines * 4 > source.left():
            raise source.refused("truncated", at + 4)
        source.raw(lines * 4)
    else:
        fields = {b"timer": (8, 8, 8), b"globalstate": (4, 100), b"cpu_common": (4, 4), b"PCIHost": (4,)}
        for size in fields.get(name, (116,)):
            source.raw(size)
        if name == b"cpu_common":
            known |= {
                part: (1, partial(_plain, source, part, size, known))
                for part, size in ((b"cpu_common/exception_index", 4), (b"cpu_common/crash_occurred", 1))
            }
    subsections(source, name, known, only=True)


def _plain(source: Source, name: bytes, size: int, outer: Known) -> None:
    """A subsection of one field."""
    source.raw(size)
    subsections(source, name, {}, [outer], only=True)


class Leaf(NamedTuple):
    """A field that was read: its path, where it stands, how long it is."""

    path: str
    offset: int
    size: int


class Described:
    """Payloads as the description at the stream's end has them (2.6.1)."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.waiting: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for device in document["devices"]:
            self.waiting.setdefault((device["name"], device["instance_id"]), []).append(device)
        self.leaves: list[list[Leaf]] = []

    def __call__(self, source: Source, idstr: bytes, instance: int, version: int) -> None:
        """Consume one payload."""
        layouts = self.waiting.get((idstr.decode("latin-1"), instance))
        if not layouts:
            raise KeyError(idstr)
        layout = layouts.pop(0)
        self.leaves.append([])
        if "vmsd_name" not in layout:
            self._leaf(source, "data", layout["size"])
            return
        if version != layout["version"]:
            raise source.refused("bad-version", source.at - 4)
        self._description(source, layout, "")

    def _leaf(self, source: Source, path: str, size: int) -> None:
        self.leaves[-1].append(Leaf(path, source.at, size))
        source.raw(size)

    def _description(self, source: Source, layout: dict[str, Any], path: str, outer: tuple[Known, ...] = ()) -> None:
        for entry in layout["fields"]:
            name = path + entry["name"] + (f"[{entry['index']}]" if "index" in entry else "")
            count = entry.get("array_len", 1)
            for number in range(count):
                one = f"{name}[{number}]" if "array_len" in entry else name
                if entry["type"] == "struct":
                    self._description(source, entry["struct"], f"{one}/", outer)
                elif "vmsd_name" in entry and entry["type"] not in LISTS:
                    self._description(source, entry, f"{one}/", outer)
                else:
                    self._leaf(source, one, entry["size"])
        known: Known = {}
        for part in layout.get("subsections", ()):
            consume = partial(self._description, source, part, f"{path}{part['vmsd_name']}/", (*outer, known))
            known[part["vmsd_name"].encode()] = part["version"], consume
        subsections(source, layout["vmsd_name"].encode(), known, outer)
