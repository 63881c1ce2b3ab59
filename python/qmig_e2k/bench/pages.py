"""`bench ram`: precopy with pages compressed or on several channels, this project's processes and QEMU's in turn.

Each case gives both programs the same content, capabilities and parameters, and takes the time from `migrate` until
the destination has left `inmigrate`. What is compressed is the text of this host's C headers.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench import host
from qmig_e2k.bench.precopy import SHM, Run, running, timed
from qmig_e2k.bench.result import median_row
from qmig_e2k.demo import Served
from qmig_e2k.monitor.client import QmpClient, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HEADERS = Path("/usr/include")


@dataclass(frozen=True)
class Case:
    """One way for pages to travel."""

    name: str
    capability: str
    text: bool
    """C text; else random bytes."""
    mib: int
    touched: bool = False
    """The destination's memory exists before."""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _multifd(method: str, mib: int, *, text: bool) -> Case:
    parameters = {"multifd-channels": 2, "multifd-compression": method}
    content = "C text" if text else "random bytes, warm memory"
    return Case(f"multifd {method}, two channels, {content}", "multifd", text, mib, not text, parameters)


CASES = (
    Case(
        "compress level 1, two threads, C text",
        "compress",
        text=True,
        mib=256,
        parameters={"compress-level": 1, "compress-threads": 2, "decompress-threads": 2},
    ),
    _multifd("none", 1024, text=False),
    _multifd("zlib", 256, text=True),
    _multifd("zstd", 512, text=True),
)


def run(runs: int = 5, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Measure all cases; one dict a result, as contract section 2 has them.

    Args:
        runs: Counted runs of each program and case; one more of each is dropped.
        say: Called with a line of text per run, and where a case cannot be measured.
    """
    results: list[dict[str, Any]] = []
    qemu = host.qemu()
    if qemu is None:
        say("no qemu-system-x86_64 on PATH: ours alone")
    with tempfile.TemporaryDirectory(prefix="qmig-bench-", dir=SHM) as name:
        directory = Path(name)
        for case in CASES:
            content = directory / "content"
            with content.open("wb") as out:
                out.writelines(_text(case.mib) if case.text else (os.urandom(1 << 20) for _ in range(case.mib)))
            try:
                results += _case(case, content, runs, qemu, say)
            except QmpError as error:
                say(f"{case.name}: left out: {error}")
    return results


def _case(case: Case, content: Path, runs: int, qemu: str | None, say: Callable[[str], None]) -> list[dict[str, Any]]:
    ours: list[Run] = []
    theirs: list[Run] = []
    for number in range(runs + 1):
        # Who comes second gets the memory that the first has just given back: each in turn.
        for who in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            if who == "ours":
                ours.append(_run(case, content, None))
            elif qemu is not None:
                theirs.append(_run(case, content, qemu))
        words = [
            f"{who} {_rate(case, [found[-1]])[0]:.3f} GiB/s"
            for who, found in (("ours", ours), ("QEMU", theirs))
            if found
        ]
        say(f"{case.name}, run {number}{' (dropped)' if number == 0 else ''}: {', '.join(words)}")
    gib = case.mib / 1024
    cpu, other = ([run.cpu / gib for run in found[1:]] for found in (ours, theirs))
    return [
        median_row(case.name, "GiB/s", _rate(case, ours[1:]), _rate(case, theirs[1:]), "QEMU"),
        median_row(f"CPU of both: {case.name}", "s/GiB", cpu, other, "QEMU"),
    ]


def _rate(case: Case, runs: list[Run]) -> list[float]:
    return [case.mib / 1024 / run.seconds for run in runs]


def _run(case: Case, content: Path, qemu: str | None) -> Run:
    machine = ["-M", "none", "-m", f"{case.mib}M"]
    directory = content.parent
    with ExitStack() as stack:
        if qemu is None:
            destination, pid = _served(stack, [*machine, "--incoming", "defer"], directory, "destination")
            source, other = _served(stack, [*machine, "-kernel", str(content)], directory, "source")
            if case.touched:
                destination.execute("x-block-prefault", block="ram", offset=0, length=case.mib << 20)
        else:
            load = ["-device", f"loader,file={content},addr=0,force-raw=on"]
            backed = f"memory-backend-ram,id=ram,size={case.mib}M,prealloc=on"
            there = ["-object", backed, "-M", "none,memory-backend=ram", *machine[2:]] if case.touched else machine
            arrives = running(qemu, [*there, "-incoming", "defer"], directory, "destination")
            destination, pid = stack.enter_context(arrives)
            source, other = stack.enter_context(running(qemu, [*machine, *load], directory, "source"))
        for side in (source, destination):
            on = [{"capability": case.capability, "state": True}]
            side.execute("migrate-set-capabilities", capabilities=on)
            side.execute("migrate-set-parameters", arguments=dict(case.parameters))
        destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        return timed(source, destination, [pid, other])


def _served(stack: ExitStack, arguments: list[str], directory: Path, name: str) -> tuple[QmpClient, int]:
    served = stack.enter_context(Served(arguments, directory, name))
    return served.qmp, served.process.pid


def _text(mib: int) -> Iterator[bytes]:
    """`mib` MiB of C text, in pieces."""
    found = bytearray()
    for path in sorted(HEADERS.rglob("*.h")):
        if path.is_file():
            found += path.read_bytes()
        if len(found) >= 64 << 20:
            break
    if not found:
        message = f"no C text in {HEADERS}: on Debian, apt install libc6-dev"
        raise FileNotFoundError(message)
    pieces = itertools.cycle(bytes(found[at : at + (1 << 20)]) for at in range(0, len(found), 1 << 20))
    left = mib << 20
    while left:
        piece = next(pieces)[:left]
        left -= len(piece)
        yield piece
