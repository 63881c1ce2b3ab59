"""Whole machines in a legal state in which no register has its reset value, for tests and measurements.

hardware = build("e2k", 64 << 20, cpus=8, options=OPTIONS)
fill(hardware, seed=3)             # every device and CPU, every subsection that the machine can have
state(hardware)                    # all values, by section and register, to be compared
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.e2k.cpu import Cpu
from qmig_e2k.e2k.devices import apic, cepic, rtc
from qmig_e2k.e2k.devices.controllers import HARD, NMI
from qmig_e2k.e2k.devices.pci import PINS, bus_pin
from qmig_e2k.e2k.devices.sic import memory_controller_words
from qmig_e2k.testing import cpu_state
from qmig_e2k.vmstate import VMStateDescription
from qmig_e2k.vmstate.structs import ElementsField, StructField

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.e2k import Machine
    from qmig_e2k.vmstate import VMStateField

_ALL = (1 << 64) - 1
_REQUESTS = 0x30B0
"""Requests to a CPU that no controller drives: POLL, HALT, DEBUG, MCE, TPR."""
_COUNTER = 0xFFFF_FE00
_MASKS = {
    "apic": {"lvt": 0xF_FFFF, "count_shift": 7, "nm": 0x7_FF00},
    "cepic": {"id": 0x3FF, "esr": 0x7E0, "pnmirr": 0x3_3EFF, "timer_div": 0xF, "nm_timer_div": 0xF}
    | dict.fromkeys(("esr2", "cir", "timer_lvtt"), 0xFFFF_F3FF)
    | {"svr": 0x3FF, "vect_inta": 0xFFFF_03FF},
    "ioapic": {"irr": 0xFF_FFFF},
    "ioepic": {"int_ctrl": 0x1_B000, "int_rid": 0xFFFF, "msg_data": 0xE3FF},
    "e2k-sic": {"rt_mlo": 0xF800_F800, "rt_pcim": 0xF800_F800, "rt_pciio": 0xF000_F000, "rt_pcicfgb": 0x1F_FFF8}
    | {"rt_msi": _ALL - 0xF_FFFF},
    "e2k-iommu": {"flush_pending": 0, "dtbar": (1 << 48) - 1},
    "escc_chn": {"reg": 15},
    "e2k-lt": dict.fromkeys(("counter_limit", "counter_start", "counter"), _COUNTER)
    | {"counter_control": 7, "wd_control": 7},
    "e2k-spmc": {"g_state": 1, "s_state": 5},
    "e2k-gpio": {"regs": 0xFFFF, "inputs": 0xFFFF},
    "PCIDevice": {"irq_state": 1},
}
"""Bits that a register can have, where that is not all of its width."""
_FIXED = {"e2k-machine", "cpu_common", "cpu"}
"""Sections that are not filled here: what may not differ, and the CPUs."""
_NOT_DRAWN = {"nirq", "version_id", "config"}
"""Attributes that say what the device is."""


def fill(machine: Machine, seed: int = 1) -> None:
    """Give every register of a machine a value of its own that a run can produce, the same for the same seed.

    Only the identity of PCI devices keeps its value. What the machine's CPU model does not have stays as after reset.
    """
    machine.reset()
    numbers = np.random.default_rng(seed)
    for cpu in machine.cpus:
        if isinstance(cpu, Cpu):
            cpu_state.fill(cpu, seed + cpu.index)
        cpu.halted, cpu.interrupt_request = int(cpu.index == 0), _REQUESTS & ~(0x10 << cpu.index % 2)
    for device in machine.devices:
        description, obj = device.description, device.obj
        if description.name in _FIXED:
            continue
        at_reset = _state(description, obj)
        for row in _rows(description, obj):
            if row.field.attribute not in _NOT_DRAWN:
                _draw(row, numbers)
        _settle(description.name, obj)
        for part in description.subsections:
            if part.needed is not None and not part.needed(obj):
                for row in _rows(part, obj):
                    row.put(at_reset[row.label])
    _connect(machine)


def state(machine: Machine) -> dict[str, dict[str, Any]]:
    """Every value that travels, by section and register, as plain numbers."""
    made: dict[str, dict[str, Any]] = {}
    for device in machine.devices:
        number = sum(name.startswith(f"{device.description.name} ") for name in made)
        made[f"{device.description.name} {number}"] = _state(device.description, device.obj)
    return made


@dataclass(frozen=True, slots=True)
class _Row:
    """One register of one device: the table it is in, its field, and the object that holds it."""

    table: str
    field: VMStateField
    obj: Any
    label: str

    @property
    def value(self) -> Any:
        value = getattr(self.obj, self.field.attribute)
        return value if isinstance(value, int) else list(map(int, value))

    def put(self, value: Any) -> None:
        have = getattr(self.obj, self.field.attribute)
        if isinstance(have, int):
            setattr(self.obj, self.field.attribute, value)
        else:
            have[:] = value


def _rows(description: VMStateDescription, obj: Any, place: str = "") -> Iterator[_Row]:
    """All registers of a device, those of subsections too."""
    for field in description.fields:
        if isinstance(field, StructField):
            yield from _rows(field.vmsd, obj, place)  # the common part of PCI devices, held by the device itself
        elif isinstance(field, ElementsField):
            for index, element in enumerate(getattr(obj, field.attribute)):
                assert isinstance(field.element, VMStateDescription)
                yield from _rows(field.element, element, f"{field.attribute}[{index}].")
        elif hasattr(obj, field.attribute):
            yield _Row(description.name.partition("/")[0], field, obj, place + field.attribute)
    for part in description.subsections:
        yield from _rows(part, obj, place)


def _state(description: VMStateDescription, obj: Any) -> dict[str, Any]:
    return {row.label: row.value for row in _rows(description, obj)}


def _draw(row: _Row, numbers: np.random.Generator) -> None:
    name, at_reset = row.field.attribute, row.value
    mask = np.uint64(_MASKS.get(row.table, {}).get(name, _ALL))
    have = getattr(row.obj, name)
    while row.value == at_reset and mask:
        count = 1 if isinstance(have, int) else len(have)
        if not count:
            return
        drawn = numbers.integers(1, 1 << 64, count, np.uint64) & mask
        if isinstance(have, int):
            dtype = row.field.kind.dtype.newbyteorder("=")  # type: ignore[attr-defined]
            row.put(int(drawn.astype(dtype)[0]))
        else:
            row.put(drawn.astype(np.uint8).tolist() if isinstance(have, bytearray) else drawn.astype(have.dtype))


def _settle(name: str, obj: Any) -> None:
    """Make legal what depends on other registers or on the model."""
    if name == "cepic":
        for timer in ("timer", "nm_timer"):
            setattr(obj, f"{timer}_cur", getattr(obj, f"{timer}_init") // 2)
    elif name == "e2k-sic":
        obj.mc[memory_controller_words(obj.model) :] = 0
    elif name == "e2k-iommu" and obj.model.isa >= 6:
        obj.ptbar &= (1 << 48) - 1
    elif name == "mc146818rtc":
        obj.cmos_data[rtc.REG_A] |= 1
        obj.cmos_data[rtc.REG_B] |= rtc.B_PERIODIC
        obj.period = rtc.periodic_ticks(obj.cmos_data)
    if hasattr(obj, "config"):
        obj.config[4] = 6  # memory and bus master
        obj.config[64:] = bytes((at * 7 + sum(name.encode())) % 255 + 1 for at in range(64, len(obj.config)))


def _connect(machine: Machine) -> None:
    """What one device drives in another: requests to the CPUs, counters of the root bus."""
    counts = [0] * PINS
    for device in machine.devices:
        name, obj = device.description.name, device.obj
        if name == "apic":
            obj.cpu.interrupt_request |= (HARD if apic.interrupt_pending(obj) else 0) | (NMI if obj.nm else 0)
        elif name == "cepic":
            hard, nmi = cepic.interrupt_pending(obj), cepic.nmi_pending(obj)
            obj.cpu.interrupt_request |= (HARD if hard else 0) | (NMI if nmi else 0)
        elif device.bus_path is not None:
            for pin, level in enumerate(obj.irq_state):
                counts[bus_pin(device.bus_path, pin)] += int(level)
    for bus in (device.obj for device in machine.devices if device.description.name == "PCIBUS"):
        bus.irq_count[:] = counts[: bus.nirq]
