"""`qmig-e2k demo`: a busy e2k machine moves to another process and back while its guest writes; all of it is checked.

256 MiB, model guest on two vCPUs. It goes there by precopy, a line per dirty round while it happens, and back by
postcopy: it runs first, and its memory follows. At the end every step of the guest is replayed on fresh memory, and all
of RAM is compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from qmig_e2k import downtime
from qmig_e2k.monitor.client import QmpClient, QmpError, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from qmig_e2k.monitor.client import Event

GUEST = "random,threads=2,wss=128M,rate=20000"
"""Dirties up to 80 MiB a second, so it can be outrun at `BANDWIDTH`, but only in several rounds."""
BANDWIDTH = 128 << 20
"""Bytes a second, there and back: slow enough to be watched."""
HEAD_START_S = 1.5
"""The guest writes alone first, so that there is something to move."""
PAUSE_S = 0.5
"""Then it writes where it has arrived, so that every life of it is checked."""
DEADLINE_S = 60.0


class Served:
    """A `qmig-e2k serve` process with its QMP connection; ended on exit from the `with` block.

    Args:
        arguments: What follows `qmig-e2k serve`, without `--qmp`.
        directory: Where its socket goes.
        name: Names the socket and the log file, unique in `directory`.
        module: What is run, if it is not this package.
        environment: Its environment, if it is not that of this process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        directory: Path,
        name: str,
        module: str = "qmig_e2k",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = directory / f"{name}.log"
        address = f"unix:{directory / name}.qmp"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "serve", *arguments, "--qmp", address],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        try:
            self.qmp = QmpClient(address, deadline=DEADLINE_S, alive=lambda: self.process.poll() is None)
        except ConnectionError as error:
            self.process.kill()
            self.process.wait()
            message = f"serve did not start: {self.log.read_text(errors='replace').strip() or error}"
            raise RuntimeError(message) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.qmp.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Screen:
    """One line per round: rewritten in colour where rich and a terminal are there, else plain text."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._console: Any = None
        if out.isatty():
            try:
                from rich.console import Console  # noqa: PLC0415 - an extra that may be missing
            except ImportError:
                pass
            else:
                self._console = Console(file=out, highlight=True)

    def line(self, text: str, style: str = "") -> None:
        """Print one line; `style` is rich's, ignored in plain text."""
        if self._console is not None:
            self._console.print(text, style=style or None)
        else:
            print(text, file=self._out, flush=True)


def run(
    *,
    ram: str = "256M",
    guest: str = GUEST,
    out: TextIO | None = None,
    tamper: Callable[[QmpClient, Path], None] | None = None,
) -> int:
    """Run the demo.

    Args:
        ram: Guest RAM, as `-m`.
        guest: The model guest, as `--guest`.
        out: Where the lines go (default: standard output).
        tamper: For tests: called with the stopped machine and the file that is its RAM, before the check.

    Returns:
        The exit status: 0 if the machine came home whole, 1 if not.
    """
    screen = Screen(out or sys.stdout)
    machine = ["-M", "e2k", "-smp", "2", "-m", ram, "--guest", guest]
    with tempfile.TemporaryDirectory(prefix="qmig-demo-") as name, ExitStack() as stack:
        directory = Path(name)
        memory = None
        if tamper:
            # on shared memory: pages of a file on a disk cannot be missing
            memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))) / "ram"
        try:
            with (
                Served([*machine, "--incoming", "defer"], directory, "away") as away,
                Served([*machine, "--incoming", "defer", *_backing(memory)], directory, "home") as home,
            ):
                with Served([*machine, "--seed", "1"], directory, "first") as first:
                    screen.line(f"pid {first.process.pid}: machine e2k, {ram} of RAM, guest {guest}, running")
                    _there(screen, first.qmp, away)
                last = home if _back(screen, away.qmp, home) else away
                change = (lambda qmp: tamper(qmp, memory)) if tamper and memory else None
                return _check(screen, last.qmp, change)
        except (RuntimeError, QmpError, ConnectionError, TimeoutError) as error:
            screen.line(f"demo failed: {error}", "bold red")
            return 1


def _backing(memory: Path | None) -> list[str]:
    return [] if memory is None else ["--mem-path", str(memory)]


def _there(screen: Screen, source: QmpClient, away: Served) -> None:
    """By precopy: the memory first, in rounds, because the guest goes on writing."""
    time.sleep(HEAD_START_S)
    screen.line(f"there, by precopy, to pid {away.process.pid}:", "bold")
    begun = _begin(source, away.qmp)
    stopped = _follow(screen, source, begun)
    ram = _arrived(screen, source, away.qmp, stopped)
    screen.line(f"{ram['dirty-sync-count']} rounds; it is running, its guest goes on writing")
    time.sleep(PAUSE_S)


def _back(screen: Screen, source: QmpClient, home: Served) -> bool:
    """By postcopy: the machine first, and what it touches before the rest. False if this host does not allow that."""
    switch = [{"capability": "postcopy-ram", "state": True}]
    try:
        home.qmp.execute("migrate-set-capabilities", capabilities=switch)
    except QmpError as error:
        screen.line(f"the way back by postcopy is left out: {error}", "yellow")
        return False
    source.execute("migrate-set-capabilities", capabilities=switch)
    source.execute("migrate-set-parameters", max_postcopy_bandwidth=BANDWIDTH)
    screen.line(f"back, by postcopy, to pid {home.process.pid}:", "bold")
    begun = _begin(source, home.qmp)
    source.execute("migrate-start-postcopy")
    stopped = _fetch(screen, source, home.qmp, begun)
    ram = _arrived(screen, source, home.qmp, stopped)
    screen.line(f"{ram['postcopy-requests']} pages asked for; it is running, its guest goes on writing")
    time.sleep(PAUSE_S)
    return True


def _begin(source: QmpClient, destination: QmpClient) -> float:
    for side in (source, destination):
        side.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    source.execute("migrate-set-parameters", max_bandwidth=BANDWIDTH)
    destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    address = destination.execute("query-migrate")["socket-address"][0]
    begun = time.monotonic()
    source.execute("migrate", uri=f"tcp:{address['host']}:{address['port']}")
    return begun


def _arrived(screen: Screen, source: QmpClient, destination: QmpClient, stopped: float) -> dict[str, Any]:
    """The figures of a move; returns `ram` of the source's query-migrate."""
    resumed = stamp(destination.wait_event("RESUME", DEADLINE_S))
    destination.wait_event("MIGRATION", DEADLINE_S, status="completed")
    info = source.execute("query-migrate")
    ram: dict[str, Any] = info["ram"]
    screen.line(
        f"moved in {info['total-time'] / 1000:.2f} s: downtime {(resumed - stopped) * 1000:.1f} ms, "
        f"{ram['transferred'] / 2**20:.1f} MiB sent"
    )
    there = destination.execute("query-migrate")["x-downtime"]
    screen.line(f"  of the downtime: {downtime.describe({**there, **info['x-downtime']})}")
    return ram


def _check(screen: Screen, last: QmpClient, tamper: Callable[[QmpClient], None] | None) -> int:
    last.execute("stop")
    if tamper:
        tamper(last)
    check = last.execute("x-verify")
    if not check["equal"]:
        where = check.get("first-difference")
        screen.line(
            f"NOT EQUAL after {check['steps']} steps: first difference at {where:#x}"
            if where is not None
            else "NOT EQUAL",
            "bold red",
        )
        return 1
    screen.line(f"verified: {check['steps']} steps replayed, RAM equal", "bold green")
    return 0


def _fetch(screen: Screen, source: QmpClient, home: QmpClient, begun: float) -> float:
    """Show how the memory follows until all of it is there; returns when the machine was stopped (wall clock, s)."""
    stopped = 0.0
    end = begun + DEADLINE_S
    while time.monotonic() < end:
        event = source.event(0.25)
        if event is None:
            ram = source.execute("query-migrate").get("ram", {})
            total = home.execute("query-migrate").get("x-fault-latency", {}).get("total", {"count": 0, "p50": 0})
            screen.line(
                f"  {time.monotonic() - begun:6.2f} s  runs there: {ram.get('remaining', 0) / 2**20:7.1f} MiB follow, "
                f"{total['count']:5} faults, half of them within {total['p50'] / 1000:.0f} us"
            )
        elif event["event"] == "STOP":
            stopped = stamp(event)
        elif event["event"] == "MIGRATION" and _ended(event, source):
            return stopped
    message = f"the memory did not follow within {DEADLINE_S:g} s"
    raise TimeoutError(message)


def _ended(event: Event, source: QmpClient) -> bool:
    """Whether the migration is complete.

    Raises:
        RuntimeError: It never will be.
    """
    status = event["data"]["status"]
    if status in ("failed", "cancelled", "postcopy-paused"):
        message = f"migration {status}: {source.execute('query-migrate').get('error-desc', 'no reason given')}"
        raise RuntimeError(message)
    return bool(status == "completed")


def _follow(screen: Screen, source: QmpClient, begun: float) -> float:
    """Show each round until the source is completed; returns when it stopped the machine (wall clock, seconds)."""
    stopped = 0.0
    end = begun + DEADLINE_S
    while time.monotonic() < end:
        event = source.event(1.0)
        if event is None:
            continue
        if event["event"] == "MIGRATION_PASS":
            ram = source.execute("query-migrate").get("ram", {})
            left, sent = ram.get("remaining", 0) / 2**20, ram.get("transferred", 0) / 2**20
            screen.line(
                f"  {time.monotonic() - begun:6.2f} s  round {event['data']['pass']:2}: "
                f"{left:7.1f} MiB to send, {sent:7.1f} MiB sent, {ram.get('mbps', 0) / 8.388608:5.0f} MiB/s"
            )
        elif event["event"] == "STOP":
            stopped = stamp(event)
        elif event["event"] == "MIGRATION" and _ended(event, source):
            return stopped
    message = f"the migration did not complete within {DEADLINE_S:g} s"
    raise TimeoutError(message)
