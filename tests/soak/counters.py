"""What a process holds, as the kernel counts it; and whether that stays as it is from trip to trip.

A process holds more while its machine runs than while it waits for one, so the two roles are looked at apart. The first
quarter of the samples is the warm-up: caches fill, allocators take their arenas. Then the second quarter is compared
with the last. What was held at least in either must be the same: a leak lifts that too, and what a trip has not let go
of yet when it is counted does not. Own memory is compared by its median, and may grow by `MEMORY_MAY_GROW`.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

MEMORY_MAY_GROW = 4 << 20
"""Bytes: an arena more; a leak of a page table or of a cache is more than that."""
ENOUGH = 60
"""Samples: fewer do not see every way of travelling in each quarter."""
WARM = 500
"""Samples before anything is said of memory: each thread that ever was gets an arena sooner or later, and fills it."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at one moment; `memory` is its own in bytes, guest RAM (a memfd) not among it."""

    descriptors: int
    threads: int
    mappings: int
    memory: int


def held(pid: int) -> Held:
    """The counters of process `pid`. Raises OSError if it is gone."""
    here = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (here / "status").read_text().splitlines())
    return Held(
        descriptors=sum(1 for _ in (here / "fd").iterdir()),
        threads=int(status["Threads"]),
        mappings=(here / "maps").read_text().count("\n"),
        memory=int(status["RssAnon"].split()[0]) << 10,
    )


class Series:
    """The samples of one process in one role."""

    def __init__(self) -> None:
        self.samples: list[Held] = []

    def growth(self) -> list[str]:
        """What grew, in words; empty: all is flat, or there are not `ENOUGH` samples."""
        if len(self.samples) < ENOUGH:
            return []
        found = []
        for name in ("descriptors", "threads"):
            before, now = (min(getattr(each, name) for each in part) for part in self._quarters())
            if now > before:
                found.append(f"{name} from {before} to {now}")
        before, now = self._medians()
        if len(self.samples) >= WARM and now - before > MEMORY_MAY_GROW:
            found.append(f"memory from {before >> 10} KiB to {now >> 10} KiB")
        return found

    def _quarters(self) -> tuple[list[Held], list[Held]]:
        length = max(len(self.samples) // 4, 1)
        return self.samples[length : 2 * length] or self.samples, self.samples[-length:]

    def _medians(self) -> tuple[int, int]:
        second, last = (int(statistics.median(each.memory for each in part)) for part in self._quarters())
        return second, last

    def record(self) -> dict[str, object]:
        """For the report: the first, the least, the most and the last of each counter."""
        if not self.samples:
            return {"samples": 0}
        before, now = self._medians()
        rows = [asdict(each) for each in self.samples]
        figures = {
            name: {
                "first": rows[0][name],
                "least": min(row[name] for row in rows),
                "most": max(row[name] for row in rows),
                "last": rows[-1][name],
            }
            for name in rows[0]
        }
        return {"samples": len(rows), **figures, "memory_medians": {"second_quarter": before, "last_quarter": now}}
