"""The source of a migration: admission, and the thread that drives the core's `Outgoing` from the channel to the end.

The core moves RAM; this thread decides and describes: it stops the machine for the switchover, saves device state, and
puts everything back if the migration ends before its commit. After the commit the machine is never started again from
here (design, rule 3), unless a destination of postcopy says that it never ran it.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from qmig_e2k._core import MigrationError, Outgoing, check_uri
from qmig_e2k.errors import as_migration_error, begin, migration_error
from qmig_e2k.migration import tls
from qmig_e2k.migration.blockers import POSTCOPY, RUNNING
from qmig_e2k.migration.descriptors import closed_on_error, refuse_unwanted
from qmig_e2k.migration.handle import Migration
from qmig_e2k.migration.lock import MachineLock
from qmig_e2k.migration.machine import Machine
from qmig_e2k.migration.stream import Saving
from qmig_e2k.savevm import timed

__all__ = ["admit", "migrate", "new_outgoing", "refuse_absent", "refuse_busy", "resume_switchover"]

log = logging.getLogger(__name__)

_SOCKETS = ("tcp:", "unix:")
"""URIs whose channel takes time to open, as TLS does on any. Others are opened inside the command, so that its caller
sees the error."""

_PAUSED = "pre-switchover"
_CANCEL_POLL = 0.02
"""Seconds between looks for a cancel while a switchover is paused: the core cannot wake a Python thread."""


def migrate(machine: Machine, uri: str, fd: int | None = None) -> Migration:
    """Start moving `machine` to `uri`; returns as soon as the migration is under way.

    Args:
        machine: what is to move.
        uri: where to, e.g. `tcp:host:4444`.
        fd: the descriptor for an `fd:` URI, owned from here on, also on error.

    Raises:
        MigrationError: `invalid-argument`, `invalid-state`, `blocked` before anything was tried; `bad-uri`; for all but
            sockets also what opening the channel failed with.
    """
    with closed_on_error(fd), machine.settings_lock:
        refuse_unwanted(uri, fd)
        admit(machine)
        machine.check_settings()
        tls.secure(machine, "client")
        machine.dirty_rates.cut()  # whose dirty log is needed
        machine.control.begin_outgoing()
        try:
            source = _Source(machine, uri)
        except BaseException as error:
            machine.control.fail_outgoing(_text(error))
            machine.control.finish_outgoing()
            raise
    source.launch(fd)
    return source.handle


def resume_switchover(machine: Machine, state: str) -> None:
    """Let a migration that waits in `state` (`pre-switchover`) go on.

    Raises MigrationError (`invalid-state`) if none does.
    """
    present = machine.control.outgoing_status
    if present != state or state != _PAUSED:
        raise migration_error("invalid-state", f"no migration waits in state {state}: it is {present}")
    machine.switchover_released.set()


def admit(machine: Machine) -> None:
    """Raises MigrationError (`invalid-state`, `blocked`) if the machine cannot be sent, or saved, now."""
    refuse_busy(machine)
    machine.refuse_lost()
    refuse_absent(machine)
    reasons = machine.blockers.reasons()
    if reasons:
        raise migration_error("blocked", reasons[0])


def refuse_busy(machine: Machine) -> None:
    """Raises MigrationError (`invalid-state`) while a machine is sent, saved or brought back."""
    if machine.control.outgoing_status in RUNNING:
        raise migration_error("invalid-state", "a migration is in progress already")
    if machine.saving or machine.restoring is not None:
        raise migration_error("invalid-state", "a snapshot is being saved or loaded: wait for its end")


def refuse_absent(machine: Machine) -> None:
    """Raises MigrationError (`invalid-state`) if the machine, or part of it, is elsewhere."""
    incoming = machine.control.incoming_status
    if incoming in POSTCOPY:
        raise migration_error(
            "invalid-state",
            f"memory of this machine is still at its source (incoming: {incoming}); migrate when all has arrived",
        )
    state = machine.control.run_state
    if state == "inmigrate":
        raise migration_error("invalid-state", "the machine waits for an incoming migration")
    if state in ("postmigrate", "finish-migrate"):
        raise migration_error(
            "invalid-state",
            "the machine was handed over by an earlier migration; it has to run (`cont`) or be reset first",
        )


def new_outgoing(machine: Machine, saving: Saving) -> Outgoing:
    """The core's part of the migration that `machine.control` has begun."""
    profile = machine.settings.profile
    return Outgoing(
        machine.control,
        machine.blocks,
        format=profile.format,
        section_id=saving.ram_section_id,
        footers=profile.footers,
        switchover_start=profile.switchover_start,
        dirty_log=machine.dirty_log,
    )


class _Source:
    """One outgoing migration that has been admitted."""

    def __init__(self, machine: Machine, uri: str) -> None:
        self._machine = machine
        self._control = machine.control
        self._uri = uri
        self._saving = Saving(machine.registry, machine.configuration())
        self._out = new_outgoing(machine, self._saving)
        self.handle = machine.departure = Migration(machine.control, uri)

    def launch(self, fd: int | None) -> None:
        """Do what belongs into the command, then start the thread; a failure ends the migration and is raised."""
        try:
            slow = self._slow_to_open
            thread = threading.Thread(target=self._run, args=(slow, fd), name="migration")
            with closed_on_error(fd):
                check_uri(self._uri)
                if slow:
                    begin(thread)
            if not slow:
                self._connect(fd)
                begin(thread)
        except BaseException as error:
            self._end(error)
            raise

    @property
    def _slow_to_open(self) -> bool:
        handshake = self._machine.settings.parameters["tls-creds"] and not self._uri.startswith("file:")
        return bool(handshake) or self._uri.startswith(_SOCKETS)

    def _run(self, slow: bool, fd: int | None) -> None:
        """The migration thread."""
        try:
            if slow:
                self._connect(fd)
            self._switch(postcopy=self._send() == "postcopy")
        except BaseException as error:  # noqa: BLE001  the handle raises it to whoever waits
            self._end(error)
        else:
            self._end(None)

    def _connect(self, fd: int | None) -> None:
        uuid = self._machine.uuid
        self._out.connect(self._uri, fd, uuid=bytes(16) if uuid is None else uuid.bytes)

    def _send(self) -> Literal["switchover", "postcopy"]:
        """Setup, and rounds until the machine should be stopped: to send what is left, or to let it run there first."""
        out, saving = self._out, self._saving
        out.setup(saving.head, saving.starts())
        while True:
            step = out.run(saving.pending())
            if step == "throttle":
                self._machine.throttle(self._control.throttle)
            elif step == "iterate":
                for section in saving.parts():
                    out.write(section)
            else:
                return step

    def _switch(self, *, postcopy: bool) -> None:
        """Stop the machine, save its devices, hand it over; put everything back if that fails before the commit."""
        machine, control = self._machine, self._control
        with machine.lock:
            former = control.run_state
            try:
                ends, full, tail = self._save(former, postcopy=postcopy)
                if postcopy:
                    # Lasts until the destination has all memory, or for ever: the run state `finish-migrate` keeps
                    # every command from the machine, so none has to wait for that.
                    with _released(machine.lock):
                        self._out.postcopy(full, [end for end in ends if end is not None])
                else:
                    self._out.finish(ends, full, tail)
            except BaseException as error:
                control.fail_outgoing(_text(error))  # settles whose the machine is before anything is put back
                self._put_back(former)
                raise
            control.set_run_state("postmigrate")

    def _save(self, former: str, *, postcopy: bool) -> tuple[list[bytes | None], bytes, bytes]:
        """Stop the machine and take everything that is not RAM: END sections, FULL sections, and what follows them."""
        machine, control = self._machine, self._control
        machine.global_state.store(former)
        machine.stop_wanted = False
        times: dict[str, int] = {}
        control.mark_stopped()
        with timed(times, "stop"):
            if not machine.stop("finish-migrate"):
                control.set_run_state("finish-migrate")
        if machine.settings.capabilities["pause-before-switchover"]:
            self._pause(postcopy=postcopy)
        with timed(times, "storage"):
            machine.inactivate_storage()
        control.note_time("stop", sum(times.values()))
        ends = self._saving.ends()
        full, tail, device_times = self._saving.devices()
        for device, microseconds in device_times.items():
            control.note_device_time(device, microseconds)
        return ends, full, tail

    def _pause(self, *, postcopy: bool) -> None:
        """Wait in `pre-switchover` until `migrate-continue`, or a cancel, which the next call into the core reports."""
        released = self._machine.switchover_released
        released.clear()
        if not self._control.set_outgoing_status("active", _PAUSED):
            return
        while self._control.outgoing_status == _PAUSED and not released.wait(_CANCEL_POLL):
            pass
        if not postcopy:  # which goes straight on to `postcopy-active`
            self._control.set_outgoing_status(_PAUSED, "device")

    def _put_back(self, former: str) -> None:
        """Undo the switchover if the machine is still ours.

        Otherwise it stays stopped for its administrator to decide.
        """
        machine, control = self._machine, self._control
        if not control.owned():
            control.set_run_state("postmigrate")
            return
        self._end_throttle()
        try:
            machine.activate_storage()
            if former == "running" and not machine.stop_wanted:
                machine.start()
            else:
                control.set_run_state("paused" if former == "running" else former)
        except MigrationError:
            log.exception("the machine could not be returned to run state %s after a failed migration", former)
            if control.run_state == "finish-migrate":
                control.set_run_state("paused")

    def _reported(self, error: BaseException | None, status: str) -> MigrationError | None:
        """The exception that `Migration.wait` raises."""
        reason = self._control.deadline_reason()
        if status == "cancelled" and (reason is not None or getattr(error, "kind", None) != "cancelled"):
            return migration_error("cancelled", reason or "the migration was cancelled")
        return None if error is None else as_migration_error(error)

    def _end_throttle(self) -> None:
        """The vCPUs get all of their time again."""
        if not self._control.throttle:
            return
        self._control.end_throttle()
        try:
            self._machine.throttle(0)
        except MigrationError:
            log.exception("the machine stays slowed down")

    def _end(self, error: BaseException | None) -> None:
        """Everything is as it shall be: close, reach the final status, and only then wake those who wait."""
        self._saving.cleanup()
        self._out.close()
        self._end_throttle()
        # no other migration begins between the final status and the handle's snapshot
        with self._machine.settings_lock:
            if error is not None:
                self._control.fail_outgoing(_text(error))
            status = self._control.finish_outgoing()
            self.handle.finish(self._reported(error, status))


@contextmanager
def _released(lock: MachineLock) -> Iterator[None]:
    """Gives a lock that is held once to others meanwhile."""
    lock.release()
    try:
        yield
    finally:
        lock.acquire()


def _text(error: BaseException) -> str:
    return str(as_migration_error(error))
