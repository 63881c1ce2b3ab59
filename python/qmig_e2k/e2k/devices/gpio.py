"""General-purpose pins (`e2k-gpio`, spec/e2k-machine.md 3.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.devices.pci import MULTIFUNCTION, PciDevice, PciFunction, pci_fields
from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, uint32

if TYPE_CHECKING:
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words32

BODY = Group(words("regs", uint32, 8), word("inputs", uint32))


class Gpio(PciDevice):
    """The pins, 1fff:8014 with 16 of them, or 8025 with 32 in the hub of EPIC models.

    Attributes:
        model: CPU model.
        pins: how many there are; bits above are zero in every register.
        regs: direction, output, level, interrupt enable, edge, status, set, clear.
        inputs: levels of the pins.
    """

    regs: Words32
    inputs: int

    def __init__(self, model: CpuModel, path: str = "0000:00:02.4") -> None:
        """The pins in their reset state."""
        self.model = model
        self.pins = 32 if model.epic else 16
        device = 0x8025 if model.epic else 0x8014
        super().__init__(path, PciFunction(device, 0x088000, header_type=MULTIFUNCTION, pin=1))

    def reset(self) -> None:
        """Values after power-on."""
        super().reset()
        BODY.reset(self)


def _check(gpio: Any, version: int) -> object:
    """post_load (L05)."""
    for name, value in (("regs", max(gpio.regs)), ("inputs", gpio.inputs)):
        require(int(value) >> gpio.pins == 0, "L05", "gpio: reserved bits in %s", name, field=name)
    return after_load(gpio, version)


GPIO = VMStateDescription(
    "e2k-gpio", fields=pci_fields(*BODY.FIELDS), pre_save=before_save, post_load=_check, reads=("pins",)
)
