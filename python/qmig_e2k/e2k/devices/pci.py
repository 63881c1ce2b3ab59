"""PCI: host bridge, buses, and what all PCI devices have in common (spec/e2k-machine.md 3.7).

`PCI_DEVICE` is the first field of every PCI device's description; it serves any object with the attributes of
`PciDevice`. What is checked is only what the guest cannot change: identity, class, header type, sizes of windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.e2k.hooks import CheckError, after_load, before_save
from qmig_e2k.vmstate import VMStateDescription, int32, int32_equal, int32_positive_le, struct, uint32, varray
from qmig_e2k.vmstate.arrays import ArrayField, BufferField, Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmig_e2k.e2k.registers import Words32
    from qmig_e2k.vmstate import JsonObject, VMStateField
    from qmig_e2k.vmstate.engine import Loader, Saver

BUS_PRIORITY = 2
"""Before the IOMMU and all devices: their counters must be there when devices load."""
VENDOR_MCST = 0x1FFF
PINS = 4
CONFIG_SIZE, EXPRESS_CONFIG_SIZE = 256, 4096
PCI_DEVICE_VERSION = 2
MULTIFUNCTION, BRIDGE_HEADER = 0x80, 0x01


class PciHost:
    """The host bridge.

    Attributes:
        config_reg: last value written to port 0xcf8.
        migrate_config_reg: it travels.
    """

    migrate_config_reg = True

    def __init__(self) -> None:
        """A bridge in its reset state."""
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        self.config_reg = 0


class PciBus:
    """One bus.

    Attributes:
        nirq: host interrupt pins (4 at the root, none behind a bridge); the same on both sides.
        irq_count: how many device pins assert each.
    """

    def __init__(self, nirq: int) -> None:
        """A bus with `nirq` pins in its reset state."""
        self.nirq = nirq
        self.irq_count = np.zeros(nirq, np.int32)

    def reset(self) -> None:
        """Values after power-on."""
        self.irq_count[:] = 0


PCI_HOST = VMStateDescription(
    "PCIHost",
    fields=[uint32("config_reg")],
    needed=lambda host: getattr(host, "migrate_config_reg", True),
    pre_save=before_save,
    post_load=after_load,
    may_read=("migrate_config_reg",),
)
PCI_BUS = VMStateDescription(
    "PCIBUS",
    fields=[int32_equal("nirq"), varray("irq_count", int32, "nirq")],
    pre_save=before_save,
    post_load=after_load,
    priority=BUS_PRIORITY,
)


def bus_pin(path: str, pin: int) -> int:
    """Pin of the root bus at which a device's pin arrives.

    Args:
        path: bus path of the device: `0000:00:02.2`, behind a bridge `0000:00:00.0:03.1`.
        pin: 0 for INTA.
    """
    for function in path.split(":")[2:]:
        pin += int(function.partition(".")[0], 16)
    return pin % PINS


def host_line(pin: int) -> int:
    """Interrupt line of the controller at which a pin of the root bus arrives."""
    return 15 + pin if pin else 19


@dataclass(frozen=True, slots=True)
class PciFunction:
    """What a PCI function is made as.

    Attributes:
        device: device id; the vendor is MCST.
        class_code: class, subclass and programming interface, 24 bits.
        revision: revision id.
        header_type: 0x80: multifunction, 0x01: a bridge.
        pin: interrupt pin, 1 for INTA, 0: none.
        bars: size in bytes of each memory window, by the window's number.
    """

    device: int
    class_code: int
    revision: int = 0
    header_type: int = 0
    pin: int = 0
    bars: dict[int, int] = field(default_factory=dict)

    def config(self) -> bytes:
        """Configuration space after power-on."""
        made = bytearray(CONFIG_SIZE)
        made[0:4] = VENDOR_MCST.to_bytes(2, "little") + self.device.to_bytes(2, "little")
        made[8:12] = bytes([self.revision]) + self.class_code.to_bytes(3, "little")
        made[14] = self.header_type
        made[61] = self.pin
        return bytes(made)

    def compared(self) -> bytes:
        """Bits that must be equal on both sides, unless the guest can write them."""
        windows = [(16 + 4 * number, 4) for number in self.bars]
        made = _mask((0, 4), (8, 4), (14, 1), (52, 1), (61, 1), *windows)
        made[6] = 0x10  # status: there is a list of capabilities
        if not self.header_type & BRIDGE_HEADER:
            made[44:48] = b"\xff" * 4  # subsystem
        return bytes(made)

    def writable(self) -> bytes:
        """Bits that the guest can write."""
        made = _mask((12, 2), (60, 1), (64, CONFIG_SIZE - 64))
        made[4:6] = (0x0547).to_bytes(2, "little")  # I/O, memory, master, parity, SERR, INTx off
        for number, size in self.bars.items():
            made[16 + 4 * number : 20 + 4 * number] = (-size & 0xFFFF_FFFF).to_bytes(4, "little")
        if self.header_type & BRIDGE_HEADER:
            made[24:28] = b"\xff" * 4  # bus numbers, latency
            made[28:30] = b"\xf0\xf0"
            made[32:40] = b"\xf0\xff" * 4
            made[40:52] = b"\xff" * 12
            made[62:64] = b"\xff\x0f"
        return bytes(made)

    def cleared(self) -> bytes:
        """Bits that the guest clears by writing 1: the errors in the status registers."""
        made = bytearray(CONFIG_SIZE)
        made[7] = 0xF9
        if self.header_type & BRIDGE_HEADER:
            made[31] = 0xF9
        return bytes(made)


def _mask(*ranges: tuple[int, int]) -> bytearray:
    """All ones in `ranges` of (offset, length)."""
    made = bytearray(CONFIG_SIZE)
    for start, size in ranges:
        made[start : start + size] = b"\xff" * size
    return made


class PciDevice:
    """What every PCI device has.

    Attributes:
        path: bus path, e.g. `0000:00:02.2`; for a device behind the bridge `0000:00:00.0:SS.F`.
        version_id: layout of this part that the stream had, 2 when it was not loaded.
        config: configuration space, 256 bytes, 4096 of a PCI Express device.
        cmask: bits of it that must be equal on both sides, unless
        wmask: the guest can write them, or
        w1cmask: clears them by writing 1.
        irq_state: level of each pin, 0 or 1.
    """

    version_id: int

    def __init__(self, path: str, function: PciFunction) -> None:
        """A device at `path` in its reset state."""
        self.path = path
        self.reset_config = function.config()
        self.cmask, self.wmask, self.w1cmask = function.compared(), function.writable(), function.cleared()
        self.config = bytearray(CONFIG_SIZE)
        self.irq_state: Words32 = np.zeros(PINS, np.uint32)
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        self.version_id = PCI_DEVICE_VERSION
        self.config[:] = self.reset_config
        self.irq_state[:] = 0


class _ConfigField(BufferField):
    """Configuration space, compared with the local one where it cannot differ (P01)."""

    __slots__ = ("_bytes",)

    def __init__(self, size: int) -> None:
        express = size == EXPRESS_CONFIG_SIZE
        super().__init__(
            "config", Count(size), exists=lambda pci, _: (len(pci.config) == EXPRESS_CONFIG_SIZE) is express
        )
        self._bytes = size

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        super().save(saver, obj, label, None)
        if out is not None:
            out.append({"name": label, "type": "pci config", "size": self._bytes})

    def load(self, loader: Loader, obj: Any) -> None:
        local = int.from_bytes(obj.config, "little")
        super().load(loader, obj)
        fixed = _number(obj.cmask) & ~_number(obj.wmask) & ~_number(obj.w1cmask)
        differing = (_number(obj.config) ^ local) & fixed
        if differing:
            first = ((differing & -differing).bit_length() - 1) // 8
            raise CheckError("P01", f"pci {obj.path}: config byte {first:#x} differs")


def _number(raw: bytes | bytearray) -> int:
    return int.from_bytes(raw, "little")


class _IrqStateField(ArrayField):
    """Levels of the interrupt pins (P02)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("irq_state", uint32, Count(PINS))

    def shape(self, label: str) -> None:
        """It has a way of its own to be loaded."""

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        super().save(saver, obj, label, None)
        if out is not None:
            out.append({"name": label, "type": "pci irq state", "size": 4 * PINS})

    def load(self, loader: Loader, obj: Any) -> None:
        super().load(loader, obj)
        if max(obj.irq_state) > 1:
            raise CheckError("P02", f"pci {obj.path}: bad irq state")


PCI_DEVICE = VMStateDescription(
    "PCIDevice",
    version_id=PCI_DEVICE_VERSION,
    minimum_version_id=1,
    fields=[
        int32_positive_le("version_id"),
        _ConfigField(CONFIG_SIZE),
        _ConfigField(EXPRESS_CONFIG_SIZE),
        _IrqStateField(),
    ],
    reads=("path", "cmask", "wmask", "w1cmask"),
)
"""What a PCI device's own description begins with."""


def pci_fields(*own: VMStateField) -> Sequence[VMStateField]:
    """Fields of a PCI device: the common part, kept in the device itself, and its own."""
    return (struct("parent", PCI_DEVICE, attr="."), *own)


def is_pci_device(description: VMStateDescription) -> bool:
    """Whether it describes a PCI device, which begins with the common part."""
    return any(getattr(row, "vmsd", None) is PCI_DEVICE for row in description.fields[:1])
