"""savevm, loadvm, delvm: a whole machine as a file of its snapshot directory (spec/control-plane 14.1).

A snapshot is written and read as a migration to and from a file is, by the same code, with the machine standing still.
It is a plain stream whatever the capabilities are, which are for migrations: any machine of its kind can load it, also
with `--incoming file:`. The stream is no way out of this process, so the machine stays ours all the time.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from itertools import chain, count
from typing import TYPE_CHECKING

from qmig_e2k._core import Control, Incoming
from qmig_e2k.errors import MigrationError, StreamError, as_migration_error, migration_error, stream_error
from qmig_e2k.migration.incoming import load, refuse_unmigratable
from qmig_e2k.migration.outgoing import admit, new_outgoing, refuse_absent, refuse_busy
from qmig_e2k.migration.snapshot_files import mark
from qmig_e2k.migration.stream import Saving
from qmig_e2k.savevm import Configuration

if TYPE_CHECKING:
    from qmig_e2k.migration.machine import Machine
    from qmig_e2k.migration.snapshot_files import Draft, Snapshot, SnapshotDirectory

__all__ = ["delvm", "loadvm", "savevm", "snapshots"]

_CHANNEL = "fd:snapshot"


def savevm(machine: Machine, tag: str | None = None, *, replace: bool = True) -> str:
    """Save `machine` as snapshot `tag`; a guest that runs stands still meanwhile and runs on afterwards.

    Args:
        machine: what is to be saved.
        tag: its name; None: `vm-` and the local time, as QEMU makes them.
        replace: a snapshot of that name is replaced, in one step, when the new one is on disk.

    Returns:
        The name.

    Raises:
        MigrationError: `invalid-state`, `blocked`, `invalid-argument` before anything was tried (also for a name that
            is taken, without `replace`); `io`, `device-state`, `cancelled` and the like: nothing is changed, an earlier
            snapshot of that name included. An emulator that does not start again is `invalid-state`, too; then there is
            a snapshot all the same.
    """
    directory = _directory(machine)
    if tag is None:
        now = datetime.now().astimezone().strftime("vm-%Y%m%d%H%M%S")
        tag = next(name for name in chain([now], (f"{now}-{n}" for n in count(2))) if name not in directory)
        replace = False
    if tag in directory and not replace:
        raise migration_error("invalid-argument", f"snapshot {tag!r} already exists: delete it, or take another name")
    with machine.settings_lock:
        admit(machine)
        machine.saving = True
    try:
        with directory.draft(tag, replace=replace) as draft, machine.lock:
            refuse_absent(machine)  # whoever came first may have changed it
            # for whoever takes the file as an incoming migration
            machine.global_state.store(machine.control.run_state)
            ran = machine.stop("save-vm")
            try:
                _save(machine, draft)
            finally:
                if ran:
                    machine.start()
    except Exception as error:
        raise _about(error, f"snapshot {tag!r} was not saved") from error
    finally:
        with machine.settings_lock:
            machine.saving = False
            machine.publish_settings()
    return tag


def _save(machine: Machine, draft: Draft) -> None:
    """The machine stands still: write it, as an outgoing migration that goes nowhere."""
    control = machine.control
    with machine.settings_lock:
        control.set_tls(None)  # what it said last may be of a migration
        control.begin_outgoing(snapshot=True)
        machine.publish_settings()
    control.mark_stopped()
    try:
        _write(machine, draft)
    except BaseException as error:
        control.fail_outgoing(str(as_migration_error(error)))
        raise
    finally:
        control.finish_outgoing()


def _write(machine: Machine, draft: Draft) -> None:
    saving = Saving(machine.registry, Configuration(machine.name), mark(machine.clock.now()))
    out = new_outgoing(machine, saving)
    try:
        out.connect(_CHANNEL, os.dup(draft.fd))
        out.setup(saving.head, saving.starts())
        ends = saving.ends()
        full, tail, _ = saving.devices()
        out.finish(ends, full, tail)
        draft.keep()
    finally:
        saving.cleanup()
        out.close()


def loadvm(machine: Machine, tag: str) -> None:
    """Bring `machine` to the state of snapshot `tag`; it runs afterwards if it ran before.

    Raises:
        MigrationError: `invalid-state`, `blocked`, `invalid-argument`, or `io` for a snapshot that is missing or cut
            off: the machine is as it was. Anything else, StreamErrors among them, comes after its state was given up:
            it stands still (run state `restore-vm` if it ran) and runs no more before a `loadvm` that succeeds.
    """
    directory = _directory(machine)
    with machine.settings_lock:
        refuse_busy(machine)
        refuse_absent(machine)
        machine.dirty_rates.cut()
        machine.restoring = Control()  # its own: this is no incoming migration that anybody could ask for
    try:
        with directory.open(tag) as fd, machine.lock:
            refuse_absent(machine)
            refuse_unmigratable(machine)
            ran = machine.stop("restore-vm")
            machine.lost = f"its state was lost when snapshot {tag!r} could not be loaded"
            try:
                _read(machine, machine.restoring, fd)
            except Exception as error:
                what = f"snapshot {tag!r} could not be loaded, and the machine's former state is lost"
                raise _about(error, what) from error
            machine.lost = None
            if ran:
                machine.start()
            elif machine.control.run_state == "restore-vm":  # an earlier load had failed
                machine.control.set_run_state("prelaunch")
    finally:
        machine.restoring = None


def _read(machine: Machine, control: Control, fd: int) -> None:
    profile = machine.settings.profile
    control.set_parameters(json.dumps(machine.settings.parameters.values()))
    control.begin_incoming()
    source = Incoming(control, machine.blocks, configuration=profile.configuration, footers=profile.footers)
    try:
        source.listen(_CHANNEL, os.dup(fd))
        source.accept()
        if load(machine, control, source, Configuration(machine.name)):
            raise migration_error("unsupported", "it is the stream of a postcopy, which lives by its source")
    finally:
        source.close()


def delvm(machine: Machine, tag: str) -> None:
    """Delete snapshot `tag`. Raises MigrationError (`io`, `invalid-argument`)."""
    _directory(machine).delete(tag)


def snapshots(machine: Machine) -> list[Snapshot]:
    """All snapshots that `machine` could load, the oldest first. Raises MigrationError (`io`, `invalid-state`)."""
    return _directory(machine).list()


def _directory(machine: Machine) -> SnapshotDirectory:
    if machine.snapshots is None:
        remedy = "start with --snapshot-dir DIR, or Vm(snapshot_dir=DIR)"
        raise migration_error("invalid-state", f"this machine has no snapshot directory: {remedy}")
    return machine.snapshots


def _about(error: BaseException, what: str) -> MigrationError:
    """`error`, which says first what has come of it."""
    made = as_migration_error(error)
    text = f"{what}: {made.message}"
    if isinstance(made, StreamError):
        return stream_error(made.kind, text, offset=made.offset, path=made.path)
    return migration_error(made.kind, text)
