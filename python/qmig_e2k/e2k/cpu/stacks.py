"""Procedure stack, chain stack and user stack, and what belongs to them."""

from __future__ import annotations

import logging
from typing import Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import uint64

log = logging.getLogger(__name__)

STACKS = Group(
    word("psp_lo", uint64, reset=0x0000_0000_0081_0000),
    word("psp_hi", uint64, reset=0x0010_0000_0000_0000),
    word("pcsp_lo", uint64, reset=0x0000_0000_0091_0000),
    word("pcsp_hi", uint64, reset=0x00A1_0000_0000_0000),
    word("usd_lo", uint64, reset=0x1800_0000_0000_B000),
    word("usd_hi", uint64, reset=0x0000_4000_0000_0000),
    word("sbr", uint64, reset=0xB000),
)

CRS = Part("cpu/crs", words("crs", uint64, 4), needed=lambda cpu: cpu.rf_form == 1)
"""CR0 and CR1 of the current frame, lo then hi of each; in normal form they are in guest memory."""

CLW = Part("cpu/clw", words("us_cl", uint64, 6))
"""User stack clearing: bottom, top, four words of bit mask."""

BASE = (1 << 48) - 1
"""Base address in the low word of a descriptor."""
DESCRIPTOR_BITS = BASE | 7 << 58
"""Low word of a descriptor: base, protected and access bits."""
_STACK_BITS = BASE | 0xFF << 56
_PROTECTED = 1 << 58
_RECORD = 32


def check(cpu: Any) -> None:
    """Refuse descriptors with reserved bits and indexes beyond their stack (C14 to C19)."""
    number = cpu.index
    for name, low, high in (("PSP", cpu.psp_lo, cpu.psp_hi), ("PCSP", cpu.pcsp_lo, cpu.pcsp_hi)):
        index, size = high & 0xFFFF_FFFF, high >> 32
        if low & ~_STACK_BITS or index > size or index % _RECORD:
            field = name.lower()
            require(low & ~_STACK_BITS == 0, "C14", "cpu %d: bad stack descriptor", number, field=f"{field}_lo")
            text = "cpu %d: %s index 0x%x beyond size 0x%x"
            require(index <= size, "C15", text, number, name, index, size, field=f"{field}_hi")
            text = "cpu %d: %s index 0x%x misaligned"
            require(index % _RECORD == 0, "C16", text, number, name, index, field=f"{field}_hi")
        if (low & BASE | size) % 4096:
            log.debug("C17: cpu %d: %s is not a whole number of pages", number, name)
    if (cpu.pcsp_hi & 0xFFFF_FFFF) + _RECORD > cpu.pcsp_hi >> 32:
        log.debug("C17: cpu %d: PCSP leaves no room for the current frame", number)
    good = cpu.usd_lo & ~DESCRIPTOR_BITS == 0
    require(good, "C18", "cpu %d: bad user stack descriptor", number, field="usd_lo")
    good = cpu.usd_hi >> 32 & 15 == 0
    require(good, "C18", "cpu %d: bad user stack descriptor", number, field="usd_hi")
    if not cpu.usd_lo & _PROTECTED and cpu.usd_lo & BASE > cpu.sbr:
        log.debug("C19: cpu %d: user stack above its base", number)
