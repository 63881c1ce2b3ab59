"""`qmig-e2k demo`: a busy e2k machine moves from one process to another while its guest writes; all of it is checked.

Two `serve` processes, 256 MiB, model guest on two vCPUs. A line per dirty round while it happens, the figures of the
move, then the destination replays every step of the guest on fresh memory and compares all of RAM.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from qmig_e2k.monitor.client import QmpClient, QmpError, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GUEST = "random,threads=2,wss=128M,rate=20000"
"""Dirties up to 80 MiB a second, so it can be outrun at `BANDWIDTH`, but only in several rounds."""
BANDWIDTH = 128 << 20
HEAD_START_S = 2.0
"""The guest writes alone first, so that there is something to move."""
DEADLINE_S = 60.0


class Served:
    """A `qmig-e2k serve` process with its QMP connection; ended on exit from the `with` block.

    Args:
        arguments: What follows `qmig-e2k serve`, without `--qmp`.
        directory: Where its socket goes.
        name: Names the socket and the log file, unique in `directory`.
    """

    def __init__(self, arguments: Sequence[str], directory: Path, name: str) -> None:
        self.log = directory / f"{name}.log"
        address = f"unix:{directory / name}.qmp"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qmig_e2k", "serve", *arguments, "--qmp", address],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
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
        tamper: For tests: called with the stopped destination and the file that is its RAM, before the check.

    Returns:
        The exit status: 0 if the machine arrived whole, 1 if not.
    """
    screen = Screen(out or sys.stdout)
    with tempfile.TemporaryDirectory(prefix="qmig-demo-") as name:
        directory = Path(name)
        machine = ["-M", "e2k", "-smp", "2", "-m", ram, "--guest", guest]
        memory = directory / "destination.ram"
        backing = ["--mem-path", str(memory)] if tamper else []
        try:
            with (
                Served([*machine, "--incoming", "defer", *backing], directory, "destination") as destination,
                Served([*machine, "--seed", "1"], directory, "source") as source,
            ):
                screen.line(f"source pid {source.process.pid}: machine e2k, {ram} of RAM, guest {guest}, running")
                screen.line(f"destination pid {destination.process.pid}: waiting")
                return _move(screen, source.qmp, destination.qmp, (lambda qmp: tamper(qmp, memory)) if tamper else None)
        except (RuntimeError, QmpError, ConnectionError, TimeoutError) as error:
            screen.line(f"demo failed: {error}", "bold red")
            return 1


def _move(screen: Screen, source: QmpClient, destination: QmpClient, tamper: Callable[[QmpClient], None] | None) -> int:
    for side in (source, destination):
        side.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    source.execute("migrate-set-parameters", max_bandwidth=BANDWIDTH)
    time.sleep(HEAD_START_S)
    destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    address = destination.execute("query-migrate")["socket-address"][0]
    begun = time.monotonic()
    source.execute("migrate", uri=f"tcp:{address['host']}:{address['port']}")
    stopped = _follow(screen, source, begun)
    resumed = stamp(destination.wait_event("RESUME", DEADLINE_S))
    destination.wait_event("MIGRATION", DEADLINE_S, status="completed")
    info = source.execute("query-migrate")
    ram = info["ram"]
    screen.line(
        f"moved in {info['total-time'] / 1000:.2f} s: downtime {(resumed - stopped) * 1000:.1f} ms, "
        f"{ram['transferred'] / 2**20:.1f} MiB sent, {ram['dirty-sync-count']} rounds",
        "bold",
    )
    steps = destination.execute("query-status")
    screen.line(f"destination is {steps['status']}, its guest goes on writing")
    time.sleep(0.5)  # let it write here, too: what is checked is both lives of the guest
    destination.execute("stop")
    if tamper:
        tamper(destination)
    check = destination.execute("x-verify")
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
        elif event["event"] == "MIGRATION":
            status = event["data"]["status"]
            if status == "completed":
                return stopped
            if status in ("failed", "cancelled"):
                message = f"migration {status}: {source.execute('query-migrate').get('error-desc', 'no reason given')}"
                raise RuntimeError(message)
    message = f"the migration did not complete within {DEADLINE_S:g} s"
    raise TimeoutError(message)
