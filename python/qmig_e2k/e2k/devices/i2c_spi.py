"""I2C and SPI controllers, with reset control (`e2k-i2c-spi`, spec/e2k-machine.md 3.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.e2k.devices.pci import MULTIFUNCTION, PciDevice, PciFunction, pci_fields
from qmig_e2k.e2k.hooks import after_load, before_save
from qmig_e2k.e2k.registers import Group, octets, words
from qmig_e2k.vmstate import VMStateDescription, uint32

if TYPE_CHECKING:
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words32

BODY = Group(words("ctrl", uint32, 16), octets("data", 64))


class I2cSpi(PciDevice):
    """The controllers, 1fff:8018, or 8028 in the hub of EPIC models; reset control is in configuration space.

    Attributes:
        model: CPU model.
        ctrl: control area.
        data: data area.
    """

    ctrl: Words32
    data: bytearray

    def __init__(self, model: CpuModel, path: str = "0000:00:02.3") -> None:
        """The controllers in their reset state."""
        self.model = model
        device = 0x8028 if model.epic else 0x8018
        super().__init__(path, PciFunction(device, 0x0C0500, header_type=MULTIFUNCTION, pin=1))

    def reset(self) -> None:
        """Values after power-on."""
        super().reset()
        BODY.reset(self)


I2C_SPI = VMStateDescription("e2k-i2c-spi", fields=pci_fields(*BODY.FIELDS), pre_save=before_save, post_load=after_load)
