"""Floating-point control and status."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word
from qmig_e2k.vmstate import uint32

_PFPFR_ZERO = 1 << 6 | 0x3FF << 16
_FPCR_ONE = 1 << 6
_FPCR_ZERO = 1 << 7 | 7 << 13 | 0xFFFF << 16
_PRECISION_RESERVED = 1


def _check(cpu: Any, _version: int) -> None:
    fpcr = cpu.fpcr
    for name, good in (
        ("pfpfr", cpu.pfpfr & _PFPFR_ZERO == 0),
        ("fpcr", fpcr & (_FPCR_ONE | _FPCR_ZERO) == _FPCR_ONE and fpcr >> 8 & 3 != _PRECISION_RESERVED),
        ("fpsr", cpu.fpsr <= 0xFFFF),
    ):
        require(good, "C24", "cpu %d: invalid FP control word", cpu.index, field=name)


FP = Part(
    "cpu/fp",
    word("pfpfr", uint32, reset=0x1F80),
    word("fpcr", uint32, reset=0x037F),
    word("fpsr", uint32),
    check=_check,
)
