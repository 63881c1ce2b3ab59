"""Pages of `info` about the machine itself: registers, the map of its memory, its names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from qmig_e2k._core import __version__
from qmig_e2k.e2k.cpu.show import describe
from qmig_e2k.savevm import VmStateHandler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qmig_e2k.migration.machine import Machine, MappedRam

__all__ = ["cache_size", "mtree", "name", "registers", "uuid", "version"]

_WHOLE = "0000000000000000-ffffffffffffffff"
_IO = "  0000000000000000-000000000000ffff (prio 0, i/o): io"


def registers(machine: Machine, values: Mapping[str, Any]) -> list[str]:
    """`info registers [-a] [vcpu]`: of one CPU, the first if none is named, or of all."""
    cpus = _cpus(machine)
    if values["a"]:
        return [line for index, parts in cpus.items() for line in _cpu(index, parts)]
    if not cpus:
        return ["No CPU available"]
    index = values["vcpu"] if values["vcpu"] is not None else next(iter(cpus))
    return _cpu(index, cpus[index]) if index in cpus else [f"CPU#{index} not available"]


def _cpus(machine: Machine) -> dict[int, list[tuple[str, Any]]]:
    """The descriptions and objects of each CPU, by its number."""
    found: dict[int, list[tuple[str, Any]]] = {}
    for entry in machine.registry:
        handler = entry.handler
        if isinstance(handler, VmStateHandler) and handler.description.name in ("cpu_common", "cpu"):
            found.setdefault(entry.instance_id, []).append((handler.description.name, handler.obj))
    return dict(sorted(found.items()))


def _cpu(index: int, parts: list[tuple[str, Any]]) -> list[str]:
    return ["", f"CPU#{index}", *(line for name, obj in parts for line in describe(name, obj))]


def mtree(machine: Machine, values: Mapping[str, Any]) -> list[str]:
    """`info mtree [-f]`: the RAM that the guest sees, block by block; with `-f` without the regions around it."""
    if values["f"]:
        return [
            *("FlatView #0", ' AS "I/O", root: io', " Root memory region: io", _IO, ""),
            *("FlatView #1", ' AS "memory", root: system', " Root memory region: " + _root(machine)),
            *("  " + line for line in _regions(machine, flat=True)),
            "",
        ]
    inside = ["    " + line for line in _regions(machine, flat=False)]
    return ["address-space: memory", f"  {_WHOLE} (prio 0, i/o): system", *inside, "", "address-space: I/O", _IO, ""]


def _root(machine: Machine) -> str:
    """A single block is its own root."""
    return machine.memory_map[0].block.name if len(machine.memory_map) == 1 else "system"


def _regions(machine: Machine, *, flat: bool) -> Iterator[str]:
    for part in sorted(machine.memory_map, key=lambda part: part.address):
        yield f"{_span(part.address, part.length)} (prio 0, ram): {_region(part, flat=flat)}"


def _region(part: MappedRam, *, flat: bool) -> str:
    name = part.block.name
    if part.length == part.block.size:
        return name
    if flat:
        return f"{name} @{part.offset:016x}" if part.offset else name
    return f"alias {name}.{part.offset:x} @{name} {_span(part.offset, part.length)}"


def _span(start: int, length: int) -> str:
    return f"{start:016x}-{start + max(length, 1) - 1:016x}"


def version(_machine: Machine) -> list[str]:
    """`info version`: whose monitor this is like, and this package."""
    return [f"7.2.0qmig_e2k {__version__}"]


def name(machine: Machine) -> list[str]:
    """`info name`."""
    return [] if machine.label is None else [machine.label]


def uuid(machine: Machine) -> list[str]:
    """`info uuid`."""
    return [str(machine.uuid or UUID(int=0))]


def cache_size(machine: Machine) -> list[str]:
    """`info migrate_cache_size` of 2.9, with its spelling."""
    return [f"xbzrel cache size: {int(machine.settings.parameters['xbzrle-cache-size']) // 1024} kbytes"]
