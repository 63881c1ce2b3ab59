"""One machine as its migrations see it: run state, emulator, RAM, handlers, settings, and the lock that orders them.

Lock order: `Machine.lock` (stop, start, save, load, reset), then `Machine.settings_lock` (short: admission of
migrations, settings, blockers), then the
core's own. The emulator is called with `lock` held and no lock of the core. A command that may not wait for a
switchover looks at the run state first. A load, which waits for its source again and again, does so without `lock`:
run state `inmigrate` and incoming status `active` keep stop, start and reset from the devices.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from qmig_e2k._core import Block, Control, check_postcopy
from qmig_e2k.corelog import forward
from qmig_e2k.errors import MigrationError, migration_error
from qmig_e2k.migration import tls
from qmig_e2k.migration.blockers import POSTCOPY, RUNNING, Blockers
from qmig_e2k.migration.dirty_rate import DirtyRates
from qmig_e2k.migration.jobs import Jobs
from qmig_e2k.migration.lifetime import end_with_program
from qmig_e2k.migration.lock import MachineLock
from qmig_e2k.migration.objects import Objects
from qmig_e2k.migration.settings import Settings
from qmig_e2k.savevm import Configuration, GlobalState, Registry, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from uuid import UUID

    from qmig_e2k.migration.handle import Arrival, Migration
    from qmig_e2k.migration.lifetime import Closable
    from qmig_e2k.migration.notifier import Notifier
    from qmig_e2k.migration.snapshot_files import SnapshotDirectory

__all__ = ["Emulator", "Machine", "MappedRam"]

log = logging.getLogger(__name__)


class Emulator(Protocol):
    """What an emulator offers so that its machine can migrate.

    May also have `reset()`, `throttle(percent)`, `inactivate_storage()` and `activate_storage()`. All are called from
    threads of this package, one at
    a time, with the machine lock held: they must not call back into the machine from another thread and wait for it.
    """

    def stop(self) -> None:
        """Return when no thread of the emulator, device threads included, writes RAM or touches device state."""

    def start(self) -> None:
        """Let the guest run on from the present state.

        If this raises, nothing of it has run: a source that sends by postcopy gets its machine back then.
        """


class _NoEmulator:
    def stop(self) -> None:
        """Nothing runs."""

    def start(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True, slots=True)
class MappedRam:
    """`length` bytes of `block` from `offset` on, seen by the guest at physical address `address`."""

    address: int
    block: Block
    offset: int
    length: int


class Machine:
    """State and hooks of one machine. `Vm` is what users touch; this is what the control plane works on.

    Attributes:
        name: machine type name on the wire.
        label: the name given by `-name`, or None.
        uuid: the machine's UUID, or None.
        cpus: number of vCPUs; 0: not known.
        objects: what was made by `object-add`.
        dirty_log: `explicit` if whoever writes RAM says so by mark_dirty; `auto`: each block's own.
        autostart: the machine runs after an incoming migration (`-S` and `stop` clear it, `cont` sets it).
        blocks: RAM in order of registration.
        memory_map: where the guest sees which RAM.
        registry: the handlers of clock, RAM, run state and devices, registered by whoever makes the machine.
        clock: the guest's time, running while the machine runs.
        global_state: the run state that travels.
        reset_hooks: called when the machine is reset, before the emulator's own.
        dirty_rates: measures how fast the memory is written.
        switchover_released: set by `migrate-continue`.
        arrival: the incoming migration that listens or is being loaded, or the last one.
        departure: the outgoing migration under way, or the last one.
        servers: QMP servers that `close` ends.
        notifiers: what `close` ends last, so that they tell how everything ended.
        snapshots: where its snapshots are, if it has a place for them.
        jobs: what `snapshot-save` and the like have begun.
        saving: a snapshot is being saved, as an outgoing migration.
        restoring: the snapshot that is being loaded, for who would end that.
        lost: why the machine has no state that could run, until something else was loaded.
    """

    def __init__(
        self,
        name: str,
        *,
        emulator: Emulator | None = None,
        label: str | None = None,
        uuid: UUID | None = None,
        settings: Settings | None = None,
        running: bool = False,
        cpus: int = 0,
    ) -> None:
        forward()
        self.name = name
        self.cpus = cpus
        self.label = label
        self.uuid = uuid
        self.settings = settings or Settings()
        self.objects = Objects()
        self.registry = Registry(self.settings.profile)
        self.clock = VirtualClock()
        self.global_state = GlobalState(self.settings.profile)
        self.control = Control(label)
        self.lock = MachineLock()
        self.settings_lock = threading.RLock()
        self.dirty_log: Literal["auto", "explicit"] = "auto"
        self.autostart = True
        self.blocks: list[Block] = []
        self.memory_map: list[MappedRam] = []
        self.reset_hooks: list[Callable[[], None]] = [self.clock.reset, self.global_state.reset]
        self.blockers = Blockers(self.control, self.settings, self.registry.unmigratable)
        self.dirty_rates = DirtyRates(self)
        self._emulator: Emulator = emulator or _NoEmulator()
        self._storage_active = True
        self._cautioned = False
        self._stopping: threading.Thread | None = None
        self.switchover_released = threading.Event()
        self.arrival: Arrival | None = None
        self.departure: Migration | None = None
        self.servers: list[Closable] = []
        self.notifiers: set[Notifier] = set()
        self.snapshots: SnapshotDirectory | None = None
        self.jobs = Jobs(self.control)
        self.saving = False
        self.restoring: Control | None = None
        self.lost: str | None = None
        self.stop_wanted = False
        self.publish_settings()
        if running:
            self.control.set_run_state("running")
            self.clock.start()

    # settings ------------------------------------------------------------------------------------------------------

    def publish_settings(self) -> None:
        """Hand capabilities and parameters to the core, where they take effect at once."""
        enabled = self.settings.capabilities.enabled
        # a snapshot is a plain stream: the others are for migrations
        self.control.set_capabilities([name for name in enabled if name == "events" or not self.saving])
        self.control.set_parameters(json.dumps(self.settings.parameters.values()))

    def set_capabilities(self, changes: Iterable[tuple[str, bool]]) -> None:
        """Switch capabilities on or off, all of `changes` or none.

        Raises:
            MigrationError: `invalid-state` while a migration runs, and for what adds channels while one listens;
                `invalid-argument` and `unsupported` as `Capabilities.checked`; `not-permitted`: `postcopy-ram` on a
                destination where it cannot work.
        """
        with self.settings_lock:
            if self.control.outgoing_status in RUNNING:
                raise migration_error("invalid-state", "capabilities cannot be changed while a migration runs")
            capabilities, changes = self.settings.capabilities, list(changes)
            wanted = capabilities.checked(changes)
            self._refuse_other_channels(wanted)
            if "postcopy-ram" in wanted and not capabilities["postcopy-ram"] and self.control.run_state == "inmigrate":
                self._caution(check_postcopy(self.blocks))
            self.check_throttle("auto-converge" in wanted)
            capabilities.update(changes)
            self.publish_settings()

    def _refuse_other_channels(self, wanted: frozenset[str]) -> None:
        """What decides which connections are waited for stays as it was when that began (spec/control-plane 5.3)."""
        if not self.listens:
            return
        for name in ("multifd", "postcopy-preempt"):
            if (name in wanted) != self.settings.capabilities[name]:
                text = f"capability {name!r} can only be switched before the destination listens; see `-incoming defer`"
                raise migration_error("invalid-state", text)

    @property
    def listens(self) -> bool:
        """An incoming migration waits for its source or is under way; no more once its end is reported."""
        over = self.control.incoming_status in ("completed", "failed")
        return not over and self.arrival is not None and not self.arrival.done()

    def check_postcopy(self) -> None:
        """Raises MigrationError (`not-permitted`, with the remedy) if postcopy is wanted and cannot arrive here."""
        if self.settings.capabilities["postcopy-ram"]:
            self._caution(check_postcopy(self.blocks))

    def _caution(self, text: str | None) -> None:
        """Log, once, what postcopy cannot do on this host."""
        if text and not self._cautioned:
            self._cautioned = True
            log.warning("%s", text)

    def set_parameters(self, changes: Mapping[str, object]) -> None:
        """Change parameters, all of `changes` or none; possible at any time.

        Raises as `Parameters.checked` and `tls.prepare`, while a migration runs also as `Settings.check_deadline`.
        """
        with self.settings_lock:
            wanted = self.settings.parameters.checked(changes)
            if self.control.outgoing_status in RUNNING:
                self.settings.check_deadline(wanted)
            tls.prepare(self, wanted)
            self.settings.parameters.update(changes)
            self.publish_settings()

    def add_blocker(self, reason: str) -> int:
        """Keep the machine from migrating; returns the number for `del_blocker`. Raises as `Blockers.add`."""
        with self.settings_lock:
            return self.blockers.add(reason)

    def del_blocker(self, number: int) -> None:
        """Remove a blocker. Raises as `Blockers.remove`."""
        with self.settings_lock:
            self.blockers.remove(number)

    def configuration(self) -> Configuration:
        """What the machine says of itself in a stream, and compares with what a stream says."""
        uuid = None if self.uuid is None else self.uuid.bytes
        capabilities = self.settings.capabilities
        return Configuration(self.name, capabilities.enabled, uuid, capabilities["validate-uuid"])

    # run state -----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """True while the guest runs."""
        return self.control.run_state == "running"

    def start(self) -> None:
        """Let the guest run: run state `running`, the emulator starts, RESUME. Nothing if it runs already.

        Raises:
            MigrationError: `invalid-state` if the run state forbids it or the emulator did not start (run state
                `internal-error`).
        """
        with self.lock:
            if self.running:
                return
            self.refuse_lost()
            self.activate_storage()
            self.control.set_run_state("running")
            self._run()

    def _run(self) -> None:
        try:
            self._go()
        except Exception as error:
            self.control.set_run_state("internal-error")
            raise migration_error("invalid-state", f"the emulator did not start: {error}") from error
        self.control.emit("RESUME")

    def stop(self, state: str) -> bool:
        """Stop the guest and enter `state`, with STOP; True if it ran, else nothing was done.

        Raises:
            MigrationError: `invalid-state` if the emulator did not stop; the run state is as before.
        """
        with self.lock:
            if not self.running:
                return False
            self._halt()
            with self.settings_lock:
                self.lock.check()
                self.control.set_run_state(state)
                self.control.emit("STOP")
            return True

    def _halt(self) -> None:
        try:
            self._emulator.stop()
        except Exception as error:
            raise migration_error("invalid-state", f"the emulator did not stop: {error}") from error
        self.clock.stop()

    def _go(self) -> None:
        self.clock.start()
        try:
            self._emulator.start()
        except BaseException:
            self.clock.stop()
            raise

    def pause(self) -> None:
        """What QMP `stop` does: before an incoming machine arrives it only says that it shall not start."""
        if self._set_autostart(start=False):
            return
        if self.control.run_state == "finish-migrate":
            self.stop_wanted = True
            return
        self.stop("paused")

    def cont(self) -> None:
        """What QMP `cont` does.

        Raises:
            MigrationError: `invalid-state` during the switchover of a migration, and as `start`.
        """
        former = self.control.run_state
        if self._set_autostart(start=True) or former == "suspended":
            return
        self._refuse_switchover("the machine cannot run on")
        with self.lock:
            # whoever said `cont` did not know of a switchover that this call has waited for: both sides would run
            if self.control.run_state in ("finish-migrate", "postmigrate") and self.control.run_state != former:
                raise migration_error("invalid-state", "the machine cannot run on: it was handed over in the meantime")
            self.start()

    def _set_autostart(self, *, start: bool) -> bool:
        with self.settings_lock:
            if self.control.run_state != "inmigrate":
                return False
            self.autostart = start
            return True

    def reset(self) -> None:
        """What QMP `system_reset` does: devices and emulator return to their first state; a running guest runs on.

        Raises:
            MigrationError: `invalid-state` during the switchover of a migration or while an incoming one is being
                loaded; also if the emulator refused (run state `internal-error` if it ran and stands still now).
        """
        self._refuse_switchover("the machine cannot be reset")
        with self.lock:
            self._refuse_switchover("the machine cannot be reset")
            if self.control.incoming_status in ("active", "device"):
                raise migration_error("invalid-state", "the machine cannot be reset while a migration is being loaded")
            running = self.running
            if running:
                self._halt()
            try:
                self.reset_devices()
                if running:
                    self._go()
            except Exception as error:
                if running:
                    self.control.set_run_state("internal-error")
                    self.control.emit("STOP")
                raise migration_error("invalid-state", f"the emulator could not be reset: {error}") from error
            if not running and self.control.run_state != "inmigrate":
                self.control.set_run_state("prelaunch")
        self.control.emit("RESET", '{"guest": false, "reason": "host-qmp-system-reset"}')

    def reset_devices(self) -> None:
        """Bring devices and emulator to their first state; no event, no run state."""
        with self.lock:
            for hook in self.reset_hooks:
                hook()
            self._hook("reset")

    def _refuse_switchover(self, what: str) -> None:
        if self.control.run_state == "finish-migrate":
            busy = self.control.outgoing_status in POSTCOPY
            why = "while a destination that may run it needs its memory" if busy else "while a migration switches over"
            raise migration_error("invalid-state", f"{what} {why}")

    def check_settings(self) -> None:
        """Raises MigrationError (`invalid-argument`, `unsupported`) if no migration can be as the settings say."""
        settings = self.settings
        settings.check_file()
        settings.check_deadline(settings.parameters.values())
        self.check_throttle(settings.capabilities["auto-converge"])

    def check_throttle(self, wanted: bool) -> None:
        """Raises MigrationError (`unsupported`) if `auto-converge` is wanted and the emulator cannot be slowed down."""
        if wanted and not isinstance(self._emulator, _NoEmulator) and not hasattr(self._emulator, "throttle"):
            text = "capability 'auto-converge' cannot be used: the emulator has no throttle(percent)"
            raise migration_error("unsupported", text)

    def throttle(self, percent: int) -> None:
        """Take `percent` of their time from the vCPUs; 0 ends that.

        Raises MigrationError (`invalid-state`) with the emulator's reason.
        """
        with self.lock:
            try:
                self._hook("throttle", percent)
            except Exception as error:
                raise migration_error("invalid-state", f"the emulator could not be throttled: {error}") from error

    # storage -------------------------------------------------------------------------------------------------------

    def inactivate_storage(self) -> None:
        """Hand the storage over: the emulator writes back and lets go.

        Raises MigrationError (`io`) with the emulator's reason.
        """
        with self.lock:
            if self._storage_active:
                self._storage_active = False  # even if it fails half-way it has to be activated again
                self._storage("inactivate_storage", "let go of")

    def activate_storage(self) -> None:
        """Take the storage back, or over. Raises MigrationError (`io`) with the emulator's reason."""
        with self.lock:
            if not self._storage_active:
                self._storage("activate_storage", "take")
                self._storage_active = True

    def _storage(self, hook: str, verb: str) -> None:
        try:
            self._hook(hook)
        except Exception as error:
            raise migration_error("io", f"the emulator could not {verb} its storage: {error}") from error

    def _hook(self, name: str, *arguments: int) -> None:
        hook = getattr(self._emulator, name, None)
        if hook is not None:
            hook(*arguments)

    # incoming ------------------------------------------------------------------------------------------------------

    def expect_incoming(self) -> None:
        """Run state `inmigrate`, storage belongs to the source. Nothing if that is so already.

        Raises:
            MigrationError: `invalid-state` if this machine has run.
        """
        with self.lock:
            if self.control.run_state != "inmigrate":
                if self.control.run_state != "prelaunch":
                    raise migration_error("invalid-state", "a machine that has run cannot receive a migration")
                self.control.set_run_state("inmigrate")
                self.lost = None
                self._storage_active = False

    def arrive(self, state: str | None) -> None:
        """Leave `inmigrate` when everything is loaded (spec/control-plane 8.3).

        Args:
            state: run state named by the stream; None if it names none.

        Storage that cannot be taken leaves the machine paused: the source has given it away already.

        Raises:
            MigrationError: `invalid-state` if `state` cannot be entered or the emulator did not start.
        """
        with self.lock:
            with self.settings_lock:  # a `cont` or `stop` is either seen here, or finds that `inmigrate` is over
                if state in (None, "running"):
                    state = "running" if self.autostart and self._can_take_storage() else "paused"
                self.control.set_run_state(state)
            if state == "running":
                self._run()

    def _can_take_storage(self) -> bool:
        try:
            self.activate_storage()
        except MigrationError as error:
            log.warning("the machine has arrived but stays paused: %s", error)
            return False
        return True

    def abandon(self) -> None:
        """End what is under way, as far as it can be ended; does not wait.

        A postcopy that sends goes on, for the destination needs the memory. One without a connection is given up, and
        so is one that receives: nothing of the machine is left then, and whoever waits for a page of it waits on.
        """
        self.control.cancel()
        if (restoring := self.restoring) is not None:
            restoring.cancel()
        if self.control.outgoing_status == "postcopy-paused":
            self.control.fail_outgoing("the machine was closed while the destination still needed its memory")
        if self.arrival is not None:
            if self.control.incoming_status in POSTCOPY:
                self.arrival.guard()
                if (stopping := self._halting()) is not None:
                    stopping.join(_STOP_PATIENCE)
            self.arrival.abandon()

    def give_up(self) -> None:
        """Stop a guest that can never run again, for lack of memory; one that waits for a page is only told so."""
        stopping = self._halting()
        while stopping is not None and stopping.is_alive() and not (self.arrival and self.arrival.waiting):
            stopping.join(_CLOSE_POLL)
        if not self.clock.running and self.arrival is not None:
            self.arrival.let_go()

    def _halting(self) -> threading.Thread | None:
        """The one thread that stops the emulator for good; none if nothing ran. The run state says so at once."""
        with self.settings_lock:
            if self.running:
                self.lock.given_up = True
                self.control.set_run_state("internal-error")
                self.control.emit("STOP")
                # no reason for the interpreter to wait, if the guest never gets its page
                self._stopping = threading.Thread(target=self._halt_incomplete, name="stop", daemon=True)
                self._stopping.start()
            return self._stopping

    def _halt_incomplete(self) -> None:
        self.lock.acquire()
        try:
            if self.clock.running:  # else somebody who stopped it was under way already
                self._halt()
            self.lock.given_up = False
        except MigrationError:
            log.exception("a guest with incomplete memory could not be stopped")
        else:
            if self.arrival is not None:
                self.arrival.let_go()
        finally:
            self.lock.release()

    @property
    def stuck(self) -> int:
        """For how many pages of a machine that was given up somebody waits: for ever, as they are nowhere."""
        return self.arrival.waiting if self.arrival is not None and self.arrival.done() else 0

    def close(self) -> None:
        """End migrations and QMP service, and wait for their threads. Idempotent, from any thread.

        A guest that runs here while postcopy still brings its memory is stopped for good. Threads that wait for a page
        of it then cannot be helped, for zeros in place of data might be acted on: they end with the process.
        """
        self.abandon()  # first: a command may be waiting for the end of a switchover
        while self.servers:
            self.servers.pop().close()
        self.jobs.close(self.abandon)
        self.abandon()  # what a last command began
        self.dirty_rates.cut()
        for handle in (self.departure, self.arrival):
            while handle is not None and not handle.ended(_CLOSE_POLL):
                self.abandon()  # a connection that is lost now is not found again
        for notifier in list(self.notifiers):
            notifier.close()
        if self.stuck:
            end_with_program(self)  # before anything that can fail
            log.error("threads wait for %d pages of a machine that was given up: they end with the process", self.stuck)

    def refuse_change(self, what: str) -> None:
        """Raises MigrationError (`invalid-state`) while a migration is under way in either direction."""
        stored = self.saving or self.restoring is not None
        if stored or self.control.outgoing_status in RUNNING or self.control.incoming_status in RUNNING:
            raise migration_error("invalid-state", f"{what} while a migration is under way")

    def refuse_lost(self) -> None:
        """Raises MigrationError (`invalid-state`) if the machine has no state that could run."""
        if self.lost is not None:
            remedy = "load a snapshot (`loadvm`) that is whole first; a reset does not bring back its RAM"
            raise migration_error("invalid-state", f"the machine cannot run: {self.lost}; {remedy}")

    # RAM -----------------------------------------------------------------------------------------------------------

    def read_physical(self, address: int, length: int) -> Iterator[bytes]:
        """Guest memory from physical `address` on, in chunks of at most 1 MiB.

        Raises:
            MigrationError: `invalid-argument` if part of the range is no RAM; raised before the first chunk.
        """
        parts = []
        while length:
            part = next((p for p in self.memory_map if p.address <= address < p.address + p.length), None)
            if part is None:
                raise migration_error("invalid-argument", f"there is no RAM at guest physical address {address:#x}")
            count = min(length, part.address + part.length - address)
            parts.append((part.block, part.offset + address - part.address, count))
            address, length = address + count, length - count
        return _chunks(parts)


def _chunks(parts: list[tuple[Block, int, int]]) -> Iterator[bytes]:
    for block, start, length in parts:
        for offset in range(start, start + length, _CHUNK):
            yield block.read(offset, min(_CHUNK, start + length - offset))


_CHUNK = 1 << 20
_CLOSE_POLL = 0.05
"""Seconds between looks for a lost connection while a closed machine sends its last memory."""
_STOP_PATIENCE = 0.2
"""Seconds after which an emulator that has not stopped is taken to wait for a page."""
