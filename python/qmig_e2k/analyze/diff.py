"""What differs between two streams: devices by field path, RAM by block, commands, configuration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from heapq import merge
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.analyze.model import leaves, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qmig_e2k.analyze.model import Analysis, Body, Device

SCHEMA = "qmig_e2k/analyze-diff/1"
ABSENT = None
PAGE_SIZE = 4096
STEP = 1 << 20
RANGES = 8
"""Ranges of differing pages of a block that are named."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Attributes:
        path: what differs: `cpu/0/regs_lo[3]`, `ram/pc.ram`, `commands[2]`, `configuration/machine`.
        a, b: value in either stream; None: it is not there.
        detail: more: of RAM `pages`, how many differ, and `ranges`, the first of them as [offset, length].
    """

    path: str
    a: Any
    b: Any
    detail: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The JSON object."""
        return {"path": self.path, "a": self.a, "b": self.b} | self.detail


def diff(a: Analysis, b: Analysis) -> list[Difference]:
    """All differences, in the order of a stream. How pages were coded and where things stand is none."""
    return [*_configuration(a, b), *_ram(a, b), *_commands(a, b), *_devices(a, b), *_ends(a, b)]


def record(differences: list[Difference]) -> dict[str, Any]:
    """The JSON record."""
    made = [difference.record() for difference in differences]
    return {"schema": SCHEMA, "equal": not differences, "differences": made}


def _members(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name in [*a, *(name for name in b if name not in a)]:
        if a.get(name, ABSENT) != b.get(name, ABSENT):
            yield Difference(f"{prefix}{name}", a.get(name, ABSENT), b.get(name, ABSENT))


def _configuration(a: Analysis, b: Analysis) -> Iterator[Difference]:
    def said(of: Analysis) -> dict[str, Any]:
        return {name: value for name, value in (of.configuration or {}).items() if name != "offset"}

    yield from _members("configuration/", said(a), said(b))


def _commands(a: Analysis, b: Analysis) -> Iterator[Difference]:
    ours, theirs = (
        [{name: value for name, value in command.items() if name != "offset"} for command in of.commands]
        for of in (a, b)
    )
    for index in range(max(len(ours), len(theirs))):
        one, other = (side[index] if index < len(side) else ABSENT for side in (ours, theirs))
        if one != other:
            yield Difference(f"commands[{index}]", one, other)


def _ends(a: Analysis, b: Analysis) -> Iterator[Difference]:
    ours, theirs = (
        {} if of.error is None else {"error": f"{of.error['kind']} at {of.error['offset']:#x}"} for of in (a, b)
    )
    yield from _members("", ours, theirs)


# ---- devices


def _devices(a: Analysis, b: Analysis) -> Iterator[Difference]:
    ours, theirs = _by_path(a), _by_path(b)
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        one, other = ours.get(path), theirs.get(path)
        if one is None or other is None:
            yield Difference(path, "section" if one else ABSENT, "section" if other else ABSENT)
            continue
        if one.version != other.version:
            yield Difference(f"{path}/version", one.version, other.version)
        yield from _bodies(f"{path}/", one.body, other.body)
    common = [[path for path in side if path in ours and path in theirs] for side in (ours, theirs)]
    if common[0] != common[1]:
        index = next(i for i, (x, y) in enumerate(zip(*common, strict=True)) if x != y)
        yield Difference("order of sections", common[0][index], common[1][index])


def _by_path(of: Analysis) -> dict[str, Device]:
    """Devices by `name/instance`; live sections and repeated ones get their number behind it."""
    count = Counter((device.path, device.kind) for device in of.devices)
    seen: Counter[tuple[str, str]] = Counter()
    made: dict[str, Device] = {}
    for device in of.devices:
        key = (device.path, device.kind)
        kind = "" if device.kind == "full" else f"/{device.kind}"
        made[f"{device.path}{kind}" + (f"#{seen[key]}" if count[key] > 1 else "")] = device
        seen[key] += 1
    return made


def _bodies(prefix: str, a: Body, b: Body) -> Iterator[Difference]:
    ours, theirs = ({path: value for path, _, value in leaves(body)} for body in (a, b))
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        one, other = ours.get(path, ABSENT), theirs.get(path, ABSENT)
        if path in ours and path in theirs:
            yield from _values(f"{prefix}{path}", one, other)
        else:
            yield Difference(f"{prefix}{path}", plain(one), plain(other))


def _values(path: str, a: Any, b: Any) -> Iterator[Difference]:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            if one != other:
                yield Difference(f"{path}[{index}]", one, other)
    elif a != b:
        yield Difference(path, a, b)


# ---- RAM


def _ram(a: Analysis, b: Analysis) -> Iterator[Difference]:
    ours, theirs = ({block.name: index for index, block in enumerate(of.blocks)} for of in (a, b))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        path = f"ram/{name}"
        if name not in ours or name not in theirs:
            yield Difference(path, "block" if name in ours else ABSENT, "block" if name in theirs else ABSENT)
            continue
        one, other = a.blocks[ours[name]], b.blocks[theirs[name]]
        yield from _members(
            f"{path}/",
            {"size": one.size, "page_size": one.page_size, "complete": one.complete},
            {"size": other.size, "page_size": other.page_size, "complete": other.complete},
        )
        if one.sha256 is not None and one.sha256 == other.sha256:
            continue
        length = min(one.size, other.size)
        ranges = _merged(_differing(a, ours[name], b, theirs[name], length))
        if ranges:
            pages = sum(size for _, size in ranges) // PAGE_SIZE
            yield Difference(
                path, one.sha256, other.sha256, {"pages": pages, "ranges": [list(r) for r in ranges[:RANGES]]}
            )


def _differing(a: Analysis, block_a: int, b: Analysis, block_b: int, length: int) -> Iterator[tuple[int, int]]:
    """Differing pages of the first `length` bytes, as (offset, length). Only what came of either is looked at."""
    done = 0
    for start, size in merge(a.ram_runs(block_a), b.ram_runs(block_b)):
        end = min(start + size, length)
        done = max(done, start)
        while done < end:
            step = min(STEP, end - done)
            pages = [
                np.frombuffer(of.read_ram(block, done, step), np.uint8).reshape(-1, PAGE_SIZE)
                for of, block in ((a, block_a), (b, block_b))
            ]
            for page in np.flatnonzero((pages[0] != pages[1]).any(axis=1)):
                yield done + int(page) * PAGE_SIZE, PAGE_SIZE
            done += step


def _merged(ranges: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for start, size in ranges:
        if made and made[-1][0] + made[-1][1] == start:
            made[-1] = (made[-1][0], made[-1][1] + size)
        else:
            made.append((start, size))
    return made
