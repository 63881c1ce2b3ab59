"""savevm, loadvm, delvm: a whole machine as a file of its snapshot directory (spec/control-plane 14.1).

A snapshot is written and read as a migration to and from a file is, by the same code, with the machine standing still.
It is a plain stream whatever the capabilities are, which are for migrations: any machine of its kind can load it, also
with `--incoming file:`. The stream is no way out of this process, so the machine stays ours all the time.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from qmig_e2k._core import Control, Incoming, StoredStream
from qmig_e2k.errors import MigrationError, StreamError, as_migration_error, migration_error, stream_error
from qmig_e2k.migration.incoming import load, refuse_unmigratable
from qmig_e2k.migration.outgoing import admit, new_outgoing, refuse_absent, refuse_busy
from qmig_e2k.migration.snapshot_files import mark
from qmig_e2k.migration.stream import Saving
from qmig_e2k.savevm import Configuration, check_configuration

if TYPE_CHECKING:
    import threading

    from qmig_e2k._core import Block
    from qmig_e2k.migration.machine import Machine
    from qmig_e2k.migration.snapshot_files import Draft, Snapshot, SnapshotDirectory

__all__ = ["delvm", "loadvm", "savevm", "snapshots"]

_CHANNEL = "fd:snapshot"
_SPARE = 100
"""How many snapshots without a name of their own fit into one second."""


def savevm(
    machine: Machine, tag: str | None = None, *, replace: bool = True, cancelled: threading.Event | None = None
) -> str:
    """Save `machine` as snapshot `tag`; a guest that runs stands still meanwhile and runs on afterwards.

    Args:
        machine: what is to be saved.
        tag: its name; None: `vm-` and the local time, as QEMU makes them.
        replace: a snapshot of that name is replaced, in one step, when the new one is on disk.
        cancelled: set: it shall end before it has begun to write; from then on `Control.cancel` ends it.

    Returns:
        The name.

    Raises:
        MigrationError: `invalid-state`, `blocked`, `invalid-argument` before anything was tried (also for a name that
            is taken, without `replace`); `io`, `device-state`, `cancelled` and the like: nothing is changed, an earlier
            snapshot of that name included. Where the snapshot is there all the same, because only what follows it
            failed, the sentence says so: the emulator did not start again (`invalid-state`), or the directory could not
            be brought to disk (`io`).
    """
    directory = _directory(machine)
    if tag is None:
        now = datetime.now().astimezone().strftime("vm-%Y%m%d%H%M%S")
        tags, replace = [now, *(f"{now}-{n}" for n in range(2, _SPARE))], False
    elif tag in directory and not replace:
        raise migration_error("invalid-argument", f"snapshot {tag!r} already exists: delete it, or take another name")
    else:
        tags = [tag]
    with machine.settings_lock:
        admit(machine)
        machine.saving = True
    draft: Draft | None = None
    try:
        with directory.draft(*tags, replace=replace) as draft:
            return _stand_still(machine, draft, cancelled)
    except Exception as error:
        kept = None if draft is None else draft.tag
        what = f"snapshot {tags[0]!r} was not saved" if kept is None else f"snapshot {kept!r} was saved, but then"
        raise _about(error, what) from error
    finally:
        with machine.settings_lock:
            machine.saving = False
            machine.publish_settings()


def _stand_still(machine: Machine, draft: Draft, cancelled: threading.Event | None) -> str:
    """Save the machine between a stop and a start, if it runs; returns the snapshot's name."""
    with machine.lock:
        refuse_absent(machine)  # whoever came first may have changed it
        # for whoever takes the file as an incoming migration
        machine.global_state.store(machine.control.run_state)
        ran = machine.stop("save-vm")
        try:
            tag = _save(machine, draft, cancelled)
        except BaseException as error:
            if ran:
                _start_after(error, machine)
            raise
        if ran:
            machine.start()
        return tag


def _start_after(failure: BaseException, machine: Machine) -> None:
    """Let the machine run on after `failure`, which is told as well if that fails."""
    try:
        machine.start()
    except MigrationError as error:
        made = as_migration_error(failure)
        raise migration_error(made.kind, f"{made}; and then {error}") from failure


def _save(machine: Machine, draft: Draft, cancelled: threading.Event | None) -> str:
    """The machine stands still: write it, as an outgoing migration that goes nowhere."""
    control = machine.control
    with machine.settings_lock:
        machine.dirty_rates.cut()  # whose dirty log is needed
        control.set_tls(None)  # what it said last may be of a migration
        control.begin_outgoing(snapshot=True)
        machine.publish_settings()
        if cancelled is not None and cancelled.is_set():
            control.cancel()
    control.mark_stopped()
    try:
        return _write(machine, draft)
    except BaseException as error:
        control.fail_outgoing(str(as_migration_error(error)))
        raise
    finally:
        control.finish_outgoing()


def _write(machine: Machine, draft: Draft) -> str:
    saving = Saving(machine.registry, Configuration(machine.name), mark(machine.clock.now()))
    out = new_outgoing(machine, saving)
    try:
        out.connect(_CHANNEL, os.dup(draft.fd))
        out.setup(saving.head, saving.starts())
        ends = saving.ends()
        full, tail, _ = saving.devices()
        out.finish(ends, full, tail)
        return draft.keep()
    finally:
        saving.cleanup()
        out.close()


def loadvm(machine: Machine, tag: str) -> None:
    """Bring `machine` to the state of snapshot `tag`; it runs afterwards if it ran before.

    Raises:
        MigrationError: `invalid-state`, `blocked`, `invalid-argument`, `io` for a snapshot that is missing or cut off,
            or a StreamError for one of another machine type or with other RAM: the machine is as it was. Anything else,
            other StreamErrors among them, comes after its state was given up: it stands still (run state `restore-vm`
            if it ran) and runs no more before a `loadvm` that succeeds.
    """
    directory = _directory(machine)
    with machine.settings_lock:
        refuse_busy(machine)
        refuse_absent(machine)
        machine.restoring = Control()  # its own: this is no incoming migration that anybody could ask for
    try:
        with directory.open(tag) as fd, machine.lock:
            refuse_absent(machine)
            refuse_unmigratable(machine)
            try:
                _check_head(machine, fd)
            except MigrationError as error:
                raise _about(error, f"snapshot {tag!r} cannot be loaded, and nothing was done") from error
            machine.dirty_rates.cut()
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


def _check_head(machine: Machine, fd: int) -> None:
    """Raises MigrationError if what stands first, machine type and RAM blocks, shows that this cannot be loaded."""
    if not machine.settings.profile.configuration:
        return
    stored = StoredStream(os.dup(fd), [], footers=machine.settings.profile.footers)
    head = stored.next()
    if head is not None and head["type"] == "configuration":
        check_configuration(
            Configuration(machine.name),
            head["machine"],
            capabilities=head["capabilities"] or (),
            page_bits=head["target_page_bits"],
            offset=head["offset"],
        )
        head = stored.next()
    if head is not None and head["type"] == "start" and head["idstr"] == "ram":
        _check_blocks({block.name: block for block in machine.blocks}, stored.blocks())


def _check_blocks(here: dict[str, Block], stored: list[dict[str, Any]]) -> None:
    """Raises StreamError unless the stored RAM blocks are those that are here, or can be made so."""
    for block in stored:
        name, size, ours = block["name"], block["size"], here.get(block["name"])
        if ours is None:
            raise stream_error("unknown-block", f"there is no RAM block {name!r} here", offset=block["offset"])
        if size > ours.max_size or (size != ours.size and not ours.resizable):
            text = f"it has {size} bytes there and {ours.size} here; start this side with the same memory"
            raise stream_error("block-mismatch", text, offset=block["offset"], path=f"ram/{name}")
    absent = here.keys() - {block["name"] for block in stored}
    if absent:
        raise stream_error("unknown-block", f"the snapshot lacks RAM block {min(absent)!r}, which this machine has")


def _read(machine: Machine, control: Control, fd: int) -> None:
    profile = machine.settings.profile
    control.set_parameters(json.dumps(machine.settings.parameters.values()))
    control.begin_incoming()
    source = Incoming(
        control,
        machine.blocks,
        configuration=profile.configuration,
        footers=profile.footers,
        limits=machine.settings.limits.core,
    )
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
