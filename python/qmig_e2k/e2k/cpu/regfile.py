"""Register file, predicates, the windows into it, and what the file's registers have beyond 64 bits."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from qmig_e2k.e2k.cpu.parts import Part, mask
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import uint16, uint32, uint64

log = logging.getLogger(__name__)

REGISTERS = 256
"""0 to 223: windowed file; 224 to 255: globals."""

REGFILE = Group(
    word("preds", uint64),
    words("regs_lo", uint64, REGISTERS),
    word("wd", uint64, reset=0x0000_0040_0080_0000),
    word("br", uint32, reset=0xC4),
    word("bgr", uint32),
    word("cwd", uint32),
    word("pshtp", uint64),
    word("pcshtp", uint32),
)

FX_EXT = Part("cpu/fx_ext", words("fx", uint16, REGISTERS), until=4, refusal="C25")
"""Bits 79:64 of every register."""

QP_HI = Part("cpu/qp_hi", words("regs_hi", uint64, REGISTERS), since=5, refusal="C25")
"""Bits 127:64 of every register."""

_WD_BITS = 0x7FF | 0x7FF << 16 | 0x7FF << 32 | 3 << 48
_FILE_BYTES = 1792
_FILE_QUADS = _FILE_BYTES // 16


def settle(cpu: Any) -> None:
    """pre_save: 16 bits of each extension, however wide the emulator keeps them."""
    fx = cpu.fx
    if not isinstance(fx, np.ndarray) or fx.dtype.itemsize != 2:
        mask(fx, 0xFFFF)


def check(cpu: Any) -> None:
    """Refuse windows outside the file (C09 to C13)."""
    index, wd, br = cpu.index, cpu.wd, cpu.br
    base, size, psize = wd & 0x7FF, wd >> 16 & 0x7FF, wd >> 32 & 0x7FF
    whole = wd & ~_WD_BITS == 0 and (base | size | psize) % 16 == 0
    inside = whole and base < _FILE_BYTES and size <= _FILE_BYTES and psize <= size
    text = "cpu %d: window out of range (base %u size %u psize %u)"
    require(inside, "C09", text, index, base, size, psize, field="wd")
    clean = not (base or cpu.pshtp or cpu.pcshtp or cpu.cwd)
    require(clean, "C10", "cpu %d: dirty windows in normal form", index)
    rbs, rsz, rcur = br & 0x3F, br >> 6 & 0x3F, br >> 12 & 0x3F
    inside = rbs + rsz + 1 <= _FILE_QUADS and rcur <= rsz and br >> 23 & 0x1F <= br >> 18 & 0x1F and br <= 0x0FFF_FFFF
    require(inside, "C11", "cpu %d: based register window outside register file", index, field="br")
    if 2 * (rbs + rsz + 1) > size // 8:
        # a callee inherits BR from its caller: executing with it traps, loading is legal
        log.debug("C12: cpu %d: based window beyond the current one", index)
    require(cpu.bgr <= 0x7FF, "C13", "cpu %d: reserved bits in BGR", index, field="bgr")
