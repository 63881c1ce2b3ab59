"""Trap information: the read-out stack of trap info registers, return points, recovery point."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmig_e2k.e2k.cpu.parts import Part, array
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word, words
from qmig_e2k.vmstate import int32, uint32, uint64

TIRS = 19
RETURN_POINTS = 32
NO_TIRS = -1

_FIXED = np.uint64(0xFF << 56 | 3 << 50)
"""What a TIR's number decides in its high word: the number, and two bits that are zero."""
_NUMBERS = np.arange(TIRS, dtype=np.uint64) << np.uint64(56)
_TEXT = "cpu %d: invalid trap info"


def _check(cpu: Any, _version: int) -> None:
    index, last = cpu.index, cpu.nr_tirs
    require(NO_TIRS <= last < TIRS, "C31", _TEXT, index, field="nr_tirs")
    require(cpu.sbbp_pos < RETURN_POINTS, "C31", _TEXT, index, field="sbbp_pos")
    count, high = last + 1, array(cpu.tir_hi)
    bad = high & _FIXED != _NUMBERS
    bad[count:] = high[count:] != 0
    if bad.any():
        require(False, "C31", _TEXT, index, field=f"tir_hi[{int(bad.argmax())}]")
    above = array(cpu.tir_lo)[count:]
    if above.any():
        require(False, "C31", _TEXT, index, field=f"tir_lo[{count + int((above != 0).argmax())}]")


TRAP = Part(
    "cpu/trap",
    word("nr_tirs", int32, reset=NO_TIRS),
    word("tir_frozen", uint32),
    words("tir_lo", uint64, TIRS),
    words("tir_hi", uint64, TIRS),
    words("sbbp", uint64, RETURN_POINTS),
    word("sbbp_pos", uint32),
    words("rpr", uint64, 2),
    word("upsrm", uint32),
    check=_check,
)
