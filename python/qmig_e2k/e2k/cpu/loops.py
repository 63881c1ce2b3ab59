"""Loop counters and control transfer preparation."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Part, Preset
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import uint64

LOOPS = Group(word("lsr", uint64), word("ilcr", uint64), words("ctpr", uint64, 3))

_LCNT = 0xFFFF_FFFF
_LSR_RESERVED = 7 << 61
_ILCR_BITS = _LCNT | 0x1F << 32 | 0x1F << 48
_CTPR_RESERVED = 0x3F << 48 | 7 << 61

LOOP64 = Part(
    "cpu/loop64",
    word("lsr1", uint64),
    word("ilcr1", uint64),
    since=5,
    needed=lambda cpu: cpu.lsr1 != cpu.lsr & _LCNT or cpu.ilcr1 != cpu.ilcr & _LCNT,
)
"""The full counters, where they are more than the low halves of LSR and ILCR."""

LOOP64_ABSENT = (
    Preset("lsr1", lambda cpu: cpu.lsr & _LCNT if cpu.isa >= 5 else 0),
    Preset("ilcr1", lambda cpu: cpu.ilcr & _LCNT if cpu.isa >= 5 else 0),
)

CTPR_HI = Part("cpu/ctpr_hi", words("ctpr_hi", uint64, 3), since=6)


def check(cpu: Any) -> None:
    """Refuse reserved bits and undefined tags (C22, C23)."""
    index = cpu.index
    good = cpu.lsr & _LSR_RESERVED == 0
    require(good, "C22", "cpu %d: reserved bits in loop registers", index, field="lsr")
    good = cpu.ilcr & ~_ILCR_BITS == 0
    require(good, "C22", "cpu %d: reserved bits in loop registers", index, field="ilcr")
    for at, raw in enumerate(cpu.ctpr):
        word_ = int(raw)
        tag, opc = word_ >> 54 & 7, word_ >> 57 & 3
        if word_ & _CTPR_RESERVED or tag > 5 or opc == 2:
            text = "cpu %d: CTPR%u invalid (tag %u opc %u)"
            require(False, "C23", text, index, at + 1, tag, opc, field=f"ctpr[{at}]")
