"""IO-APIC with its 24 pins (spec/e2k-machine.md 3.3). The layout is QEMU's `ioapic`, version 3, minimum 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, array, uint8, uint32, uint64, unused

if TYPE_CHECKING:
    from qmig_e2k.e2k.registers import Words64

PINS = 24
MASKED = 1 << 16
"""Mask bit of a redirection entry."""

_IRR_VERSION = 2
"""First stream version that has irr."""

REGISTERS = Group(
    word("id", uint8),
    word("ioregsel", uint8),
    word("irr", uint32),
    words("ioredtbl", uint64, PINS, reset=MASKED),
)


class Ioapic:
    """One IO-APIC.

    Attributes:
        id: APIC id.
        ioregsel: register selected for the next access.
        irr: level or request of each pin, pin n in bit n.
        ioredtbl: redirection entries; delivery status (bit 12) and remote IRR (bit 14) are inside.
    """

    id: int
    ioregsel: int
    irr: int
    ioredtbl: Words64

    def __init__(self) -> None:
        """An IO-APIC in its reset state."""
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        REGISTERS.reset(self)


def loaded(ioapic: Ioapic, version: int) -> object:
    """post_load: I01; nothing is requested in a version-1 stream.

    Delivering what a level-triggered pin asks for is the emulator's `after_load`, which finds the local APICs loaded.
    """
    if version < _IRR_VERSION:
        ioapic.irr = 0
    require(ioapic.irr >> PINS == 0, "I01", "ioapic: request on a non-existing pin", field="irr")
    return after_load(ioapic, version)


IOAPIC = VMStateDescription(
    "ioapic",
    version_id=3,
    minimum_version_id=1,
    fields=[
        uint8("id"),
        uint8("ioregsel"),
        unused(8, version=_IRR_VERSION),
        uint32("irr", version=_IRR_VERSION),
        array("ioredtbl", uint64, PINS),
    ],
    pre_save=before_save,
    post_load=loaded,
)
