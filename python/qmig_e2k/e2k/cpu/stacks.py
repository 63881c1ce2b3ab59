"""Procedure stack, chain stack, user stack."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qmig_e2k.vmstate import uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu.state import Cpu

log = logging.getLogger(__name__)

FIELDS = tuple(uint64(name) for name in ("psp_lo", "psp_hi", "pcsp_lo", "pcsp_hi", "usd_lo", "usd_hi", "sbr"))

BASE = (1 << 48) - 1
"""Base address in the low word of a descriptor."""
DESCRIPTOR_BITS = BASE | 7 << 58
"""Low word of a descriptor: base, protected and access bits."""
_STACK_BITS = BASE | 0xFF << 56
_PROTECTED = 1 << 58
_RECORD = 32


def reset(cpu: Cpu) -> None:
    """Values after power-on; firmware overwrites them."""
    cpu.psp_lo, cpu.psp_hi = 0x0000_0000_0081_0000, 0x0010_0000_0000_0000
    cpu.pcsp_lo, cpu.pcsp_hi = 0x0000_0000_0091_0000, 0x00A1_0000_0000_0000
    cpu.usd_lo, cpu.usd_hi = 0x1800_0000_0000_B000, 0x0000_4000_0000_0000
    cpu.sbr = 0xB000


def check(cpu: Cpu) -> None:
    """Refuse descriptors with reserved bits and indexes beyond their stack (C14 to C19)."""
    for name, low, high in (("PSP", cpu.psp_lo, cpu.psp_hi), ("PCSP", cpu.pcsp_lo, cpu.pcsp_hi)):
        index, size = high & 0xFFFF_FFFF, high >> 32
        cpu.require(low & ~_STACK_BITS == 0, "bad stack descriptor")
        cpu.require(index <= size, f"{name} index {index:#x} beyond size {size:#x}")
        cpu.require(index % _RECORD == 0, f"{name} index {index:#x} misaligned")
        if (low & BASE | size) % 4096:
            log.debug("cpu %d: %s is not a whole number of pages", cpu.index, name)
    if (cpu.pcsp_hi & 0xFFFF_FFFF) + _RECORD > cpu.pcsp_hi >> 32:
        log.debug("cpu %d: PCSP leaves no room for the current frame", cpu.index)
    cpu.require(cpu.usd_lo & ~DESCRIPTOR_BITS == 0 and cpu.usd_hi >> 32 & 15 == 0, "bad user stack descriptor")
    if not cpu.usd_lo & _PROTECTED and cpu.usd_lo & BASE > cpu.sbr:
        log.debug("cpu %d: user stack above its base", cpu.index)
