"""Array access unit: its registers, and the prefetch program with its progress.

The prefetch buffer does not travel: data is read again when it is consumed (spec/e2k-machine.md 2.5, 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qmig_e2k.e2k.cpu.parts import Part, array, mask
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word, words
from qmig_e2k.vmstate import uint8, uint32, uint64

AREAS = 64
"""0 to 31 left, 32 to 63 right."""

_AASR_BITS = 0x3E0
_LDS = frozenset([0, 1, 3, 5])
"""Null, ready, active, stopped."""
_AAD_ZERO = np.uint64(0x3F << 48 | 7 << 61)
_AAD_UNDEFINED = np.uint64(3 << 54)
"""Tags 3 and 7: both low bits set."""
_AALDA_ZERO = np.uint8(0xE8)
_FMT = np.uint64(7 << 25)
_LOW = 0xFFFF_FFFF
_HIGH = np.uint64(_LOW << 32)
_INDICES = ("aasti", "aaind", "aaincr")
_PROGRESS = ("cdi", "ldi")


def settle(cpu: Any) -> None:
    """pre_save: the constant increment, and 32-bit indices up to v4."""
    cpu.aaincr[0] = 1
    if cpu.isa <= 4:
        for name in (*_INDICES, *_PROGRESS):
            mask(getattr(cpu, name), _LOW)


def _check(cpu: Any, _version: int) -> None:
    index, aasr = cpu.index, cpu.aasr
    good = aasr & ~_AASR_BITS == 0 and aasr >> 7 in _LDS
    require(good, "C27", "cpu %d: invalid AASR 0x%x", index, aasr, field="aasr")
    low = array(cpu.aad)[::2]
    bad = (low & _AAD_ZERO != 0) | (low & _AAD_UNDEFINED == _AAD_UNDEFINED)
    if bad.any():
        at = int(bad.argmax())
        require(False, "C28", "cpu %d: invalid AAD%u", index, at, field=f"aad[{2 * at}]")
    if cpu.isa <= 4:
        for name in _INDICES:
            bad = array(getattr(cpu, name)) & _HIGH
            if bad.any():
                at = int((bad != 0).argmax())
                require(False, "C28", "cpu %d: invalid AAD%u", index, at, field=f"{name}[{at}]")
    require(cpu.aaincr[0] == 1, "C29", "cpu %d: invalid AAU state", index, field="aaincr[0]")
    bad = np.asarray(cpu.aalda, np.uint8) & _AALDA_ZERO
    if bad.any():
        at = int((bad != 0).argmax())
        require(False, "C29", "cpu %d: invalid AAU state", index, field=f"aalda[{at}]")


AAU = Part(
    "cpu/aau",
    word("aasr", uint32),
    word("aafstr", uint32),
    word("aaldv", uint64),
    word("aaldm", uint64),
    words("aasti", uint64, 16),
    word("aasti_tags", uint32),
    words("aaind", uint64, 16),
    word("aaind_tags", uint32),
    words("aaincr", uint64, 8, reset=(1, 0, 0, 0, 0, 0, 0, 0)),
    word("aaincr_tags", uint32),
    words("aad", uint64, 64),
    words("aalda", uint8, AREAS),
    words("aaldi", uint64, AREAS),
    check=_check,
)
"""`aad`: lo then hi of each of 32 descriptors."""


def _check_prefetch(cpu: Any, _version: int) -> None:
    instr, progress = array(cpu.instr), array(cpu.cdi) | array(cpu.ldi)
    bad = (instr & _FMT == 0) & (instr | progress != 0)
    if cpu.isa <= 4:
        bad |= progress & _HIGH != 0
    if bad.any():
        at = int(bad.argmax())
        require(False, "C30", "cpu %d: inconsistent prefetch area %u", cpu.index, at)


AAU_PREFETCH = Part(
    "cpu/aau_prefetch",
    words("instr", uint64, AREAS),
    words("cdi", uint64, AREAS),
    words("ldi", uint64, AREAS),
    needed=lambda cpu: bool(array(cpu.instr).any()),
    check=_check_prefetch,
)
