"""What the CPU remembers of memory accesses: speculative loads, locked lines, the words of an exclusive pair."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmig_e2k.e2k.cpu.parts import Part, array
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import words
from qmig_e2k.vmstate import uint64

_DAM_VALID = np.uint64(1 << 58)
_DAM_ZERO = np.uint64(31 << 59)
_LINE = 3
"""Doublewords of a line in the memory lock table."""
_LINE_VALID = np.uint64(1 << 53)
_LINE_VALID_V6 = np.uint64(1)


def _check(cpu: Any, _version: int) -> None:
    bad = array(cpu.dam) & _DAM_ZERO
    if bad.any():
        at = int((bad != 0).argmax())
        require(False, "C34", "cpu %d: invalid DAM entry %u", cpu.index, at, field=f"dam[{at}]")


DAM = Part(
    "cpu/dam", words("dam", uint64, 32), needed=lambda cpu: bool((array(cpu.dam) & _DAM_VALID).any()), check=_check
)
"""Disambiguation table. Without a valid entry it says nothing."""


def _has_locked_line(cpu: Any) -> bool:
    valid = _LINE_VALID_V6 if cpu.isa >= 6 else _LINE_VALID
    return cpu.isa >= 3 and bool((array(cpu.mlt)[::_LINE] & valid).any())


MLT = Part("cpu/mlt", words("mlt", uint64, 16 * _LINE), needed=_has_locked_line)
"""Memory lock table: three doublewords for each of 16 lines."""

LOCK_PAIR = Part("cpu/lock_pair", words("last_val", uint64, 2))
"""Words remembered by a locked load, for the following wait-store."""
