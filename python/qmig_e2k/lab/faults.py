"""One experiment: a machine runs on the destination before its memory is there, and every touch is measured.

Two processes on this host (`lab.side`), a machine that is nothing but RAM, postcopy from the first moment, so that all
pages are missing. The destination's guest touches them in an order that the seed alone makes. Between the two may be
a link of a chosen length and speed: a relay in this process.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qmig_e2k._core import Shaper
from qmig_e2k.bench import host
from qmig_e2k.errors import migration_error
from qmig_e2k.monitor.client import QmpClient, QmpError, stamp

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ACCESSES", "ORDERS", "PAGES", "SCHEMA", "Experiment", "LabError", "run"]

SCHEMA = "qmig_e2k/lab-faults/1"
ORDERS = ("seq", "random", "zipf")
ACCESSES = ("read", "write")
PAGES = (4096, 2 << 20)

START_S = 120.0
"""A side has filled its memory and answers."""
STILL_S = 120.0
"""Nothing new for so long: given up."""
TRICKLE = 4096
"""Bytes a second that nobody asked for: until the switch, and after it where the background is off."""


class LabError(Exception):
    """An experiment that came to nothing; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The conditions. A seed gives the same order on every host.

    Raises:
        MigrationError: `invalid-argument` for what cannot be.
    """

    ram: int = 256 << 20
    """Bytes, a multiple of `page`."""
    order: str = "random"
    """`seq` and `random` touch each page once; `zipf` few often and many rarely."""
    access: str = "read"
    faults: int = 10_000
    """The end after so many; 0: with the order."""
    page: int = 4096
    """Bytes of a page of the memory (4 KiB or 2 MiB)."""
    preempt: bool = False
    """Requested pages have a channel of their own."""
    background: bool = False
    """The source also sends what nobody asked for, as fast as it can."""
    delay_us: int = 0
    """From one side to the other."""
    mbit: int = 0
    """Mbit/s each way, all channels together; 0: no limit."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("order", ORDERS), ("access", ACCESSES), ("page", PAGES)):
            if (value := getattr(self, name)) not in known:
                words = ", ".join(map(str, known))
                raise migration_error("invalid-argument", f"{name} {value} is unknown; there are {words}")
        for name in ("faults", "delay_us", "mbit", "seed"):
            if not 0 <= getattr(self, name) < 1 << 63:
                raise migration_error("invalid-argument", f"{name} {getattr(self, name)} is impossible")
        if self.ram <= 0 or self.ram % self.page:
            message = f"{self.ram} bytes of RAM are not a number of pages of {self.page} bytes"
            raise migration_error("invalid-argument", message)


def run(experiment: Experiment, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Do it once.

    Args:
        experiment: The conditions.
        say: Called with a line of text now and then.

    Returns:
        The record (contract section 2). `phases` has the five of the latency record, as the destination's fault thread
        knows them, and `touch`: before to after, in the thread that touched. `result`: `touches`, `wrong` (0),
        `seconds` of touching, `requests` that reached the source, `order_sha256`, and with a background
        `postcopy_seconds` and `gib_per_second` from the switch until all memory was there.

    Raises:
        LabError: a side could not start, the migration failed, nothing happened any more, or a page was wrong.
    """
    with tempfile.TemporaryDirectory(prefix="qmig-lab-") as name, ExitStack() as stack:
        say(f"filling {experiment.ram >> 20} MiB")
        source, destination = (
            stack.enter_context(_Side(role, experiment, Path(name))) for role in ("source", "destination")
        )
        try:
            source.connect()
            destination.connect()
            link = _link(experiment, destination)
            if link is not None:
                stack.callback(link.close)
            record = _measure(experiment, source, destination, link, say)
        except (QmpError, OSError) as error:
            raise LabError(str(error)) from error
    wrong = record["result"]["wrong"]
    if wrong:
        raise LabError(f"{wrong} pages did not hold what the source has; this must never happen, please report it")
    return record


class _Side:
    """One of the two processes; killed at the end of the `with` block."""

    def __init__(self, role: str, experiment: Experiment, folder: Path) -> None:
        self._role = role
        self._log = folder / f"{role}.log"
        self._address = f"unix:{folder / role}.qmp"
        words = {**asdict(experiment), "role": role, "qmp": self._address}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qmig_e2k.lab.side", json.dumps(words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.qmp: QmpClient

    def connect(self) -> None:
        """Wait until it is ready.

        Raises:
            LabError: It could not start.
        """
        try:
            self.qmp = QmpClient(self._address, deadline=START_S, alive=lambda: self._process.poll() is None)
        except OSError as error:
            lines = self._log.read_text(errors="replace").split("\n")
            why = next((line for line in reversed(lines) if line), error)
            raise LabError(f"the {self._role} did not start: {why}") from error

    def ask(self) -> dict[str, Any]:
        """What was seen."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        if (found := self.line(STILL_S)) is None:
            raise LabError(f"the {self._role} does not answer")
        return found

    def line(self, seconds: float) -> dict[str, Any] | None:
        """The next thing that it says; None if that does not come within `seconds`."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the {self._role} ended: {self._log.read_text(errors='replace').strip()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "qmp"):
            self.qmp.close()
        self._process.kill()
        self._process.communicate()


def _link(experiment: Experiment, destination: _Side) -> Shaper | None:
    """What is between the two, if anything; the destination listens from here on."""
    destination.qmp.execute("migrate-set-capabilities", capabilities=_capabilities(experiment))
    destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    if not experiment.delay_us and not experiment.mbit:
        return None
    return Shaper(_port(destination), delay_us=experiment.delay_us, mbit=experiment.mbit)


def _capabilities(experiment: Experiment) -> list[dict[str, Any]]:
    wanted = {"events": True, "postcopy-ram": True, "postcopy-preempt": experiment.preempt}
    return [{"capability": name, "state": state} for name, state in wanted.items()]


def _port(destination: _Side) -> int:
    return int(destination.qmp.execute("query-migrate")["socket-address"][0]["port"])


def _measure(
    experiment: Experiment, source: _Side, destination: _Side, link: Shaper | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Switch, wait for the toucher, then for the rest of the memory."""
    port = _port(destination) if link is None else link.port
    source.qmp.execute("migrate-set-capabilities", capabilities=_capabilities(experiment))
    behind = 0 if experiment.background else TRICKLE
    source.qmp.execute("migrate-set-parameters", max_bandwidth=TRICKLE, max_postcopy_bandwidth=behind)
    source.qmp.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
    source.qmp.execute("migrate-start-postcopy")
    begun = _reached(source, "postcopy-active")
    say("postcopy is active: touching")
    _touch(source, destination, say)
    source.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    ended = _reached(source, "completed")
    _reached(destination, "completed")
    seconds = ended - begun
    # only now: the last page is there a little before its record
    found = destination.ask()
    touched = found["touched"]
    result = {
        **{name: touched[name] for name in ("touches", "wrong", "seconds")},
        "requests": source.qmp.execute("query-migrate")["ram"]["postcopy-requests"],
        "order_sha256": found["order"],
        "postcopy_seconds": seconds if experiment.background else None,
        "gib_per_second": experiment.ram / 2**30 / seconds if experiment.background else None,
    }
    return {
        "schema": SCHEMA,
        "host": host.facts(),
        "args": asdict(experiment),
        "phases": {**found["phases"], "touch": touched["faults"]},
        "result": result,
    }


def _reached(side: _Side, status: str) -> float:
    """Wait for a status of the migration; when it came, on the wall clock."""
    end = time.monotonic() + STILL_S
    while time.monotonic() < end:
        event = side.qmp.event(1.0)
        if event is None or event["event"] != "MIGRATION":
            _refuse_failure(side)
        elif event["data"]["status"] == status:
            return stamp(event)
    raise LabError(f"the migration did not become {status} within {STILL_S:g} s")


def _touch(source: _Side, destination: _Side, say: Callable[[str], None]) -> None:
    """Wait until the toucher is done."""
    most, end = 0, time.monotonic() + STILL_S
    while destination.line(1.0) is None:
        _refuse_failure(source)
        seen = destination.qmp.execute("query-migrate").get("x-fault-latency", {}).get("total", {"count": 0})
        if seen["count"] > most:
            most, end = seen["count"], time.monotonic() + STILL_S
            say(f"{most} faults, p50 {seen['p50'] / 1000:.0f} us, p99 {seen['p99'] / 1000:.0f} us")
        elif time.monotonic() > end:
            raise LabError(f"no page came for {STILL_S:g} s, after {most} faults")


def _refuse_failure(side: _Side) -> None:
    """Raise LabError if the migration came to an end that is none."""
    info = side.qmp.execute("query-migrate")
    if info.get("status") in ("failed", "cancelled", "postcopy-paused"):
        raise LabError(f"the migration is {info['status']}: {info.get('error-desc', 'no reason given')}")
