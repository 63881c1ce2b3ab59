"""What a fault of postcopy costs: beside a bare loop with the same threads and channels, and beside QEMU.

One vCPU thread reads each page of RAM once, back to back, in an order that the seed makes, while the background sends
all of it. The latency is taken in that thread, from before the touch to after it. QEMU's `-M none` has no CPU: there
`pmemsave` touches, and the price of the same command on memory that is there is taken off.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench import host
from qmig_e2k.bench.precopy import migrate as precopy
from qmig_e2k.bench.precopy import running
from qmig_e2k.bench.result import median_row
from qmig_e2k.demo import Served
from qmig_e2k.lab.faults import Experiment
from qmig_e2k.lab.faults import run as experiment
from qmig_e2k.monitor.client import QmpClient, stamp

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODES", "run", "switch", "whole"]

MODES = {"preempt": True, "one channel": False}
"""The name of each way, and whether requested pages have a channel of their own."""
DEADLINE_S = 120.0
BEFORE = 32 << 20
"""Bytes a second until the switch; QEMU stands still for a tenth of a second where it was much too slow before."""
TOUCHES = 20_000
"""Of QEMU's memory, at most."""
ENOUGH, OF = 10_000, 1 << 30
"""Requests without which a run says little, and bytes of memory from which on there can be so many."""
FLAT = (256 << 20, 4 << 30)

Phases = dict[str, Any]
Results = list[dict[str, Any]]


@dataclass
class Seen:
    """One run: times in us, `rate` of the whole memory in GiB/s."""

    mean: float
    requests: int
    p50: float = 0.0
    p99: float = 0.0
    rate: float = 0.0


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
    for mode, preempt in MODES.items():
        found: dict[str, list[Seen]] = {"ours": [], "bare": [], "qemu": []}
        for number in range(runs + 1):
            # Who comes second gets the memory that the first has just given back: each in turn.
            for who in ("ours", "bare") if number % 2 else ("bare", "ours"):
                host.warm(max(3 * size >> 30, 1))
                if who == "bare":
                    found["bare"].append(_bare(programs / "bare_faults", size, preempt, number))
                else:
                    record = experiment(Experiment(size, faults=0, preempt=preempt, background=True, seed=number))
                    phases |= {f"{name}, {mode}": seen for name, seen in record["phases"].items()}
                    found["ours"].append(_seen(record["phases"]["touch"], record["result"]))
            if qemu is not None:
                found["qemu"].append(_qemu(qemu, size, preempt, number))
            words = [f"{who} {seen[-1].p50:.0f} / {seen[-1].p99:.0f}" for who, seen in found.items() if seen]
            means = f"mean {found['ours'][-1].mean:.0f}"
            if found["qemu"]:
                words.pop()
                means += f", QEMU {found['qemu'][-1].mean:.0f}"
            say(f"{mode}, run {number}{' (dropped)' if number == 0 else ''}: p50 / p99 us {', '.join(words)}; {means}")
        ours, bare, theirs = (seen[1:] for seen in found.values())
        results += [
            _asked(
                median_row(f"fault p50, {mode}", "us", [s.p50 for s in ours], [s.p50 for s in bare], "bare loop"),
                ours,
                size,
            ),
            _asked(
                median_row(f"fault p99, {mode}", "us", [s.p99 for s in ours], [s.p99 for s in bare], "bare loop"),
                ours,
                size,
            ),
            median_row(f"all memory, {mode}", "GiB/s", [s.rate for s in ours], [s.rate for s in bare], "bare loop"),
            median_row(f"requests, {mode}", "", [s.requests for s in ours], [s.requests for s in bare], "bare loop"),
        ]
        if theirs:
            results.append(
                median_row(f"fault mean, {mode}", "us", [s.mean for s in ours], [s.mean for s in theirs], "QEMU")
            )
    results += _floor(programs / "fault_floor", runs, say)
    results += _flat(runs, size, say)
    results += whole(runs, size, say)
    results += switch(runs, size, say)
    return results, phases


def _seen(touch: dict[str, Any], result: dict[str, Any]) -> Seen:
    if result["wrong"]:
        raise RuntimeError(f"{result['wrong']} pages were wrong")
    times = (touch[name] / 1000 for name in ("mean_ns", "p50_ns", "p99_ns"))
    mean, p50, p99 = times
    return Seen(mean, result["requests"], p50, p99, result["gib_per_second"])


def _json(program: Path, *words: object) -> dict[str, Any]:
    printed = subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    ).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def _bare(program: Path, size: int, preempt: bool, seed: int) -> Seen:
    found = _json(program, "--size", size, "--channels", 2 if preempt else 1, "--seed", seed)
    return _seen(found["faults"], {**found, "gib_per_second": size / 2**30 / found["seconds"]})


def _qemu(program: str, size: int, preempt: bool, seed: int) -> Seen:
    """The mean of what was asked for; no other figure can be had from outside."""
    host.warm(max(3 * size >> 30, 1))
    with tempfile.TemporaryDirectory(prefix="qmig-bench-") as name, ExitStack() as stack:
        content = Path(name) / "content"
        _random(content, size)
        memory = ["-M", "none", "-m", f"{size >> 20}M"]
        sides = {
            "source": [*memory, "-device", f"loader,file={content},addr=0,force-raw=on"],
            "destination": [*memory, "-incoming", "defer"],
        }
        (source, _), (destination, _) = (
            stack.enter_context(running(program, words, Path(name), side)) for side, words in sides.items()
        )
        _begin(source, destination, preempt)
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


def _begin(source: QmpClient, destination: QmpClient, preempt: bool) -> float:
    """The machine runs there, with no memory but what comes; returns when it was asked for, on the wall clock."""
    wanted = {"events": True, "postcopy-ram": True, "postcopy-preempt": preempt}
    for side in (source, destination):
        listed = [{"capability": name, "state": state} for name, state in wanted.items()]
        side.execute("migrate-set-capabilities", capabilities=listed)
    source.execute("migrate-set-parameters", max_bandwidth=BEFORE, max_postcopy_bandwidth=0)
    destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    port = destination.execute("query-migrate")["socket-address"][0]["port"]
    source.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
    source.execute("migrate-start-postcopy")
    return stamp(source.wait_event("MIGRATION", DEADLINE_S, status="postcopy-active"))


def _touch(destination: QmpClient, page: int) -> float:
    begun = time.perf_counter()
    destination.execute("pmemsave", val=page, size=1, filename=os.devnull)
    return time.perf_counter() - begun


def _completed(side: QmpClient) -> bool:
    while (event := side.event()) is not None:
        if event["event"] == "MIGRATION" and event["data"]["status"] == "completed":
            return True
    return False


def _random(path: Path, size: int) -> None:
    """No page is zero, and none like another."""
    with path.open("wb") as out:
        for at in range(0, size, 16 << 20):
            out.write(os.urandom(min(16 << 20, size - at)))


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
            record = experiment(Experiment(ram, preempt=True))
            into.append(record["phases"]["touch"]["p50_ns"] / 1000)
    return [median_row("fault p50, 4 GiB, no background", "us", medians[1], medians[0], "256 MiB")]


def whole(runs: int, size: int, say: Callable[[str], None]) -> Results:
    """All memory by postcopy that nobody touches, and by precopy."""
    ours, before = [], []
    with tempfile.TemporaryDirectory(prefix="qmig-bench-") as name:
        content = Path(name) / "content"
        _random(content, size)
        words = ["-M", "none", "-m", f"{size >> 20}M"]
        for _ in range(runs):
            for postcopy in (False, True):
                host.warm(max(3 * size >> 30, 1))
                with (
                    Served([*words, "--incoming", "defer"], Path(name), "destination") as destination,
                    Served([*words, "-kernel", str(content)], Path(name), "source") as source,
                ):
                    if postcopy:
                        begun = _begin(source.qmp, destination.qmp, preempt=False)
                        ended = source.qmp.wait_event("MIGRATION", DEADLINE_S, status="completed")
                        ours.append(stamp(ended) - begun)
                    else:
                        destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
                        before.append(precopy(source.qmp, destination.qmp))
            say(f"all memory, nothing touched: postcopy {ours[-1]:.2f} s, precopy {before[-1]:.2f} s")
    return [median_row("all memory, nothing touched", "s", ours, before, "precopy")]


def switch(runs: int, size: int, say: Callable[[str], None]) -> Results:
    """From `migrate-start-postcopy` until the machine runs there, a tenth of it dirty in one run of pages."""
    took = []
    guest = f"seq,wss={size // 10 >> 20 or 1}M"
    words = ["-M", "e2k", "-m", f"{size >> 20}M", "--guest", guest]
    for _ in range(runs):
        with (
            tempfile.TemporaryDirectory(prefix="qmig-bench-") as name,
            Served([*words, "--incoming", "defer"], Path(name), "destination") as destination,
            Served(words, Path(name), "source") as source,
        ):
            source.qmp.execute("x-block-prefault", block="e2k.ram", offset=0, length=size)
            for side in (source.qmp, destination.qmp):
                listed = [{"capability": word, "state": True} for word in ("events", "postcopy-ram")]
                side.execute("migrate-set-capabilities", capabilities=listed)
            source.qmp.execute("migrate-set-parameters", max_bandwidth=max(size // 10, 64 << 20), downtime_limit=0)
            destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
            port = destination.qmp.execute("query-migrate")["socket-address"][0]["port"]
            source.qmp.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
            source.qmp.wait_event("MIGRATION_PASS", DEADLINE_S, **{"pass": 2})
            asked = time.time()
            source.qmp.execute("migrate-start-postcopy")
            took.append((stamp(destination.qmp.wait_event("RESUME", DEADLINE_S)) - asked) * 1000)
            say(f"from migrate-start-postcopy to RESUME, a tenth dirty: {took[-1]:.1f} ms")
    return [median_row("migrate-start-postcopy to RESUME, a tenth dirty", "ms", took, [30.0] * runs, "limit")]


def _asked(result: dict[str, Any], ours: list[Seen], size: int) -> dict[str, Any]:
    """The row with the requests of its runs, and a word for people where one of them had too few."""
    requests = [seen.requests for seen in ours]
    note = f"{min(requests)} requests"
    if size >= OF and min(requests) < ENOUGH:
        note += f", TOO FEW: {ENOUGH} are wanted"
    return {**result, "runs": {**result["runs"], "requests": requests, "note": note}}
