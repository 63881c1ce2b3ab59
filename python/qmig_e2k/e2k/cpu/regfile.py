"""Register file, predicates, and the windows into it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qmig_e2k.vmstate import array, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu.state import Cpu

log = logging.getLogger(__name__)

REGISTERS = 256
"""0 to 223: windowed file; 224 to 255: globals."""

FIELDS = (
    uint64("preds"),
    array("regs_lo", uint64, REGISTERS),
    uint64("wd"),
    uint32("br"),
    uint32("bgr"),
    uint32("cwd"),
    uint64("pshtp"),
    uint32("pcshtp"),
)

_WD_BITS = 0x7FF | 0x7FF << 16 | 0x7FF << 32 | 3 << 48
_FILE_BYTES = 1792
_FILE_QUADS = _FILE_BYTES // 16


def reset(cpu: Cpu) -> None:
    """Values after power-on: a window of 16 registers, 8 of them parameters."""
    cpu.preds = 0
    cpu.regs_lo[:] = 0
    cpu.wd = 0x0000_0040_0080_0000
    cpu.br = 0xC4
    cpu.bgr = 0
    cpu.cwd = 0
    cpu.pshtp = 0
    cpu.pcshtp = 0


def check(cpu: Cpu) -> None:
    """Refuse windows outside the file (C09 to C13)."""
    base, size, psize = cpu.wd & 0x7FF, cpu.wd >> 16 & 0x7FF, cpu.wd >> 32 & 0x7FF
    cpu.require(
        cpu.wd & ~_WD_BITS == 0
        and (base | size | psize) % 16 == 0
        and base < _FILE_BYTES
        and size <= _FILE_BYTES
        and psize <= size,
        f"window out of range (base {base} size {size} psize {psize})",
    )
    clean = base == 0 and cpu.pshtp == 0 and cpu.pcshtp == 0 and cpu.cwd == 0
    cpu.require(clean, "dirty windows in normal form")
    rbs, rsz, rcur = cpu.br & 0x3F, cpu.br >> 6 & 0x3F, cpu.br >> 12 & 0x3F
    psz, pcur = cpu.br >> 18 & 0x1F, cpu.br >> 23 & 0x1F
    cpu.require(
        cpu.br <= 0x0FFF_FFFF and rcur <= rsz and pcur <= psz and rbs + rsz + 1 <= _FILE_QUADS,
        "based register window outside register file",
    )
    if 2 * (rbs + rsz + 1) > size // 8:
        # a callee inherits BR from its caller: executing with it traps, loading is legal
        log.debug("cpu %d: based window beyond the current one", cpu.index)
    cpu.require(cpu.bgr <= 0x7FF, "reserved bits in BGR")
