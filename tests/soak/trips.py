"""The ways in which a machine travels in a soak, and those in which it stays: each leaves one owner, and says which.

A way gets the two sides, drives them over QMP, and returns True if the machine has moved. It sets what it needs, and
`Sides.plain` takes that back: one process lives through all of them.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from qmig_e2k.monitor.client import QmpClient, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 120.0
"""For each thing that is waited for; a busy host takes its time."""
PATIENT = 10_000
"""Milliseconds that the machine may stand still: on a busy host nothing faster than its guest may be had."""
SLOW = 1 << 20
"""Bytes a second where something shall happen in between."""
FINAL = frozenset({"completed", "failed", "cancelled"})
SWITCHED = (
    "xbzrle",
    "compress",
    "multifd",
    "auto-converge",
    "postcopy-preempt",
    "postcopy-ram",
)


class SoakError(Exception):
    """The soak found something."""


class Sides:
    """The two processes; `source` has the machine. `folder` is for sockets; `recoveries` counts them."""

    def __init__(self, source: QmpClient, destination: QmpClient, folder: Path, *, tls: bool = False) -> None:
        self.source, self.destination = source, destination
        self.tls = tls
        self.recoveries = 0
        self._folder = folder
        self._numbers = itertools.count()

    def exchange(self) -> None:
        """The machine has moved: what was the source is made ready to receive it again."""
        self.source.execute("system_reset")
        self.source, self.destination = self.destination, self.source

    def plain(self) -> None:
        """Both as they were when they started."""
        for side in (self.source, self.destination):
            states = [{"capability": name, "state": False} for name in SWITCHED]
            states.append({"capability": "events", "state": True})
            side.execute("migrate-set-capabilities", capabilities=states)
            side.execute("migrate-set-parameters", max_bandwidth=0, max_postcopy_bandwidth=0, downtime_limit=PATIENT)
            if self.tls:
                side.execute("migrate-set-parameters", tls_creds="")

    def switch(self, *names: str, **parameters: Any) -> None:
        """Switch capabilities on at both sides and set parameters of both."""
        states = [{"capability": name, "state": True} for name in names]
        for side in (self.source, self.destination):
            side.execute("migrate-set-capabilities", capabilities=states)
            if parameters:
                side.execute("migrate-set-parameters", **parameters)

    def listen(self) -> str:
        """Let the destination wait, by turns at a port and at a unix socket; returns where."""
        number = next(self._numbers)
        uri = f"unix:{self._folder}/{number}" if number % 2 else "tcp:127.0.0.1:0"
        self.destination.execute("migrate-incoming", uri=uri)
        return self.address(uri)

    def address(self, uri: str) -> str:
        """Where a destination that was told to listen at `uri` does."""
        if uri.startswith("unix:"):
            return uri
        found = self.destination.execute("query-migrate")["socket-address"][0]
        return f"tcp:{found['host']}:{found['port']}"

    def recover(self) -> str:
        """Let a paused destination wait for its source once more; returns where."""
        uri = f"unix:{self._folder}/{next(self._numbers)}"
        until(lambda: recovers(self.destination, uri), "a destination that takes a new connection")
        return uri

    def wait(self, status: str, *sides: QmpClient) -> None:
        """Wait until `sides` (all) have said that they came to `status`. Raises SoakError if one ends otherwise.

        By events: query-migrate may still tell of the trip before, in the other direction.
        """
        for side in sides or (self.source, self.destination):
            reach(side, status)

    def run_states(self) -> tuple[str, str]:
        """Of the source and the destination."""
        return tuple(side.execute("query-status")["status"] for side in (self.source, self.destination))  # type: ignore[return-value]


def until(condition: Callable[[], Any], what: str) -> None:
    """Poll until `condition` holds. Raises SoakError after `DEADLINE_S`."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() >= end:
            raise SoakError(f"{what} did not come within {DEADLINE_S:g} s")
        time.sleep(0.01)


def reach(side: QmpClient, status: str) -> None:
    """Wait for the event of `status`. Raises SoakError if `side` ends otherwise, or does not come there in time."""
    end = time.monotonic() + DEADLINE_S
    while (left := end - time.monotonic()) > 0:
        event = side.event(left)
        now = event["data"]["status"] if event and event["event"] == "MIGRATION" else None
        if now == status:
            return
        if now in FINAL:
            why = side.execute("query-migrate").get("error-desc", "no reason given")
            raise SoakError(f"{status} was wanted, {now} it is: {why}")
    raise SoakError(f"status {status} did not come within {DEADLINE_S:g} s")


def recovers(side: QmpClient, uri: str) -> bool:
    """Whether `migrate-recover` is taken: not before the loss of the source has been noticed."""
    try:
        side.execute("migrate-recover", uri=uri)
    except QmpError as error:
        if "postcopy-paused" not in str(error):
            raise
        return False
    return True


# ways that move


def precopy(sides: Sides) -> bool:
    """Rounds, then the switchover."""
    sides.source.execute("migrate", uri=sides.listen())
    sides.wait("completed")
    return True


def xbzrle(sides: Sides) -> bool:
    """Later rounds as differences."""
    sides.switch("xbzrle")
    return precopy(sides)


def compress(sides: Sides) -> bool:
    """Each page by zlib."""
    sides.switch("compress")
    return precopy(sides)


def multifd(sides: Sides, method: str = "none") -> bool:
    """Pages on channels of their own."""
    sides.switch("multifd", multifd_channels=3, multifd_compression=method)
    return precopy(sides)


def multifd_zstd(sides: Sides) -> bool:
    """The same, compressed."""
    return multifd(sides, "zstd")


def auto_converge(sides: Sides) -> bool:
    """The guest is slowed down if it must be."""
    sides.switch("auto-converge")
    return precopy(sides)


def tls(sides: Sides) -> bool:
    """Encrypted; plain where there are no certificates."""
    if sides.tls:
        sides.source.execute("migrate-set-parameters", tls_creds="client", tls_hostname="localhost")
        sides.destination.execute("migrate-set-parameters", tls_creds="server")
    return precopy(sides)


def postcopy(sides: Sides, *more: str) -> bool:
    """The machine runs there before its memory is there."""
    sides.switch("postcopy-ram", *more)
    sides.source.execute("migrate", uri=sides.listen())
    sides.source.execute("migrate-start-postcopy")
    sides.wait("completed")
    return True


def preempt(sides: Sides) -> bool:
    """The same; what is asked for has a channel of its own."""
    return postcopy(sides, "postcopy-preempt")


def recovered(sides: Sides, *more: str) -> bool:
    """Postcopy that loses its link and goes on by another."""
    sides.switch("postcopy-ram", *more, max_bandwidth=SLOW, max_postcopy_bandwidth=SLOW)
    sides.source.execute("migrate", uri=sides.listen())
    sides.source.execute("migrate-start-postcopy")
    try:
        sides.wait("postcopy-active")
        # a link that is lost before is the end of it
        until(lambda: sides.run_states()[1] == "running", "the machine running there")
        sides.source.execute("migrate-pause")
    except (SoakError, QmpError):
        # a machine that has hardly written anything yet is there before anybody could pause it
        sides.wait("completed")
        return True
    sides.recoveries += 1
    sides.wait("postcopy-paused")
    sides.source.execute("migrate", uri=sides.recover(), resume=True)
    sides.source.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    sides.wait("completed")
    return True


def recovered_preempt(sides: Sides) -> bool:
    """The same with two channels."""
    return recovered(sides, "postcopy-preempt")


# ways that do not


def cancelled(sides: Sides) -> bool:
    """Given up half way; the destination waits for another."""
    sides.source.execute("migrate-set-parameters", max_bandwidth=SLOW)
    sides.source.execute("migrate", uri=sides.listen())
    sides.wait("active")
    sides.source.execute("migrate_cancel")
    sides.wait("cancelled", sides.source)
    sides.wait("failed", sides.destination)
    return False


def broken(sides: Sides) -> bool:
    """A destination that goes away after a megabyte."""
    sides.source.execute("migrate", uri="exec:head -c 1000000 >/dev/null")
    sides.wait("failed", sides.source)
    return False


def full(sides: Sides) -> bool:
    """A disk that is full at once."""
    sides.source.execute("migrate", uri="file:/dev/full")
    sides.wait("failed", sides.source)
    return False


def refused(sides: Sides) -> bool:
    """A destination that is sent something else."""
    sides.destination.execute("migrate-incoming", uri="exec:echo this is no stream")
    sides.wait("failed", sides.destination)
    return False


WAYS = (
    precopy,
    postcopy,
    cancelled,
    xbzrle,
    multifd,
    broken,
    preempt,
    compress,
    recovered,
    refused,
    tls,
    multifd_zstd,
    recovered_preempt,
    full,
    auto_converge,
)
