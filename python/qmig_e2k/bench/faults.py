"""What a fault of postcopy costs: beside a bare loop with the same threads and channels, and beside QEMU.

One vCPU thread reads each page of RAM once, back to back, in an order that the seed makes, while the background sends
all of it. The latency is taken in that thread, from before the touch to after it. How many touches come before their
page is up to the machine: further runs are added until so many have asked that their percentiles mean something.
QEMU's `-M none` has no CPU: there `pmemsave` touches, and the price of the same command on memory that is there is
taken off. Its mean is so much larger that a few runs of it will do. Percentiles are those of all counted runs together.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench import host
from qmig_e2k.bench.postcopy import DEADLINE_S, begin, random_file, switch, whole
from qmig_e2k.bench.precopy import running
from qmig_e2k.bench.result import median_row
from qmig_e2k.lab.faults import Experiment
from qmig_e2k.lab.faults import run as experiment

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.monitor.client import QmpClient

__all__ = ["MODES", "run"]

MODES = {"preempt": True, "one channel": False}
"""The name of each way, and whether requested pages have a channel of their own."""
TOUCHES = 20_000
"""Of QEMU's memory, at most."""
FEW = 2
"""Runs that are enough where nothing is close: of QEMU, and of the memory of 4 GiB."""
ENOUGH, OF = 10_000, 1 << 30
"""Requests of all runs together without which they say little, and bytes of memory that can have so many."""
MORE = 2
"""Runs are added until there are enough requests, at most so many times those that were asked for."""
FLAT = (256 << 20, 4 << 30)

Phases = dict[str, Any]
Results = list[dict[str, Any]]
Buckets = list[list[int]]
"""Of a histogram of times in ns: least value, how many values wide, count."""


@dataclass
class Seen:
    """One run: times in us, `rate` of the whole memory in GiB/s."""

    mean: float
    requests: int
    p50: float = 0.0
    p99: float = 0.0
    rate: float = 0.0
    buckets: Buckets = field(default_factory=list)


def run(
    runs: int, size: int, programs: Path, say: Callable[[str], None] = lambda _: None, *, qemu: str | None = None
) -> tuple[Results, Phases]:
    """Measure all cases.

    Args:
        runs: Counted runs of each program and mode; one more of each is dropped.
        size: Bytes of RAM, a multiple of 4096.
        programs: Directory of the bare programs.
        say: Called with a line of text per run.
        qemu: The reference's program, if there is one.

    Returns:
        The results, and the phases of the last run of ours in each mode.

    Raises:
        LabError: an experiment came to nothing.
        subprocess.CalledProcessError: a bare program failed.
    """
    results: Results = []
    phases: Phases = {}
    if qemu is None:
        say("no qemu-system-x86_64 on PATH: ours and the bare loop")
    with tempfile.TemporaryDirectory(prefix="qmig-bench-") as name:
        content = Path(name) / "content"
        random_file(content, size)
        for mode, preempt in MODES.items():
            found: dict[str, list[Seen]] = {"ours": [], "bare": [], "qemu": []}
            number = 0
            while number <= runs or (number <= runs * (1 + MORE) and _too_few(found["ours"][1:], size)):
                # Who comes second gets the memory that the first has just given back: each in turn.
                for who in ("ours", "bare") if number % 2 else ("bare", "ours"):
                    host.warm(max(3 * size >> 30, 1))
                    if who == "bare":
                        found["bare"].append(_bare(programs / "bare_faults", size, preempt, number))
                    else:
                        record = experiment(Experiment(size, faults=0, preempt=preempt, background=True, seed=number))
                        phases |= {f"{name}, {mode}": seen for name, seen in record["phases"].items()}
                        found["ours"].append(_seen(record["phases"]["touch"], record["result"]))
                if qemu is not None and 1 <= number <= FEW:
                    found["qemu"].append(_qemu(qemu, content, size, preempt, number))
                say(_words(mode, number, found))
                number += 1
            results += _rows(mode, size, found["ours"][1:], found["bare"][1:], found["qemu"])
        results += _floor(programs / "fault_floor", runs, say)
        results += _flat(min(runs, FEW), size, say)
        results += whole(runs, content, say)
    results += switch(runs, size, say)
    return results, phases


def _words(mode: str, number: int, found: dict[str, list[Seen]]) -> str:
    """A line about the last run of each."""
    ours, bare = found["ours"][-1], found["bare"][-1]
    words = [f"p50 / p99 us ours {ours.p50:.0f} / {ours.p99:.0f}, bare {bare.p50:.0f} / {bare.p99:.0f}"]
    words.append(f"{ours.requests} requests, mean {ours.mean:.0f}")
    if found["qemu"] and number <= FEW:
        words[-1] += f", QEMU {found['qemu'][-1].mean:.0f}"
    return f"{mode}, run {number}{' (dropped)' if number == 0 else ''}: {'; '.join(words)}"


def _rows(mode: str, size: int, ours: list[Seen], bare: list[Seen], theirs: list[Seen]) -> Results:
    def row(
        name: str, unit: str, figure: Callable[[Seen], float], reference: list[Seen], beside: str
    ) -> dict[str, Any]:
        return median_row(f"{name}, {mode}", unit, [*map(figure, ours)], [*map(figure, reference)], beside)

    rows = [
        _asked(
            _together(row("fault p50", "us", lambda seen: seen.p50, bare, "bare loop"), 500, ours, bare), ours, size
        ),
        _asked(
            _together(row("fault p99", "us", lambda seen: seen.p99, bare, "bare loop"), 990, ours, bare), ours, size
        ),
        row("all memory", "GiB/s", lambda seen: seen.rate, bare, "bare loop"),
        row("requests", "", lambda seen: seen.requests, bare, "bare loop"),
    ]
    if theirs:
        rows.append(row("fault mean", "us", lambda seen: seen.mean, theirs, "QEMU"))
    return rows


def _seen(touch: dict[str, Any], result: dict[str, Any]) -> Seen:
    if result["wrong"]:
        raise RuntimeError(f"{result['wrong']} pages were wrong")
    times = (touch[name] / 1000 for name in ("mean_ns", "p50_ns", "p99_ns"))
    mean, p50, p99 = times
    return Seen(mean, result["requests"], p50, p99, result["gib_per_second"], touch["buckets"])


def _together(result: dict[str, Any], per_mille: int, ours: list[Seen], bare: list[Seen]) -> dict[str, Any]:
    """The row, with the percentile of all faults of all runs in place of the median of the runs' percentiles."""
    here, there = (
        _percentile([bucket for seen in runs for bucket in seen.buckets], per_mille) for runs in (ours, bare)
    )
    return {**result, "ours": here, "reference": there, "ratio": here / there}


def _percentile(buckets: Buckets, per_mille: int) -> float:
    """Us that `per_mille` of a thousand do not exceed: the middle of their bucket."""
    left = math.ceil(sum(count for _, _, count in buckets) * per_mille / 1000)
    for least, width, count in sorted(buckets):
        left -= count
        if left <= 0:
            return (least + width // 2) / 1000
    raise ValueError("no page was waited for")


def _json(program: Path, *words: object) -> dict[str, Any]:
    printed = subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    ).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def _bare(program: Path, size: int, preempt: bool, seed: int) -> Seen:
    found = _json(program, "--size", size, "--channels", 2 if preempt else 1, "--seed", seed)
    return _seen(found["faults"], {**found, "gib_per_second": size / 2**30 / found["seconds"]})


def _qemu(program: str, content: Path, size: int, preempt: bool, seed: int) -> Seen:
    """The mean of what was asked for; no other figure can be had from outside."""
    host.warm(max(3 * size >> 30, 1))
    with tempfile.TemporaryDirectory(prefix="qmig-bench-") as name, ExitStack() as stack:
        memory = ["-M", "none", "-m", f"{size >> 20}M"]
        sides = {
            "source": [*memory, "-device", f"loader,file={content},addr=0,force-raw=on"],
            "destination": [*memory, "-incoming", "defer"],
        }
        (source, _), (destination, _) = (
            stack.enter_context(running(program, words, Path(name), side)) for side, words in sides.items()
        )
        begin(source, destination, preempt)
        pages = list(range(0, size, 4096))
        random.Random(seed).shuffle(pages)  # noqa: S311  no secret
        spent, touched = 0.0, 0
        for page in pages[:TOUCHES]:
            spent += _touch(destination, page)
            touched += 1
            if _completed(source):
                break
        else:
            source.wait_event("MIGRATION", DEADLINE_S, status="completed")
        # The same commands, now that all memory is there.
        floor = statistics.median(_touch(destination, page) for page in pages[: min(touched, 500)])
        requests = source.execute("query-migrate")["ram"]["postcopy-requests"]
    return Seen((spent - touched * floor) / max(requests, 1) * 1e6, requests)


def _touch(destination: QmpClient, page: int) -> float:
    begun = time.perf_counter()
    destination.execute("pmemsave", val=page, size=1, filename=os.devnull)
    return time.perf_counter() - begun


def _completed(side: QmpClient) -> bool:
    while (event := side.event()) is not None:
        if event["event"] == "MIGRATION" and event["data"]["status"] == "completed":
            return True
    return False


def _floor(program: Path, runs: int, say: Callable[[str], None]) -> Results:
    """Without a network: ours and the bare loop in turn, both in that program."""
    found = _json(program, "--runs", runs)
    say(f"local floor: {json.dumps(found)}")
    ours, bare, record = found["ours"], found["bare"], found["record"]
    return [
        median_row("local floor p50", "us", [ours["p50_ns"] / 1000], [bare["p50_ns"] / 1000], "bare loop"),
        median_row("local floor p99", "us", [ours["p99_ns"] / 1000], [bare["p99_ns"] / 1000], "bare loop"),
        median_row("record of a fault", "us", [record["ns"] / 1000], [ours["p50_ns"] / 1000], "local fault"),
    ]


def _flat(runs: int, size: int, say: Callable[[str], None]) -> Results:
    """The median of a fault in much memory and in little; needs both sides' at once."""
    wanted = 9 << 30
    if size < 1 << 30 or (free := host.available()) < wanted:
        why = "less than 1 GiB was asked for" if size < 1 << 30 else f"{free >> 30} GiB are free"
        say(f"skipped: p50 at 4 GiB beside 256 MiB, which takes {wanted >> 30} GiB of memory; {why}")
        return []
    medians: list[list[float]] = [[], []]
    for _ in range(runs):
        for ram, into in zip(FLAT, medians, strict=True):
            host.warm((ram >> 30) + 1)  # the source's, and enough of the destination's
            record = experiment(Experiment(ram, preempt=True))
            into.append(record["phases"]["touch"]["p50_ns"] / 1000)
    return [median_row("fault p50, 4 GiB, no background", "us", medians[1], medians[0], "256 MiB")]


def _too_few(ours: list[Seen], size: int) -> bool:
    return size >= OF and sum(seen.requests for seen in ours) < ENOUGH


def _asked(result: dict[str, Any], ours: list[Seen], size: int) -> dict[str, Any]:
    """The row with the requests of its runs, and a word for people where they are too few."""
    requests = [seen.requests for seen in ours]
    note = f"of all {sum(requests)} requests in {len(requests)} runs"
    if _too_few(ours, size):
        note += f", TOO FEW: {ENOUGH} are wanted"
    return {**result, "runs": {**result["runs"], "requests": requests, "note": note}}
