"""What device state costs during the downtime: machine `e2k` with 8 CPUs, saved with its description."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k import build
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, save_full

if TYPE_CHECKING:
    from collections.abc import Callable

CPUS = 8


def run(runs: int, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Measure; `runs` counted saves times 20."""
    profile = Profile()
    registry = Registry(profile)
    build("e2k", 128 << 20, cpus=CPUS).register(registry, VirtualClock(), GlobalState(profile))
    times = []
    for _ in range(20 * runs + 1):
        begun = time.perf_counter()
        saved = save_full(registry)
        times.append((time.perf_counter() - begun) * 1e6)
    median = statistics.median(times[1:])
    say(f"{len(saved.data)} bytes of device state")
    return [
        {
            "name": f"device state of e2k with {CPUS} CPUs, saved",
            "unit": "us",
            "ours": median,
            "reference": None,
            "reference_name": None,
            "ratio": None,
            "runs": {"ours": times[1:], "reference": []},
        }
    ]
