"""A machine with a legal value off reset in every register: what tests and benchmarks of device state move about.

    source = filled(build("e2k", 64 << 20, cpus=8, model="e16c", tags=True, options=OPTIONS), seed=1)

Every subsection travels that the machine can have. The values are random, the same for the same seed, and cut to what
a run of the machine can produce, so that any other machine of the kind accepts them.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qmig_e2k.e2k.cpu import Cpu
from qmig_e2k.e2k.devices import PCI_BUS, rtc, sic
from qmig_e2k.e2k.devices.pci import PINS, bus_pin, is_pci_device
from qmig_e2k.testing import cpu_state
from qmig_e2k.vmstate import VMStateDescription
from qmig_e2k.vmstate.arrays import ArrayField, BufferField
from qmig_e2k.vmstate.kinds import EqualKind, PositiveLeKind, ScalarField
from qmig_e2k.vmstate.structs import ElementsField, StructField

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmig_e2k.e2k import Machine
    from qmig_e2k.vmstate import VMStateField

M = TypeVar("M", bound="Machine")

_DRAWS = 64
_ALL = (1 << 64) - 1
_VECTOR = 0x3FF
_MASKS: dict[str, dict[str, int]] = {
    "cpu_common": {"halted": 1, "interrupt_request": 0x3FF6},
    "apic": {"lvt": 0xF_FFFF, "count_shift": 7, "nm": 0x7_FF00},
    "cepic": {
        "id": _VECTOR,
        "esr": 0x7E0,
        "esr2": _VECTOR | 1 << 12 | 1 << 16,
        "cir": _VECTOR | 1 << 12,
        "pnmirr": 0x3_3EFF,
        "pnmirr_mask": 0x3_2600,
        "timer_lvtt": _VECTOR | 1 << 12 | 3 << 16,
        "nm_timer_lvtt": 1 << 17,
        "timer_div": 0xF,
        "nm_timer_div": 0xF,
        "svr": _VECTOR,
        "vect_inta": _VECTOR | 7 << 16,
        "wait_for_startup": 1,
    },
    "ioapic": {"irr": 0xFF_FFFF},
    "ioepic": {"int_ctrl": 1 << 12 | 1 << 13 | 3 << 15, "int_rid": 0xFFFF, "msg_data": _VECTOR | 7 << 13},
    "e2k-sic": {
        "rt_mlo": 0xF800_F800,
        "rt_pcim": 0xF800_F800,
        "rt_pciio": 0xF000_F000,
        "rt_pcicfgb": 0x1F_FFF8,
        "rt_msi": ~0xF_FFFF,
    },
    "e2k-iommu": {"flush_pending": 0},
    "PCIDevice": {"irq_state": 1},
    "escc_chn": {"reg": 15},
    "e2k-lt": {
        "counter_limit": 0xFFFF_FE00,
        "counter_start": 0xFFFF_FE00,
        "counter": 0xFFFF_FE00,
        "counter_control": 7,
        "wd_control": 7,
        "irq_level": 3,
    },
    "e2k-spmc": {"g_state": 1, "s_state": 5, "sci_state": 1},
}
"""Bits that a register can have, by description, where that is not all of its width."""


def filled(machine: M, seed: int = 1) -> M:
    """Fill every register of `machine` and return it.

    Args:
        machine: as `build` makes it; its objects are changed in place.
        seed: another one, other values.
    """
    numbers = np.random.default_rng(seed)
    for device in machine.devices:
        if isinstance(device.obj, Cpu) and device.description.name == "cpu":
            cpu_state.fill(device.obj, int(numbers.integers(1 << 32)))
        else:
            fill(device.description, device.obj, numbers)
    _count_interrupts(machine)
    for device in machine.devices:
        # what follows from other registers, and the proof that the values are legal
        description = device.description
        if description.pre_save is not None:
            description.pre_save(device.obj)
        if description.post_load is not None:
            description.post_load(device.obj, description.version_id)
    return machine


def fill(description: VMStateDescription, obj: Any, numbers: np.random.Generator) -> None:
    """Give every field of one device another legal value, at random; what would not travel keeps the one it has.

    Args:
        description: one of the shipped ones.
        obj: the device.
        numbers: where the values come from.
    """
    parts = (description, *description.subsections)
    before = {part: [copy(row.get(owner)) for row, owner, _ in _rows(part, obj)] for part in parts}
    for part in parts:
        for row, owner, name in _rows(part, obj):
            _randomize(row, owner, _MASKS.get(name, {}).get(row.attribute, -1), numbers)
    for inner, owner in _nested(description, obj):
        if inner.name in _RULES:
            _RULES[inner.name](owner)
    for part in description.subsections:
        if part.needed is not None and not part.needed(obj):
            for (row, owner, _), value in zip(_rows(part, obj), before[part], strict=True):
                _put(row, owner, value)


def _nested(description: VMStateDescription, obj: Any) -> Iterator[tuple[VMStateDescription, Any]]:
    """A description with its object, and those of the structures inside."""
    for row in description.fields:
        if isinstance(row, StructField):
            yield from _nested(row.vmsd, row.get(obj))
        elif isinstance(row, ElementsField) and isinstance(row.element, VMStateDescription):
            for element in row.get(obj):
                yield from _nested(row.element, element)
    yield description, obj


def _rows(description: VMStateDescription, obj: Any) -> Iterator[tuple[VMStateField, Any, str]]:
    """The fields whose values a stream may change; each with the object that it is a field of, and of which device."""
    device = description.name.partition("/")[0]
    for inner, owner in _nested(description, obj):
        for row in inner.fields:
            compared = isinstance(row, ScalarField) and isinstance(row.kind, EqualKind | PositiveLeKind)
            there = row.exists is None or row.exists(owner, inner.version_id)
            if isinstance(row, ScalarField | ArrayField | BufferField) and there and not compared:
                yield row, owner, device if inner is description else inner.name


def _randomize(row: VMStateField, owner: Any, bits: int, numbers: np.random.Generator) -> None:
    """Draw until the value is another one."""
    have = copy(row.get(owner))
    for _ in range(_DRAWS if bits else 0):
        if isinstance(row, BufferField):
            _put(row, owner, numbers.bytes(len(have)))
        else:
            assert isinstance(row, ScalarField | ArrayField)
            count = len(have) if isinstance(row, ArrayField) else 1
            words = numbers.integers(1, 1 << 63, count, np.uint64) & np.uint64(bits & _ALL)
            made = words.astype(row.kind.native)
            _put(row, owner, made if isinstance(row, ArrayField) else type(have)(made[0].item()))
        if bytes(row.get(owner)) != bytes(have) if hasattr(have, "__len__") else row.get(owner) != have:
            return


def _put(row: VMStateField, owner: Any, value: Any) -> None:
    have = row.get(owner)
    if isinstance(have, np.ndarray | bytearray):
        have[:] = value
    else:
        setattr(row.owner(owner), row.attribute, value)


def _legal_apic(apic: Any) -> None:
    apic.wait_for_sipi = 1  # or else `apic_sipi` does not travel


def _legal_cepic(cepic: Any) -> None:
    for name in ("timer", "nm_timer"):
        setattr(cepic, f"{name}_cur", getattr(cepic, f"{name}_init") // 2)


def _legal_sic(node: Any) -> None:
    node.mc[sic.memory_controller_words(node.model) :] = 0


def _legal_iommu(iommu: Any) -> None:
    if iommu.model.isa >= 6:
        iommu.ptbar &= (1 << iommu.model.physical_bits) - 1
        iommu.dtbar &= (1 << iommu.model.physical_bits) - 1


def _legal_pci(device: Any) -> None:
    for at, (fixed, writable) in enumerate(zip(device.reset_config, device.wmask, strict=True)):
        device.config[at] = fixed & ~writable | device.config[at] & writable


def _legal_rtc(clock: Any) -> None:
    clock.cmos_data[rtc.REG_A] |= 1
    clock.cmos_data[rtc.REG_B] |= rtc.B_PERIODIC


def _legal_gpio(gpio: Any) -> None:
    gpio.regs &= np.uint32((1 << gpio.pins) - 1)
    gpio.inputs &= (1 << gpio.pins) - 1


_RULES: dict[str, Callable[[Any], None]] = {
    "apic": _legal_apic,
    "cepic": _legal_cepic,
    "e2k-sic": _legal_sic,
    "e2k-iommu": _legal_iommu,
    "PCIDevice": _legal_pci,
    "mc146818rtc": _legal_rtc,
    "e2k-gpio": _legal_gpio,
}
"""What is more than bits, by description."""


def _count_interrupts(machine: Machine) -> None:
    """The root bus counts the pins that its devices assert."""
    counts = [0] * PINS
    for device in machine.devices:
        if is_pci_device(device.description) and device.bus_path is not None:
            for pin in range(PINS):
                counts[bus_pin(device.bus_path, pin)] += int(device.obj.irq_state[pin])
    for bus in (device.obj for device in machine.devices if device.description.name == PCI_BUS.name):
        bus.irq_count[:] = counts[: bus.nirq]
