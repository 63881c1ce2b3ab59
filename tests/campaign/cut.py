"""One migration whose wire is cut at one byte, and the verdict: who has the machine, and all of it?"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from campaign.machine import Side, sides
from campaign.modes import Mode, Streams, phase
from qmig_e2k import MigrationError
from qmig_e2k.testing import Fault, Proxy, Way
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qmig_e2k.migration.handle import Arrival, Migration

PATIENCE = 40.0
"""Seconds in which a migration whose wire was cut has to come to rest, on a machine under any load."""
WARM = 300
"""Steps of the guest before its machine is moved."""
ROUNDS_ENOUGH = 4
"""So many passes over memory: differences travel from the third on."""
REQUESTS_ENOUGH = 30
"""So many pages that the guest asked for."""
LAST_WORD = 0.05
"""Seconds for a destination to fail that may also wait for another source."""
OWNERS = ("source", "destination", "unsure", "recovered", "unknown", "stranded")
"""Whose the machine is: the source runs on; the destination has it; it has it and the source does not know; both paused
and went on; both stand still, and the source says that ownership is unknown; the source waits to go on with a
destination that never started, until it is told to give that up."""


@dataclass
class Outcome:
    """How one migration ended.

    Attributes:
        owner: one of OWNERS; None: the rules are broken, and `wrong` says how.
        phase: where the cut was.
        reached: there was a cut; else the stream was shorter this time.
        recovery: seconds from the wish to recover to the end.
        seconds: from the cut until neither side did anything any more.
        streams: what passed, by way and link.
        kinds: of the errors that source and destination reported.
    """

    owner: str | None = None
    phase: str = ""
    reached: bool = False
    recovery: float | None = None
    kinds: tuple[str, str] = ("", "")
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    streams: Streams = field(default_factory=dict)


def kind_of(handle: Migration | Arrival) -> str:
    """The kind of error with which a migration ended; empty if it ended well, or has not."""
    try:
        handle.wait(0)
    except MigrationError as error:
        return str(error.kind) if error.kind != "timeout" else ""
    return ""


class Run:
    """One migration.

    Args:
        mode: how the machine is moved.
        fault: what happens to the wire; None: nothing.
        head: length of the mode's head, for the report.
        certificates: folder of good ones, for TLS.
        again: try once more after a failure, which has to succeed.
        still: the guest writes nothing while it is moved, so that every stream is as long as the one before.
    """

    def __init__(
        self,
        mode: Mode,
        fault: Fault | None,
        *,
        head: int = 0,
        certificates: Path | None = None,
        again: bool = False,
        still: bool = False,
    ) -> None:
        self.mode = mode
        self.fault = fault
        self.head = head
        self.certificates = certificates
        self.again = again
        self.still = still
        self.outcome = Outcome()
        self.seen = (True, False)
        self.cut_at = 0.0

    def __call__(self) -> Outcome:
        """Do it."""
        with sides() as (source, destination, owner, content):
            self.source, self.destination, self.owner, self.content = source, destination, owner, content
            try:
                self._settings()
                source.vm.start()
                wait_until(lambda: source.emulator.steps > WARM, what="a busy guest")
                if self.still:
                    source.emulator.rest()
                self._go()
            except (AssertionError, MigrationError) as error:
                self.outcome.owner = None
                self.outcome.wrong.append(f"{type(error).__name__}: {error}")
            self.outcome.wrong += owner.faults
            if self.outcome.wrong:
                self.outcome.owner = None
        return self.outcome

    def _settings(self) -> None:
        for side, endpoint in ((self.source, "client"), (self.destination, "server")):
            if self.mode.postcopy:
                side.vm.set_capabilities(postcopy_ram=True)
            side.vm.set_capabilities(**dict.fromkeys(self.mode.capabilities, True))
            side.vm.set_parameters(**self.mode.parameters)
            if self.mode.tls:
                side.vm.add_object(
                    "tls-creds-x509", "tls0", dir=str(self.certificates), endpoint=endpoint, sanity_check=False
                )
                side.vm.set_parameters(tls_creds="tls0")

    def _go(self) -> None:
        arrival = self.destination.vm.incoming("tcp:127.0.0.1:0")
        assert arrival is not None
        faults = () if self.fault is None else (self.fault,)
        first = () if self.mode.recover else faults
        with Proxy(arrival.addresses[0]["port"], faults=first, record=True, on_fault=self._look) as proxy:
            migration = self.source.vm.migrate(proxy.uri)
            if self.mode.postcopy:
                migration.start_postcopy()
            if not self.mode.recover:
                self._settle(migration, arrival)
            else:
                self._pause(migration, arrival)
        if self.mode.recover:
            arrival.recover("tcp:127.0.0.1:0")
            with Proxy(arrival.addresses[0]["port"], faults=faults, record=True, on_fault=self._look) as proxy:
                begun = time.monotonic()
                migration.recover(proxy.uri)
                self._settle(migration, arrival, leave=proxy.reached.is_set)
                self.outcome.recovery = time.monotonic() - begun
        if self.fault is not None and proxy.reached.is_set():
            self.outcome.seconds = time.monotonic() - self.cut_at
        self._note(proxy)
        self._judge(migration, arrival)

    def _pause(self, migration: Migration, arrival: Arrival) -> None:
        """Lose the wire that a recovery is for."""
        wait_until(lambda: self.destination.vm.run_state == "running", PATIENCE, "the machine at the destination")
        migration.pause()
        for handle in (migration, arrival):
            wait_until(lambda handle=handle: handle.status == "postcopy-paused", PATIENCE, "the pause")

    def _look(self, _: Fault) -> None:
        """Who had the machine when the wire was cut."""
        self.cut_at = time.monotonic()
        control = self.source.vm.machine.control
        self.seen = control.run_state == "running", self.owner.has("machine") == "destination"

    def _note(self, proxy: Proxy) -> None:
        outcome, fault, mode = self.outcome, self.fault, self.mode
        ways: tuple[Way, ...] = ("forward", "back")
        outcome.streams = {(way, link): proxy.passed(way, link) for way in ways for link in range(proxy.links)}
        if fault is None:
            return
        outcome.reached = proxy.reached.is_set()
        if not outcome.reached:
            return
        ran, arrived = self.seen
        if not mode.tls:
            outcome.phase = phase(mode, outcome.streams, fault.link or 0, self.head)
        elif arrived:
            outcome.phase = "postcopy" if mode.postcopy else "end"
        elif ran:
            outcome.phase = "head" if len(outcome.streams["forward", 0]) < self.head else "memory"
        else:
            outcome.phase = "devices"
        if not (arrived or self.source.vm.machine.control.owned()):
            outcome.phase = "hand-over"  # given away, and not yet taken

    def _enough(self, migration: Migration) -> bool:
        """It has been slow for long enough."""
        ram = migration.info().get("ram", {})
        if self.mode.postcopy:
            return int(ram.get("postcopy-requests", 0)) >= REQUESTS_ENOUGH
        return int(ram.get("dirty-sync-count", 0)) >= ROUNDS_ENOUGH

    def _settle(self, migration: Migration, arrival: Arrival, leave: Callable[[], bool] = lambda: True) -> None:
        """Wait until neither side does anything any more."""
        hurried = False
        begun = time.monotonic()

        def rest() -> bool:
            nonlocal hurried
            if not hurried and (time.monotonic() - begun > 0.5 or self._enough(migration)):
                hurried = True  # it need not converge by itself
                self.source.vm.set_parameters(downtime_limit=2000, max_bandwidth=0, max_postcopy_bandwidth=0)
            if self.mode.tls and migration.done() and arrival.status == "none":
                return arrival.ended(LAST_WORD) or arrival.status == "none"  # the destination waits for a better source
            paused = [handle.status == "postcopy-paused" for handle in (migration, arrival)]
            # a recovery begins in the pause
            return all(one or handle.done() for one, handle in zip(paused, (migration, arrival), strict=True)) and (
                not any(paused) or leave()
            )

        try:
            wait_until(rest, PATIENCE, "rest")
        except AssertionError as error:
            states = [(handle.status, handle.info().get("error-desc")) for handle in (migration, arrival)]
            raise AssertionError(f"{error}: {states}, cut: {leave()}") from None

    def _judge(self, migration: Migration, arrival: Arrival) -> None:
        destination, outcome = self.destination, self.outcome
        outcome.kinds = kind_of(migration), kind_of(arrival)
        states = (migration.status, arrival.status)
        if states[0] == "postcopy-paused" and states[1] in {"postcopy-paused", "completed"}:
            self._recover(migration, arrival)
            outcome.owner = "recovered"
            self._whole(destination, running=True)
        elif states == ("completed", "completed"):
            outcome.owner = "destination"
            self._whole(destination, running=True)
        elif states == ("failed", "completed"):
            assert outcome.kinds[0] == "ownership-unknown", f"the source failed with {outcome.kinds[0]}"
            outcome.owner = "unsure"
            self._whole(destination, running=True)
        elif states == ("failed", "failed") and outcome.kinds[0] == "ownership-unknown":
            outcome.owner = "unknown"
            self._nobody()
        elif states in {("failed", "failed"), ("failed", "none")}:
            outcome.owner = "source"
            self._runs_on(arrival)
        elif states == ("postcopy-paused", "failed"):
            outcome.owner = "stranded"
            with suppress(MigrationError):  # it was heard: then it is for an administrator alone
                migration.give_up()
                assert migration.ended(PATIENCE)
                assert kind_of(migration) == "ownership-unknown"
            self._nobody()
        else:
            raise AssertionError(f"source {states[0]} {outcome.kinds[0]}, destination {states[1]} {outcome.kinds[1]}")

    def _runs_on(self, arrival: Arrival) -> None:
        """As if nothing had been tried."""
        source, destination = self.source, self.destination
        assert source.vm.run_state == "running", f"the source is {source.vm.run_state}"
        assert destination.vm.run_state == "inmigrate", f"the destination is {destination.vm.run_state}"
        steps = source.emulator.steps
        if not self.still:
            wait_until(lambda: source.emulator.steps > steps, what="the guest going on")
        assert self.owner.has("storage") == "source"
        if not self.again:
            self._whole(source, running=True)
            return
        if arrival.done():
            again = destination.vm.incoming("tcp:127.0.0.1:0")
            assert again is not None
            arrival = again
        source.vm.set_parameters(downtime_limit=2000, max_bandwidth=0, max_postcopy_bandwidth=0)
        migration = source.vm.migrate(f"tcp:127.0.0.1:{arrival.addresses[0]['port']}")
        migration.wait(PATIENCE)
        arrival.wait(PATIENCE)
        self._whole(destination, running=True)

    def _nobody(self) -> None:
        """Both stand still, and the source has everything as it was when it stopped: its administrator may start it."""
        assert self.outcome.phase == "hand-over", f"nobody has the machine, cut in {self.outcome.phase}"
        assert self.source.vm.run_state in {"postmigrate", "finish-migrate"}
        assert self.destination.vm.run_state == "inmigrate"
        self._whole(self.source, running=False)
        if self.source.vm.run_state != "postmigrate":
            return
        steps = self.source.emulator.steps
        self.source.vm.start()
        if not self.still:
            wait_until(lambda: self.source.emulator.steps > steps, what="the guest going on")
        self._whole(self.source, running=True)

    def _recover(self, migration: Migration, arrival: Arrival) -> None:
        self.source.vm.set_parameters(max_postcopy_bandwidth=0)
        begun = time.monotonic()
        arrival.recover("tcp:127.0.0.1:0")
        migration.recover(f"tcp:127.0.0.1:{arrival.addresses[0]['port']}")
        migration.wait(PATIENCE)
        arrival.wait(PATIENCE)
        self.outcome.recovery = time.monotonic() - begun

    def _whole(self, side: Side, *, running: bool) -> None:
        """The machine is there, whether it runs as it should, and every byte of it."""
        had = WARM if side is self.source else self.source.emulator.steps
        if running:
            assert side.vm.run_state == "running", f"the {side.emulator.side} is {side.vm.run_state}"
            side.vm.stop()
        wrong = side.wrong(self.content, had)
        assert wrong is None, wrong
