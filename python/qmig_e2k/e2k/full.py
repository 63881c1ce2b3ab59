"""The devices of the full machine, in the order in which they must load (spec/e2k-machine.md 1.1, 3.0, 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.cpu import CPU, CPU_COMMON
from qmig_e2k.e2k.devices import (
    APIC,
    CEPIC,
    ESCC,
    ESCC_PCI,
    GPIO,
    I2C_SPI,
    IOAPIC,
    IOEPIC,
    IOHUB,
    IOHUB_PCIBRIDGE,
    IOMMU,
    LMSCON,
    LT,
    PCI_BUS,
    PCI_HOST,
    RTC,
    SIC,
    SPMC,
    Apic,
    Cepic,
    Escc,
    EsccPci,
    Gpio,
    I2cSpi,
    Ioapic,
    Ioepic,
    IoHub,
    Iommu,
    Lmscon,
    Lt,
    PciBridge,
    PciBus,
    PciHost,
    Rtc,
    Sic,
    Spmc,
)
from qmig_e2k.vmstate import VMStateDescription, uint8_equal, uint32_equal, uint64_equal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from qmig_e2k.e2k.cpu import Cpu
    from qmig_e2k.e2k.devices import PciDevice
    from qmig_e2k.e2k.models import CpuModel

OPTIONS = ("rtc", "lmscon", "spmc", "i2c-spi", "gpio")
"""Devices that the machine has if it is asked for them, in their order."""
_IDENTITY_PRIORITY = 6
"""Above all priorities in use, so that a mismatch is told before any state is touched."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device object with its description.

    Attributes:
        description: what of it travels.
        obj: the device.
        instance_id: number among the devices of that name; None: numbered automatically.
        bus_path: path on its bus, which becomes part of the section's name.
    """

    description: VMStateDescription
    obj: Any
    instance_id: int | None = None
    bus_path: str | None = None


class Identity:
    """What two machines must have in common, in the first section.

    Attributes:
        isa, mdl: of the CPU model.
        cpus: how many there are.
        ram_size: bytes of main RAM.
        boot_mode: 0 firmware, 1 kernel.
        tags: 1 in memory-tag mode.
    """

    def __init__(self, model: CpuModel, cpus: int, ram_size: int, *, kernel: bool, tags: bool) -> None:
        """The properties of one machine."""
        self.isa, self.mdl = model.isa, model.mdl
        self.cpus = cpus
        self.ram_size = ram_size
        self.boot_mode = int(kernel)
        self.tags = int(tags)

    def reset(self) -> None:
        """Nothing to do: these never change."""


_same_model = uint32_equal.with_hint("both sides need the same CPU model (-cpu)")

E2K_MACHINE = VMStateDescription(
    "e2k-machine",
    fields=[
        _same_model("isa"),
        _same_model("mdl"),
        uint32_equal.with_hint("both sides need the same number of CPUs (-smp)")("cpus"),
        uint64_equal.with_hint("both sides need the same RAM size (-m)")("ram_size"),
        uint8_equal.with_hint("start both sides with firmware (0) or both with a kernel (1)")("boot_mode"),
        uint8_equal.with_hint("both sides need the same tags= setting")("tags"),
    ],
    priority=_IDENTITY_PRIORITY,
)


def full_devices(cpus: Sequence[Cpu], identity: Identity, options: Collection[str]) -> list[Device]:
    """All devices in their reset state; priorities bring identity, buses and IOMMU forward.

    Args:
        cpus: the CPUs, all of one model.
        identity: what the machine compares with the other side.
        options: names of `OPTIONS`.
    """
    model = cpus[0].model
    timers = Lt()
    devices = [Device(E2K_MACHINE, identity)]
    for cpu in cpus:
        devices += [Device(CPU_COMMON, cpu, cpu.index), Device(CPU, cpu, cpu.index), _controller(cpu)]
    return [
        *devices,
        Device(SIC, Sic(model), 0),
        Device(IOMMU, Iommu(model), 0),
        Device(IOEPIC, Ioepic(), 0) if model.epic else Device(IOAPIC, Ioapic(), 0),
        Device(PCI_HOST, PciHost()),
        Device(PCI_BUS, PciBus(4)),
        Device(PCI_BUS, PciBus(0)),
        _function(IOHUB, IoHub()),
        _function(IOHUB_PCIBRIDGE, PciBridge()),
        Device(ESCC, Escc()),
        _function(ESCC_PCI, EsccPci()),
        Device(LT, timers, timers.node),
        *(_option(name, model) for name in OPTIONS if name in options),
    ]


def _controller(cpu: Cpu) -> Device:
    """The interrupt controller of a CPU."""
    if cpu.model.epic:
        return Device(CEPIC, Cepic(cpu.index, cpu.model, cpu), cpu.index)
    return Device(APIC, Apic(cpu.index, cpu.model, cpu), cpu.index)


def _function(description: VMStateDescription, device: PciDevice) -> Device:
    """A PCI device, known by its bus path."""
    return Device(description, device, bus_path=device.path)


def _option(name: str, model: CpuModel) -> Device:
    if name == "rtc":
        return Device(RTC, Rtc())
    if name == "lmscon":
        return Device(LMSCON, Lmscon())
    if name == "spmc":
        return _function(SPMC, Spmc())
    return _function(I2C_SPI, I2cSpi(model)) if name == "i2c-spi" else _function(GPIO, Gpio(model))
