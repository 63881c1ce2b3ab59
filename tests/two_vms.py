"""Two machines, a link between them, and any order of what can be done to them: the state machine for hypothesis.

What is drawn never depends on how far a migration has come, so a run can be repeated though its threads are not: every
rule may come at any time, and a command that does not fit is refused. What must hold is said in `check` (after every
rule) and in `settle` (when nothing moves any more). The guests are the core's: one that waits for a missing page does
so without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qmig_e2k import MigrationError, Vm
from qmig_e2k._core import ModelGuest
from qmig_e2k.testing import Proxy
from qmig_e2k.vmstate import VMStateDescription, array, uint64
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from qmig_e2k.migration.handle import Arrival, Migration

SIZE = 1 << 20
GUEST = "random,threads=1,rate=20000"
PATIENCE = 60.0
"""Seconds in which whatever can end has ended."""
MOMENT = 0.05
"""Seconds that a command is waited for which may have to wait for the end of something else."""
POSTCOPY = {"postcopy-active", "postcopy-paused", "postcopy-recover"}
CAPABILITIES = {
    "plain": (),
    "xbzrle": ("xbzrle",),
    "compress": ("compress",),
    "postcopy": ("postcopy-ram",),
    "preempt": ("postcopy-ram", "postcopy-preempt"),
    "paused": ("pause-before-switchover",),
    "postcopy paused": ("postcopy-ram", "pause-before-switchover"),
}
ALL = sorted({name for names in CAPABILITIES.values() for name in names})
FORWARD = (st.integers(0, 200) | st.integers(0, 2 * SIZE)).map(lambda at: (at, None))
BACK = (st.integers(0, 5).map(lambda answers: 8 * answers) | st.integers(0, 60)).map(lambda at: (None, at))
"""After how many bytes a link is cut: into the stream, or of the answers, which have 8 bytes and are few."""
ACTS = [
    *["stop", "start", "cancel", "cut", "release", "fail", "fail", "query", "settings", "go on", "go on"],
    *["pause", "pause", "recover", "recover", "give up", "start postcopy", "start postcopy"],
    *["a moment", "a moment", "a while", "a while", "settle", "settle", "settle"],
]
CALLS = ["start", "stop", "inactivate_storage", "activate_storage", "save", "load"]


class Ledger:
    """Who runs, by the word of the emulators themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self.both = False

    def begin(self, name: str) -> None:
        with self._lock:
            self._running.add(name)
            self.both |= len(self._running) > 1

    def end(self, name: str) -> None:
        with self._lock:
            self._running.discard(name)


class Guest:
    """An emulator with one vCPU; `failures` are calls that raise when they come next."""

    def __init__(self, name: str, vm_ram: object, ledger: Ledger) -> None:
        self.failures: set[str] = set()
        self.words = np.zeros(ModelGuest.REGISTERS, np.uint64)
        self._name, self._ledger = name, ledger
        self._guest = ModelGuest(vm_ram, GUEST, seed=7)  # type: ignore[arg-type]
        self.words[:] = self._guest.registers(0)

    def start(self) -> None:
        self.fail("start")
        self._ledger.begin(self._name)
        self._take()
        self._guest.start()

    def stop(self) -> None:
        self.fail("stop")
        self._guest.stop()
        self.words[:] = self._guest.registers(0)
        self._ledger.end(self._name)

    def inactivate_storage(self) -> None:
        self.fail("inactivate_storage")

    def activate_storage(self) -> None:
        self.fail("activate_storage")

    def fail(self, call: str) -> None:
        if call in self.failures:
            self.failures.discard(call)
            raise RuntimeError(f"{call} fails, as asked")

    def has_begun(self) -> bool:
        return self._guest.steps() > 0

    def verify(self) -> int:
        """Steps so far, all of which are in the memory; the machine stands still."""
        self._take()
        steps, equal, difference = self._guest.verify()
        assert equal, f"after {steps} steps the memory of {self._name} is wrong at {difference}"
        return steps

    def _take(self) -> None:
        self._guest.set_registers(0, [int(word) for word in self.words])


STATE = VMStateDescription(
    "guest",
    fields=[array("words", uint64, ModelGuest.REGISTERS)],
    pre_save=lambda guest: guest.fail("save"),
    post_load=lambda guest, _version: guest.fail("load"),
)


class Side:
    """One machine with its guest."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.name = name
        self.vm = Vm("e2k")
        ram = self.vm.add_ram("e2k.ram", SIZE)
        self.guest = Guest(name, ram, ledger)
        self.vm.machine._emulator = self.guest
        self.vm.register(STATE, self.guest)

    def __repr__(self) -> str:
        return self.name


MIGRATIONS = {
    "by": st.sampled_from(["owner"] * 7 + ["other"]),
    "mode": st.sampled_from([*sorted(CAPABILITIES), "plain", "postcopy", "preempt"]),
    "limits": st.sampled_from([(None, None)]) | FORWARD | BACK,
    "stall": st.booleans(),
    "slow": st.booleans(),
    "autostart": st.booleans(),
    "switch": st.booleans(),
}
sides = st.sampled_from([0, 1])


class TwoVms(RuleBasedStateMachine):
    """The machine is at `owner` and may be on its way to the other side.

    Attributes:
        seen: how often what happened, over all runs.
    """

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.sides = (Side("first", self.ledger), Side("second", self.ledger))
        self.owner = 0
        self.migration: Migration | None = None
        self.arrival: Arrival | None = None
        self.proxy: Proxy | None = None
        self.steps = 0
        self.stalled = False
        self.pending: list[Future[None]] = []
        self.pool = ThreadPoolExecutor(64, thread_name_prefix="commands")
        self.folder = tempfile.TemporaryDirectory()
        self.sides[0].vm.start()
        wait_until(self.sides[0].guest.has_begun, what="a step of the guest")

    # what can be done

    @rule(**MIGRATIONS)
    def migrate(
        self,
        by: str,
        mode: str,
        limits: tuple[int | None, int | None],
        stall: bool,
        slow: bool,
        autostart: bool,
        switch: bool,
    ) -> None:
        """Send the machine to the other side over a link that is cut, or stalls, after so many bytes either way."""
        if self.moving:
            with contextlib.suppress(MigrationError):
                # a second one is refused; if the first has ended just now, this one fails
                assert self.source.vm.migrate("tcp:127.0.0.1:1").ended(PATIENCE)
            return
        self.settle()
        if by == "other":
            # there is no machine: it has been handed over, or is waited for
            if self.other.vm.run_state in ("postmigrate", "inmigrate"):
                self.refused(lambda: self.other.vm.migrate("tcp:127.0.0.1:1"))
            return
        source, destination = self.source, self.other
        if destination.vm.run_state != "inmigrate":
            destination.vm.reset()
        for side in (source, destination):
            side.vm.set_capabilities(**{name.replace("-", "_"): name in CAPABILITIES[mode] for name in ALL})
            limit = 1 << 20 if slow else 0
            side.vm.set_parameters(max_bandwidth=limit, max_postcopy_bandwidth=limit, downtime_limit=300)
        self.arrival = destination.vm.incoming("tcp:127.0.0.1:0")
        assert self.arrival is not None
        (destination.vm.start if autostart else destination.vm.stop)()
        forward, back = limits
        self.stalled = stall and limits != (None, None)
        self.proxy = Proxy(self.arrival.addresses[0]["port"], cut_forward=forward, cut_back=back, stall=stall)
        self.migration = source.vm.migrate(self.proxy.uri)
        if switch:
            self.refused_or_not(self.migration.start_postcopy)

    @rule(what=st.sampled_from(ACTS), side=sides, call=st.sampled_from(CALLS))
    def act(self, what: str, side: int, call: str) -> None:
        """Anything else, at either side; one rule, so that it comes about as often as a migration."""
        vm, handle = self.sides[side].vm, (self.migration, self.arrival)[side]
        if what == "stop":
            self.do(vm.stop)
        elif what == "start":
            self.start(side)
        elif what == "fail":
            self.sides[side].guest.failures.add(call)
        elif what == "query":
            for answer in (vm.machine.control.query_migrate(), vm.machine.control.query_incoming()):
                assert isinstance(json.loads(answer), dict)
        elif what == "settings":
            self.refused_or_not(lambda: vm.set_capabilities(events=True))
            self.refused_or_not(lambda: vm.set_parameters(downtime_limit=200))
        elif what == "go on":
            self.refused_or_not(self.source.vm.resume_switchover)
        elif what == "settle":
            self.settle()
        elif what == "recover":
            self.try_to_recover()
        elif self.migration is None or self.proxy is None or handle is None:
            pass  # the rest is about a migration
        elif what == "cancel":
            handle.cancel()
        elif what == "pause":
            self.refused_or_not(handle.pause)
        elif what == "give up":
            self.refused_or_not(self.migration.give_up)
        elif what == "start postcopy":
            self.refused_or_not(self.migration.start_postcopy)
        elif what == "cut":
            self.proxy.cut()
        elif what == "release":
            self.stalled = False
            self.proxy.release()
        else:
            self.migration.ended({"a moment": 0.005, "a while": 0.05}[what])

    def start(self, side: int) -> None:
        """Not where the machine has been handed over from, or may be while this asks: `cont` there is an order to run
        a machine of which there is another one, and obeyed."""
        there = self.sides[side]
        if side == self.owner:
            allowed = not self.moving or self.status in ("pre-switchover", "postcopy-paused") or self.stalled
        else:
            allowed = self.moving or there.vm.run_state == "inmigrate"
        if allowed and there.vm.run_state not in ("postmigrate", "prelaunch"):
            self.do(there.vm.start)

    @initialize(**MIGRATIONS)
    def begin(self, **drawn: Any) -> None:
        """Something to act on."""
        self.migrate(**drawn)

    # what must hold

    @invariant()
    def check(self) -> None:
        assert not self.ledger.both, "both sides ran at once"
        self.seen[f"status {self.status}"] += 1
        first, second = (side.vm for side in self.sides)
        assert not (first.run_state == second.run_state == first.run_state == "running"), "both say they run"

    def settle(self) -> None:
        """Let everything end that can, recover what is lost, and look whose the machine is and whether it is whole."""
        for side in self.sides:
            side.guest.failures.clear()
        if self.migration is not None:
            assert self.arrival is not None
            assert self.proxy is not None
            try:
                wait_until(self.ended, PATIENCE, "the end of the migration")
            except AssertionError as error:
                here, there = self.migration.info(), self.arrival.info()
                raise AssertionError(f"{error}; source: {here}; destination: {there}") from None
            self.arrival.ended(2.0)
            self.arrival.cancel()  # if nobody came
            self.proxy.close()
            assert self.arrival.ended(PATIENCE)
            self.owner = self.whose()
            self.migration = self.arrival = self.proxy = None
        _, left = wait_for(self.pending, PATIENCE)
        assert not left, "a command never ended"
        self.pending.clear()
        self.check()
        self.verify()

    def ended(self) -> bool:
        """Whether the source is at an end; helps where it waits for somebody's word."""
        assert self.migration is not None
        assert self.arrival is not None
        assert self.proxy is not None
        self.stalled = False
        self.proxy.release()
        # whatever is left may be sent while the machine stands still: on a busy host nothing converges
        self.source.vm.set_parameters(max_bandwidth=0, max_postcopy_bandwidth=0, downtime_limit=60_000)
        if self.status == "pre-switchover":
            self.refused_or_not(self.source.vm.resume_switchover)
        if self.status == "postcopy-paused":
            if self.arrival.done() and self.arrival.status == "failed":
                # the package was cut off: nobody is there to recover to, and it is known here that it never ran there
                self.migration.give_up()
                self.seen["given up"] += 1
            else:
                self.try_to_recover()
        return self.migration.done()

    def whose(self) -> int:
        """Who has the machine now that both handles are at an end."""
        assert self.migration is not None
        assert self.arrival is not None
        error = self.error_of(self.migration)
        arrived = self.error_of(self.arrival) is None
        by = "postcopy" if self.migration.info().get("ram", {}).get("postcopy-bytes") else "precopy"
        self.seen[f"{by}: {'completed' if error is None else error.kind}"] += 1
        if error is None:
            assert self.source.vm.run_state == "postmigrate"
            assert arrived
            return 1 - self.owner
        if error.kind == "ownership-unknown":
            # both stand still unless the destination has got everything; the administrator decides by its status
            assert self.source.vm.run_state == "postmigrate"
            return 1 - self.owner if self.has_arrived() else self.owner
        assert self.source.vm.run_state != "postmigrate"
        assert not arrived, f"{error}, but the machine has arrived"
        assert self.other.vm.run_state in ("inmigrate", "internal-error")
        return self.owner

    def has_arrived(self) -> bool:
        return self.other.vm.run_state != "inmigrate"

    def verify(self) -> None:
        """The machine has every step that it ever did, and goes on where it is."""
        vm, guest = self.source.vm, self.source.guest
        vm.stop()
        steps = guest.verify()
        assert steps >= self.steps, f"{self.steps - steps} steps are lost"
        self.steps = steps
        if vm.run_state == "internal-error":
            vm.reset()  # its emulator failed; what the guest knows is no part of a reset
        vm.start()
        assert vm.run_state == "running"
        self.check()

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            if self.proxy is not None:
                self.proxy.close()
            for side in self.sides:
                side.guest.failures.clear()
                side.vm.close()
            for side in self.sides:
                with contextlib.suppress(MigrationError):
                    side.vm.stop()
            self.pool.shutdown()
            self.folder.cleanup()

    # helpers

    @property
    def source(self) -> Side:
        return self.sides[self.owner]

    @property
    def other(self) -> Side:
        return self.sides[1 - self.owner]

    @property
    def status(self) -> str:
        return self.migration.status if self.migration is not None else "none"

    @property
    def moving(self) -> bool:
        return self.migration is not None and not self.migration.done()

    def do(self, command: Callable[[], None]) -> None:
        """Run a command that may have to wait for the end of a switchover, or for a page; it may be refused."""
        future = self.pool.submit(self.refused_or_not, command)
        self.pending.append(future)
        wait_for([future], MOMENT)

    def refused_or_not(self, command: Callable[[], object]) -> None:
        with contextlib.suppress(MigrationError):
            command()

    def refused(self, command: Callable[[], object]) -> None:
        try:
            command()
        except MigrationError as error:
            assert error.kind == "invalid-state", error  # noqa: PT017  nothing is expected to succeed
        else:
            raise AssertionError("accepted, though it has no machine")

    def try_to_recover(self) -> None:
        """Both sides over a new link, each as far as it is paused."""
        if self.migration is None or self.arrival is None or self.migration.status != "postcopy-paused":
            return
        there = f"unix:{self.folder.name}/{uuid4().hex[:8]}"
        with contextlib.suppress(MigrationError):
            self.arrival.recover(there)
            self.migration.recover(there)
            self.seen["recovery"] += 1

    @staticmethod
    def error_of(handle: Migration | Arrival) -> MigrationError | None:
        try:
            handle.wait(0)
        except MigrationError as error:
            return error
        return None
