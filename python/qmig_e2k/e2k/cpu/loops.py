"""Loop counters and control transfer preparation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.vmstate import array, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu.state import Cpu

FIELDS = (uint64("lsr"), uint64("ilcr"), array("ctpr", uint64, 3))

_LSR_RESERVED = 7 << 61
_ILCR_BITS = 0xFFFF_FFFF | 0x1F << 32 | 0x1F << 48
_CTPR_RESERVED = 0x3F << 48 | 7 << 61


def reset(cpu: Cpu) -> None:
    """Values after power-on."""
    cpu.lsr = cpu.ilcr = 0
    cpu.ctpr[:] = 0


def check(cpu: Cpu) -> None:
    """Refuse reserved bits and undefined tags (C22, C23)."""
    good = cpu.lsr & _LSR_RESERVED == 0 and cpu.ilcr & ~_ILCR_BITS == 0
    cpu.require(good, "reserved bits in loop registers")
    for number, raw in enumerate(cpu.ctpr, 1):
        word = int(raw)
        tag, opc = word >> 54 & 7, word >> 57 & 3
        valid = word & _CTPR_RESERVED == 0 and tag <= 5 and opc != 2
        cpu.require(valid, f"CTPR{number} invalid (tag {tag} opc {opc})")
