"""Memory management registers. The trap cellar and the page tables lie in guest RAM; translations are never sent."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word, words
from qmig_e2k.vmstate import uint64

_RECORD = 3
"""Doublewords of a record in the trap cellar."""
_RECORDS = 10
_PAGE = 4096
_TEXT = "cpu %d: invalid MMU register %s"


def _is_root(cpu: Any, address: int) -> bool:
    """Whether it can be the root of page tables."""
    return address % _PAGE == 0 and address >> cpu.model.physical_bits == 0


def _check(cpu: Any, _version: int) -> None:
    index = cpu.index
    require(cpu.pid <= 0xFFF, "C32", _TEXT, index, "PID", field="pid")
    require(_is_root(cpu, cpu.u_pptb), "C32", _TEXT, index, "U_PPTB", field="u_pptb")
    aligned = cpu.trap_point % (1024 if cpu.isa >= 6 else 512) == 0
    require(aligned, "C32", _TEXT, index, "TRAP_POINT", field="trap_point")
    good = cpu.trap_count % _RECORD == 0 and cpu.trap_count <= _RECORDS * _RECORD
    require(good, "C32", _TEXT, index, "TRAP_COUNT", field="trap_count")
    require(cpu.cr <= 0xFFFF, "C33", "cpu %d: reserved bits in MMU_CR", index, field="cr")


MMU = Part(
    "cpu/mmu",
    word("cr", uint64),
    word("pid", uint64),
    word("u2_pptb", uint64),
    word("u_vptb", uint64),
    word("u_pptb", uint64),
    word("trap_point", uint64),
    word("trap_count", uint64),
    word("mpt_b", uint64),
    word("pci_l_b", uint64),
    word("us_cl_d", uint64),
    word("ph_h_b", uint64),
    word("used_4kb_dtlb", uint64),
    word("used_dtlb_mpt_dw", uint64),
    word("apic_base", uint64, reset=0xFEE0_0000),
    word("hw0", uint64),
    word("pid2", uint64),
    word("ph_hi_l_b", uint64),
    word("ph_hi_h_b", uint64),
    word("tlu_cache", uint64),
    check=_check,
)

MMU_SEC = Part("cpu/mmu_sec", words("mtrr", uint64, 33), word("pat", uint64), words("pdpte", uint64, 4))
"""The secondary (x86) space."""


def _check_v6(cpu: Any, _version: int) -> None:
    require(_is_root(cpu, cpu.os_pptb), "C32", _TEXT, cpu.index, "OS_PPTB", field="os_pptb")


MMU_V6 = Part(
    "cpu/mmu_v6",
    word("os_vptb", uint64),
    word("os_pptb", uint64),
    word("os_vab", uint64),
    since=6,
    check=_check_v6,
)
