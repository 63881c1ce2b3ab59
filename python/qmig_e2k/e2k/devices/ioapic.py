"""IO-APIC with its 24 pins (spec/e2k-machine.md 3.3). The layout is QEMU's `ioapic`, version 3, minimum 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, array, uint8, uint32, uint64, unused

if TYPE_CHECKING:
    from qmig_e2k.e2k.registers import Words64

PINS = 24
MASKED = 1 << 16
"""Mask bit of a redirection entry."""

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


IOAPIC = VMStateDescription(
    "ioapic",
    version_id=3,
    minimum_version_id=1,
    fields=[
        uint8("id"),
        uint8("ioregsel"),
        unused(8, version=2),
        uint32("irr", version=2),
        array("ioredtbl", uint64, PINS),
    ],
)
