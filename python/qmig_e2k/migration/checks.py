"""What would stop a migration, and what is worth knowing before one: looked at, never tried.

Nothing here calls the emulator or a device's `pre_save`; the machine may be running.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from qmig_e2k._core import check_postcopy
from qmig_e2k.e2k.devices.pci import is_pci_device
from qmig_e2k.e2k.machines import FIRMWARE_SIZE, build
from qmig_e2k.e2k.models import DEFAULT_MODEL
from qmig_e2k.errors import MigrationError
from qmig_e2k.migration import tls
from qmig_e2k.savevm import GlobalState, Registry, VirtualClock, VmStateHandler
from qmig_e2k.vmstate.problems import problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.e2k import Machine as Hardware
    from qmig_e2k.migration.machine import Machine

__all__ = ["notes", "stops"]

_NOT_FROM_HERE = ("inmigrate", "postmigrate", "finish-migrate")
_EPIC = frozenset({"cepic", "ioepic"})
_EPIC_MODEL = "e16c"
_SOME_RAM = 1 << 20
_DONE = {"stop": "stopped", "start": "started"}
_BUS_PATH = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](:[0-9a-f]{2}\.[0-7])*")


def stops(machine: Machine, hardware: Hardware, emulator: object) -> Iterator[str]:
    """What would stop a migration now, one sentence each.

    Args:
        machine: what would move.
        hardware: the machine type that it is of.
        emulator: what stops and starts its guest; None: nothing runs.
    """
    yield from (f"migration is blocked: {reason}" for reason in machine.blockers.reasons())
    if not machine.blocks:
        yield "no RAM is registered: use add_ram"
    if machine.control.run_state in _NOT_FROM_HERE:
        yield f"the machine is in run state {machine.control.run_state}"
    if machine.lost is not None:
        yield machine.lost
    if machine.blocks:
        yield from _blocks(machine, hardware)
    for name in ("stop", "start") if emulator is not None else ():
        if not callable(getattr(emulator, name, None)):
            yield f"the emulator has no {name}(), by which its guest is {_DONE[name]}"
    try:
        machine.check_settings()
    except MigrationError as error:
        yield str(error)
    yield from _places(machine)
    yield from _devices(machine, stops=True)
    try:
        tls.resolve(machine, "client", machine.settings.parameters.values())
    except MigrationError as error:
        yield str(error)


def notes(machine: Machine, hardware: Hardware, cpus: int, *, resettable: bool) -> Iterator[str]:
    """What is no obstacle but worth knowing, one sentence each.

    Args:
        machine: what would move.
        hardware: the machine type that it is of.
        cpus: how many vCPUs it has.
        resettable: the emulator can be reset.
    """
    for block in machine.blocks:
        if block.dirty_log == "explicit":
            yield f"RAM block {block.name}: writes are only seen if they are reported by mark_dirty"
    if machine.settings.capabilities["postcopy-ram"] and (caution := _postcopy(machine)):
        yield caution
    absent = _left_out(machine, hardware, cpus)
    if absent:
        shown = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in absent.items())
        yield f"left out of what {hardware.type} has, so the other side must not have them either: {shown}"
    if not resettable and (own := _with_options(machine, hardware)):
        yield f"the emulator has no reset(), so what a stream leaves out of {', '.join(own)} keeps its old value"
    yield from _numbers(machine)
    yield from _devices(machine, stops=False)


def _postcopy(machine: Machine) -> str | None:
    """What postcopy cannot do on this host, if it brought the memory here."""
    try:
        return check_postcopy(machine.blocks)
    except MigrationError as error:
        return f"it cannot arrive here by postcopy: {error}"


def _blocks(machine: Machine, hardware: Hardware) -> Iterator[str]:
    """RAM that the machine type has, and here has not or not in that size."""
    have = {block.name: block.size for block in machine.blocks}
    wanted = {block.name: block.size for block in hardware.blocks}
    if not wanted and hardware.type != "none" and "e2k.firmware" in have:
        wanted["e2k.firmware"] = FIRMWARE_SIZE
    for name, size in wanted.items():
        if name not in have:
            yield f"RAM block {name} is missing: use add_ram({name!r}, size={size})"
        elif have[name] != size:
            yield f"RAM block {name} has {have[name]} bytes, in {hardware.type} it has {size}: add it in that size"


def _devices(machine: Machine, *, stops: bool) -> Iterator[str]:
    """What does not fit between the registered objects and their descriptions."""
    for entry in machine.registry:
        if isinstance(entry.handler, VmStateHandler):
            for problem in problems(entry.handler.description, entry.handler.obj):
                if problem.stops is stops:
                    place = f"{entry.path}/{problem.path}" if problem.path else entry.path
                    yield f"{place}: {problem.text}"


def _places(machine: Machine) -> Iterator[str]:
    """PCI functions of which nobody has told where they are: their pins could not be counted."""
    for entry in machine.registry:
        if isinstance(entry.handler, VmStateHandler) and is_pci_device(entry.handler.description):
            path = entry.idstr.rpartition("/")[0]
            if not _BUS_PATH.fullmatch(path):
                have = f"its bus_path is {path!r}" if path else "it has no bus_path"
                yield f"{entry.path}: {have}; register it with its place, e.g. bus_path='0000:00:02.4'"


def _numbers(machine: Machine) -> Iterator[str]:
    """Sections whose number is not that of the CPU that they are of."""
    for entry in machine.registry:
        if not isinstance(entry.handler, VmStateHandler) or "index" not in entry.handler.description.reads:
            continue
        index = getattr(entry.handler.obj, "index", entry.instance_id)
        if index != entry.instance_id:
            yield (
                f"{entry.path}: index is {index!r}, but the section has the number {entry.instance_id}; "
                f"make them equal (instance_id= at registration)"
            )


def _left_out(machine: Machine, hardware: Hardware, cpus: int) -> Counter[str]:
    """Sections of the machine type that are not registered: how many of each name."""
    have = Counter(entry.idstr for entry in machine.registry)
    model = hardware.model.name if hardware.model else _EPIC_MODEL if _EPIC & have.keys() else DEFAULT_MODEL
    count = 0 if hardware.type == "none" else len(hardware.cpus) or cpus
    complete = Registry(machine.registry.profile)
    made = build(hardware.type, _SOME_RAM, cpus=count, model=model)
    made.register(complete, VirtualClock(), GlobalState(complete.profile))
    return Counter(entry.idstr for entry in complete) - have


def _with_options(machine: Machine, hardware: Hardware) -> list[str]:
    """The emulator's own devices of which a stream may leave something out."""
    made_here = {id(device.obj) for device in hardware.devices}
    return [
        entry.path
        for entry in machine.registry
        if isinstance(entry.handler, VmStateHandler)
        and entry.handler.description.subsections
        and id(entry.handler.obj) not in made_here
    ]
