"""Legal CPU states for tests: any value in every register, cut to what a run of the machine can produce.

    fill(cpu, seed=3)       # every register off its reset value where the ISA allows it, every subsection travels
    legalize(cpu)           # any values before, a state that loads afterwards

The masks are what a CPU's register writes must do anyway, for a stream with other values is refused
(spec/e2k-machine.md 2.6.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.e2k.cpu import GROUPS

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu import Cpu
    from qmig_e2k.e2k.registers import Register

HW_VIRT = 1 << 24
"""IDR: the guest is told that the CPU has hardware virtualization."""

_LOW = 0xFFFF_FFFF
_BASE = (1 << 48) - 1
_DESCRIPTOR = _BASE | 7 << 58
_STACK = _BASE | 0xFF << 56
_MASKS = {
    "ip": _BASE & ~7,
    "nip": _BASE & ~7,
    "psr": 0x7F,
    "bgr": 0x7FF,
    "psp_lo": _STACK,
    "pcsp_lo": _STACK,
    "usd_lo": _DESCRIPTOR,
    "usd_hi": ~(15 << 32),
    "cutd": _BASE & ~31,
    "cuir": 0x1FFFF,
    "tsd": 0x7FFF | 0x7FFF << 32,
    "tr": 0x7FFF,
    "lsr": ~(7 << 61),
    "ilcr": _LOW | 0x1F << 32 | 0x1F << 48,
    "pfpfr": ~(1 << 6 | 0x3FF << 16),
    "fpsr": 0xFFFF,
    "rndpr": 0x1FFFF | 0x3FFFF << 32,
    "aalda": 0x17,
    "pid": 0xFFF,
    "cr": 0xFFFF,
    "sbbp_pos": 31,
    "dibcr": 0xFFF,
    "dam": (1 << 59) - 1,
}
"""Bits that a register can have, where that is not all of its width."""


def fill(cpu: Cpu, seed: int) -> None:
    """Give every register a value of its own that a run of the machine can produce, the same for the same seed.

    From ISA v6 on the CPU gets hardware virtualization.
    """
    numbers = np.random.default_rng(seed)
    for _, group in GROUPS:
        for register in group.registers:
            set_register(cpu, register, numbers.integers(1, 1 << 64, max(register.length, 1), np.uint64))
    cpu.idr = HW_VIRT if cpu.model.isa >= 6 else 0
    cpu.nr_tirs, cpu.intc_cu_num, cpu.intc_mu_num = 18, 6, 77
    cpu.exception_index, cpu.crash_occurred = seed % 44, True
    legalize(cpu)


def set_register(cpu: Cpu, register: Register, words: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
    """Put 64-bit words into a register, cut to its width."""
    if register.length:
        have = getattr(cpu, register.attribute)
        have[:] = words.astype(have.dtype)
    else:
        wire = register.field.kind.dtype  # type: ignore[attr-defined] # every register of a CPU is a number
        setattr(cpu, register.attribute, int(words.astype(wire.newbyteorder("="))[0]))


def legalize(cpu: Cpu) -> None:
    """Cut every register to what a run of the machine can produce; what the CPU lacks gets its reset value."""
    isa = cpu.isa = cpu.model.isa
    for name, mask in _MASKS.items():
        value = getattr(cpu, name)
        if isinstance(value, np.ndarray):
            value &= value.dtype.type(mask)
        else:
            setattr(cpu, name, value & mask)
    virtualization = cpu.idr & HW_VIRT
    cpu.idr = cpu.model.idr(cpu.index) | virtualization
    cpu.upsr &= 0x7FF if isa >= 3 else 0x6FF
    cpu.core_mode &= {2: 0, 6: 0x7E, 7: 0x1FE}.get(isa, 0x1E)
    _main_body(cpu)
    _subsections(cpu)
    for _, group in GROUPS:
        since, until = getattr(group, "since", 0), getattr(group, "until", isa)
        if not since <= isa <= until:
            group.reset(cpu)
    if isa < 6:
        cpu.sclkm3 = cpu.cu_pmgr0 = 0
        cpu.dimtp[:] = 0
    if isa < 5:
        cpu.cu_hw1 = cpu.lsr1 = cpu.ilcr1 = 0
        cpu.reg_tags &= np.uint8(0x0F)
        for words in (cpu.aasti, cpu.aaind, cpu.aaincr, cpu.cdi, cpu.ldi):
            np.bitwise_and(words, np.uint64(_LOW), out=words)
    if isa < 3:
        cpu.sclkr = cpu.sclkm1 = cpu.sclkm2 = 0
        cpu.mlt[:] = 0


def _main_body(cpu: Cpu) -> None:
    cpu.rf_form = cpu.cwd = cpu.pshtp = cpu.pcshtp = 0
    cpu.crs[:] = 0
    size = (cpu.wd >> 16 & 0x7FF) % 0x701 & ~15
    cpu.wd = size << 16 | min(cpu.wd >> 32 & 0x7F0, size) << 32 | cpu.wd & 3 << 48
    rbs = (cpu.br & 0x3F) % 112
    rsz = min(cpu.br >> 6 & 0x3F, 111 - rbs)
    psz = cpu.br >> 18 & 0x1F
    cpu.br = rbs | rsz << 6 | min(cpu.br >> 12 & 0x3F, rsz) << 12 | psz << 18 | min(cpu.br >> 23 & 0x1F, psz) << 23
    for name in ("psp_hi", "pcsp_hi"):
        size = getattr(cpu, name) >> 32
        setattr(cpu, name, size << 32 | min(getattr(cpu, name) & _LOW, size) & ~31)
    for descriptors in (cpu.cud, cpu.gd, cpu.oscud, cpu.osgd, cpu.seg):
        descriptors[::2] &= np.uint64(_DESCRIPTOR)
    for at, raw in enumerate(cpu.ctpr):
        word = int(raw)
        tag, opc = word >> 54 & 7, word >> 57 & 3
        cpu.ctpr[at] = word & (_BASE | 3 << 59) | min(tag, 5) << 54 | (3 if opc == 2 else opc) << 57


def _subsections(cpu: Cpu) -> None:
    if not cpu.tags:
        cpu.reg_tags[:] = 0
    cpu.fpcr = cpu.fpcr & 0x1F3F | 1 << 6
    if cpu.fpcr >> 8 & 3 == 1:
        cpu.fpcr |= 3 << 8
    cpu.aasr = cpu.aasr & 0x60 | (0, 1, 3, 5)[cpu.aasr >> 7 & 3] << 7
    cpu.aaincr[0] = 1
    cpu.aad[::2] &= np.uint64(_BASE | 7 << 54 | 15 << 57)
    cpu.aad[::2][cpu.aad[::2] >> np.uint64(54) & np.uint64(3) == 3] &= np.uint64(~(3 << 54) & (1 << 64) - 1)
    unused = cpu.instr >> np.uint64(25) & np.uint64(7) == 0
    for words in (cpu.instr, cpu.cdi, cpu.ldi):
        words[unused] = 0
    root = (1 << cpu.model.physical_bits) - 4096
    cpu.u_pptb &= root
    cpu.os_pptb &= root
    cpu.trap_point &= ~1023 if cpu.model.isa >= 6 else ~511
    cpu.trap_count = 3 * (cpu.trap_count % 11)
    cpu.nr_tirs = cpu.nr_tirs % 20 if cpu.nr_tirs % 20 < 19 else -1
    cpu.tir_hi[:] = cpu.tir_hi & np.uint64(0x00F3_FFFF_FFFF_FFFF) | np.arange(19, dtype=np.uint64) << np.uint64(56)
    cpu.tir_lo[cpu.nr_tirs + 1 :] = cpu.tir_hi[cpu.nr_tirs + 1 :] = 0
    cpu.dibsr &= 0xFFF if cpu.model.isa >= 7 else 0x1FF
    cpu.dimtp[0] &= np.uint64((1 << 64) - 32)
    # tables without a valid entry say nothing and do not travel
    if not (cpu.dam >> np.uint64(58)).any():
        cpu.dam[:] = 0
    if not (cpu.mlt[::3] >> np.uint64(0 if cpu.model.isa >= 6 else 53) & np.uint64(1)).any():
        cpu.mlt[:] = 0
    cpu.intc_cu_num %= 7
    cpu.intc_mu_num %= 78
    cpu.intc_info_cu[cpu.intc_cu_num :] = 0
    cpu.intc_info_mu[cpu.intc_mu_num :] = 0
