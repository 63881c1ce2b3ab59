"""Clocks, the pseudo-random register and the control-unit registers that go with them.

CLKR and SCLKR travel as values at the moment of saving. An emulator that counts from the virtual clock computes them in
`before_save` and keeps, in `after_load`, the difference to what its clock gives; `sclk_base_ns` says which virtual
time SCLKR belongs to.
"""

from __future__ import annotations

import logging
from typing import Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word
from qmig_e2k.vmstate import int64, uint64

log = logging.getLogger(__name__)

_F1, _F2 = 0x1FFFF, 0x3FFFF << 32
_NEWER = ((3, ("sclkr", "sclkm1", "sclkm2")), (5, ("cu_hw1",)), (6, ("sclkm3", "cu_pmgr0")))


def settle(cpu: Any) -> None:
    """pre_save: registers that the ISA does not have are zero."""
    isa = cpu.isa
    for since, names in _NEWER:
        if isa < since:
            for name in names:
                setattr(cpu, name, 0)


def _check(cpu: Any, _version: int) -> None:
    rndpr = cpu.rndpr
    require(rndpr & ~(_F1 | _F2) == 0, "C38", "cpu %d: invalid RNDPR", cpu.index, field="rndpr")
    if not rndpr & _F1 or not rndpr & _F2:
        log.debug("C38: cpu %d: a generator of RNDPR is stuck at zero", cpu.index)


CLOCKS = Part(
    "cpu/clocks",
    word("clkr", uint64),
    word("sclkr", uint64),
    word("sclkm1", uint64),
    word("sclkm2", uint64),
    word("sclkm3", uint64),
    word("sclk_base_ns", int64),
    word("rndpr", uint64, reset=0x0003_FFFF_0001_FFFF),
    word("cu_hw0", uint64),
    word("cu_hw1", uint64),
    word("cu_pmgr0", uint64),
    needed=lambda _: True,
    check=_check,
)
