"""Snapshots over QMP, which are jobs, and their table over HMP (spec/control-plane 14.1).

QEMU keeps snapshots in disk images and wants to be told in which (`vmstate`, `devices`). This machine has no block
devices: its snapshot directory stands for whatever node is named.
"""

import threading
from collections.abc import Callable
from typing import Any

from qmig_e2k.errors import MigrationError, migration_error
from qmig_e2k.migration.machine import Machine
from qmig_e2k.migration.snapshots import delvm, loadvm, savevm, snapshots
from qmig_e2k.monitor.schema import STR, Array, Struct

__all__ = ["WITHOUT_STATE", "WITH_STATE", "delete", "load", "save", "table"]

_Arguments = dict[str, Any]

WITHOUT_STATE = Struct({"job-id": STR, "tag": STR, "devices": Array(STR)})
WITH_STATE = Struct({**WITHOUT_STATE.members, "vmstate": STR})


def save(machine: Machine, arguments: _Arguments) -> None:
    """`snapshot-save`: never replaces one."""
    cancelled = threading.Event()

    def cancel() -> None:
        cancelled.set()  # it may not have begun to write yet
        with machine.settings_lock:
            if machine.saving:
                machine.control.cancel()

    def work() -> None:
        savevm(machine, arguments["tag"], replace=False, cancelled=cancelled)

    _start(machine, "snapshot-save", arguments, work, cancel)


def load(machine: Machine, arguments: _Arguments) -> None:
    """`snapshot-load`."""
    _start(machine, "snapshot-load", arguments, lambda: loadvm(machine, arguments["tag"]))


def delete(machine: Machine, arguments: _Arguments) -> None:
    """`snapshot-delete`."""
    _start(machine, "snapshot-delete", arguments, lambda: delvm(machine, arguments["tag"]))


def _start(
    machine: Machine,
    kind: str,
    arguments: _Arguments,
    work: Callable[[], object],
    cancel: Callable[[], object] | None = None,
) -> None:
    def run() -> None:
        node, devices = arguments.get("vmstate"), arguments["devices"]
        if node is not None and devices and node not in devices:
            raise migration_error("invalid-argument", f"vmstate block device '{node}' does not exist among 'devices'")
        work()

    machine.jobs.start(arguments["job-id"], kind, run, cancel)


def table(machine: Machine) -> list[str]:
    """`info snapshots` as QEMU 7.2 lays it out; there is one place for snapshots, so none is partial."""
    try:
        found = snapshots(machine)
    except MigrationError as error:
        return [str(error)]
    if not found:
        return ["There is no snapshot available."]
    lines = ["List of snapshots present on all disks:", _row("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")]
    for snapshot in found:
        date = snapshot.date.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        lines.append(_row("--", snapshot.tag, _size(snapshot.size), date, _clock(snapshot.vm_clock), ""))
    return lines


def _row(*cells: str) -> str:
    return "{:<9} {:<16} {:>8} {:>19} {:>12} {:>10}".format(*cells)


def _clock(nanoseconds: int) -> str:
    milliseconds = nanoseconds // 10**6
    seconds = milliseconds // 1000
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds % 1000:03}"


def _size(count: int) -> str:
    """Bytes in the greatest unit of which there is one, with three digits."""
    value, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while value >= 1000:
        value, unit = value / 1024, next(units)
    return f"{value:.3g} {unit}"
