"""Precopy between two processes on this host: this project's and QEMU's in turn, and the bare loop beside them.

Each case gives both sides the same backing and the same content, max-bandwidth unlimited, and takes the time from
`migrate` until the destination has left `inmigrate`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench import host
from qmig_e2k.bench.result import median_row
from qmig_e2k.demo import Served
from qmig_e2k.monitor.client import QmpClient, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 1 << 30
SHM = Path("/dev/shm")  # noqa: S108 - the backing is the point
DEADLINE_S = 120.0


@dataclass
class Case:
    """One kind of memory: how each program is told to have it, on each side."""

    name: str
    ours: tuple[list[str], list[str]]
    theirs: tuple[list[str], list[str]]
    prefault: tuple[bool, bool] = (False, False)
    """Ours only: touch all RAM of the (source, destination) first; QEMU's `prealloc=on` does the same."""
    bare: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One migration: seconds, CPU seconds of both processes."""

    seconds: float
    cpu: float


def cases(random_file: Path, directory: Path) -> list[Case]:
    """The cases of the speed goals; `random_file` holds 1 GiB of random bytes, `directory` is on shared memory."""
    none = ["-M", "none", "-m", "1G"]
    load = [*none, "-device", f"loader,file={random_file},addr=0,force-raw=on"]
    touched = ["-object", "memory-backend-ram,id=ram,size=1G,prealloc=on", "-M", "none,memory-backend=ram", "-m", "1G"]

    def shared(name: str) -> list[str]:
        return [
            "-object",
            f"memory-backend-file,id=ram,size=1G,share=on,mem-path={directory / name}",
            "-M",
            "none,memory-backend=ram",
            "-m",
            "1G",
        ]

    kernel = [*none, "-kernel", str(random_file)]
    return [
        Case(
            "random, destination touched",
            (kernel, none),
            (load, touched),
            prefault=(False, True),
            bare=["--prefault-destination", "yes"],
        ),
        Case("random, destination fresh", (kernel, none), (load, none), bare=["--prefault-destination", "no"]),
        Case("written zeros", (none, none), (touched, none), prefault=(True, False)),
        Case(
            "holes in a shared file",
            ([*none, "--mem-path", str(directory / "a")], [*none, "--mem-path", str(directory / "b")]),
            (shared("a"), shared("b")),
        ),
        Case("anonymous, never touched", (none, none), (none, none)),
    ]


def run(
    runs: int = 5, bare_loop: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Measure all cases; one dict a result, as contract section 2 has them.

    Args:
        runs: Counted runs of each program and case; one more of each is dropped.
        bare_loop: The bare loop's program; without it its rows are left out.
        say: Called with a line of text per run.
    """
    results: list[dict[str, Any]] = []
    qemu = host.qemu()
    if qemu is None:
        say("no qemu-system-x86_64 on PATH: ours alone")
    with tempfile.TemporaryDirectory(prefix="qmig-bench-", dir=SHM) as name:
        directory = Path(name)
        random_file = directory / "random"
        with random_file.open("wb") as out:
            for _ in range(64):
                out.write(os.urandom(16 << 20))
        for case in cases(random_file, directory):
            ours: list[Run] = []
            theirs: list[Run] = []
            bare: list[Run] = []
            for number in range(runs + 1):
                # Who comes second gets the memory that the first has just given back: each in turn.
                if number % 2:
                    ours.append(_ours(case, directory))
                if qemu is not None:
                    theirs.append(_qemu(qemu, case, directory))
                if not number % 2:
                    ours.append(_ours(case, directory))
                if bare_loop is not None and case.bare:
                    bare.append(_bare(bare_loop, case))
                words = [f"ours {1 / ours[-1].seconds:.2f} GiB/s"]
                words += [f"QEMU {1 / theirs[-1].seconds:.2f}"] if theirs else []
                words += [f"bare loop {1 / bare[-1].seconds:.2f}"] if bare else []
                say(f"{case.name}, run {number}{' (dropped)' if number == 0 else ''}: {', '.join(words)}")
            if theirs:
                results.append(_rate(case.name, ours[1:], theirs[1:], "QEMU"))
                results.append(_cpu(case.name, ours[1:], theirs[1:]))
            else:
                results.append(_rate(case.name, ours[1:], [], ""))
            if bare:
                results.append(_rate(case.name, ours[1:], bare[1:], "bare loop"))
    return results


def downtime(runs: int = 5, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """STOP on the source to RESUME on the destination, in ms: an idle 1 GiB machine; a guest that dirties 64 MiB."""
    host.warm()
    idle = [_downtime(["--guest", "idle"], 0, say) for _ in range(runs + 1)][1:]
    busy = [_downtime(["--guest", "seq,wss=64M"], 512 << 20, say) for _ in range(2)]
    return [
        _plain("downtime, idle 1 GiB", "ms", idle),
        _plain("downtime, 64 MiB dirtied over and over at 512 MiB/s", "ms", busy),
    ]


def resident(say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Peak resident memory beyond guest RAM, in MiB, of the larger process."""
    with (
        tempfile.TemporaryDirectory(prefix="qmig-bench-", dir=SHM) as name,
        _pair(["-M", "none", "-m", "1G", "--mem", "memfd"], Path(name)) as (a, b),
    ):
        _prefault(a.qmp)
        migrate(a.qmp, b.qmp)
        # Guest RAM is the only shared memory of either process.
        found = [host.memory(side.process.pid) for side in (a, b)]
        beyond = [(sizes["VmHWM"] - sizes["RssShmem"]) / 2**20 for sizes in found]
    say(f"resident beyond guest RAM: source {beyond[0]:.1f} MiB, destination {beyond[1]:.1f} MiB")
    return [_plain("resident beyond guest RAM", "MiB", [max(beyond)])]


def _ours(case: Case, directory: Path) -> Run:
    _clean(directory)
    with (
        Served([*case.ours[1], "--incoming", "defer"], directory, "destination") as destination,
        Served(case.ours[0], directory, "source") as source,
    ):
        for side, wanted in zip((source, destination), case.prefault, strict=True):
            if wanted:
                _prefault(side.qmp)
        destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        return timed(source.qmp, destination.qmp, [source.process.pid, destination.process.pid])


def _qemu(program: str, case: Case, directory: Path) -> Run:
    _clean(directory)
    with (
        running(program, [*case.theirs[1], "-incoming", "tcp:127.0.0.1:0"], directory, "destination") as destination,
        running(program, case.theirs[0], directory, "source") as source,
    ):
        return timed(source[0], destination[0], [destination[1], source[1]])


@contextlib.contextmanager
def running(program: str, arguments: list[str], directory: Path, name: str) -> Iterator[tuple[QmpClient, int]]:
    """A QEMU with its QMP connection and process number; killed at the end of the `with` block.

    Args:
        program: Its path.
        arguments: Without `-qmp`.
        directory: Where its socket goes.
        name: Names the socket, unique in `directory`.
    """
    socket = directory / f"{name}.qmp"
    process = subprocess.Popen(
        [program, "-nodefaults", "-display", "none", "-qmp", f"unix:{socket},server=on,wait=off", *arguments],
        stdin=subprocess.DEVNULL,
    )
    try:
        with QmpClient(f"unix:{socket}", deadline=DEADLINE_S, alive=lambda: process.poll() is None) as qmp:
            yield qmp, process.pid
    finally:
        process.kill()
        process.wait()


def _bare(program: Path, case: Case) -> Run:
    host.warm(3)
    printed = subprocess.run(
        [program, "--size", str(GIB), *case.bare], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    ).stdout
    found = json.loads(printed)
    return Run(found["seconds"], found["cpu_seconds"])


def timed(source: QmpClient, destination: QmpClient, pids: list[int]) -> Run:
    """One migration as fast as it goes to a destination that listens, by the processes `pids`."""
    host.warm(3)
    before = sum(map(host.cpu_seconds, pids))
    seconds = migrate(source, destination)
    # The destination has started; the processes' last work (closing) belongs to the price, too.
    _until(lambda: source.execute("query-migrate")["status"] == "completed")
    return Run(seconds, sum(map(host.cpu_seconds, pids)) - before)


def migrate(source: QmpClient, destination: QmpClient, bandwidth: int = 0) -> float:
    """Seconds until the destination has left `inmigrate`; `bandwidth` in bytes a second, 0: unlimited."""
    for side in (source, destination):
        side.execute("migrate-set-parameters", max_bandwidth=bandwidth)
    address = destination.execute("query-migrate")["socket-address"][0]
    begun = time.perf_counter()
    source.execute("migrate", uri=f"tcp:{address['host']}:{address['port']}")
    _until(lambda: destination.execute("query-status")["status"] != "inmigrate")
    return time.perf_counter() - begun


def _downtime(guest: list[str], bandwidth: int, say: Callable[[str], None]) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="qmig-bench-") as name,
        _pair(["-M", "e2k", "-m", "1G", *guest], Path(name)) as (source, destination),
    ):
        _prefault(source.qmp, "e2k.ram")
        migrate(source.qmp, destination.qmp, bandwidth)
        stop, resume = source.qmp.wait_event("STOP", DEADLINE_S), destination.qmp.wait_event("RESUME", DEADLINE_S)
        stopped = (stamp(resume) - stamp(stop)) * 1000
        _until(lambda: source.qmp.execute("query-migrate")["status"] == "completed")
        parts = source.qmp.execute("query-migrate").get("x-downtime", {})
        say(f"downtime {stopped:.2f} ms ({' '.join(guest)}): source's parts in us {json.dumps(parts)}")
        return stopped


@contextlib.contextmanager
def _pair(arguments: list[str], directory: Path) -> Iterator[tuple[Served, Served]]:
    with (
        Served([*arguments, "--incoming", "tcp:127.0.0.1:0"], directory, "destination") as destination,
        Served(arguments, directory, "source") as source,
    ):
        yield source, destination


def _prefault(side: QmpClient, block: str = "ram") -> None:
    side.execute("x-block-prefault", block=block, offset=0, length=GIB)


def _clean(directory: Path) -> None:
    for name in ("a", "b"):
        (directory / name).unlink(missing_ok=True)


def _until(done: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not done():
        passed = time.monotonic() - begun
        if passed > DEADLINE_S:
            message = "a migration of the benchmark did not end"
            raise TimeoutError(message)
        # Whoever is asked needs the cores that are measured: what takes longer is asked less often.
        time.sleep(max(0.001, passed / 200))


def _rate(name: str, ours: list[Run], reference: list[Run], reference_name: str) -> dict[str, Any]:
    mine = [1 / run.seconds for run in ours]
    other = [1 / run.seconds for run in reference]
    return median_row(f"precopy 1 GiB, {name}", "GiB/s", mine, other, reference_name)


def _cpu(name: str, ours: list[Run], reference: list[Run]) -> dict[str, Any]:
    return median_row(
        f"CPU of both processes, {name}", "s/GiB", [run.cpu for run in ours], [run.cpu for run in reference], "QEMU"
    )


def _plain(name: str, unit: str, values: list[float]) -> dict[str, Any]:
    return median_row(name, unit, values, [], None)
