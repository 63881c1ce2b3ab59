"""Code and data descriptors, segments, compilation unit and operating-system registers."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.cpu.stacks import DESCRIPTOR_BITS
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import uint32, uint64

GLOBALS = Group(
    words("cud", uint64, 2),
    words("gd", uint64, 2),
    words("oscud", uint64, 2),
    words("osgd", uint64, 2),
    word("cutd", uint64),
    word("cuir", uint32),
    word("tsd", uint64),
    word("tr", uint32),
    word("eir", uint32),
    word("osem", uint32),
    word("osr0", uint64),
)

_SEGMENTS = ("CS", "DS", "ES", "FS", "GS", "SS")
_CUTD_BITS = (1 << 48) - 32
_TSD_BITS = 0x7FFF | 0x7FFF << 32


def check(cpu: Any) -> None:
    """Refuse reserved bits (C20, C21)."""
    index = cpu.index
    for name, words_ in (("cud", cpu.cud), ("gd", cpu.gd), ("oscud", cpu.oscud), ("osgd", cpu.osgd)):
        if int(words_[0]) & ~DESCRIPTOR_BITS:
            require(False, "C20", "cpu %d: reserved bits in %s", index, name.upper(), field=f"{name}[0]")
    for name, value, bits in (
        ("cuir", cpu.cuir, 0x1FFFF),
        ("tr", cpu.tr, 0x7FFF),
        ("tsd", cpu.tsd, _TSD_BITS),
        ("cutd", cpu.cutd, _CUTD_BITS),
    ):
        if value & ~bits:
            require(False, "C21", "cpu %d: reserved bits in %s", index, name.upper(), field=name)


def _check_segments(cpu: Any, _version: int) -> None:
    for at, (name, low) in enumerate(zip(_SEGMENTS, cpu.seg[::2], strict=True)):
        if int(low) & ~DESCRIPTOR_BITS:
            require(False, "C20", "cpu %d: reserved bits in %s", cpu.index, name, field=f"seg[{2 * at}]")


SEGMENTS = Part("cpu/segments", words("seg", uint64, 2 * len(_SEGMENTS)), check=_check_segments)
"""Lo then hi of each."""

OS_V6 = Part("cpu/os_v6", word("oscutd", uint64), word("oscuir", uint32), since=6)

V7 = Part(
    "cpu/v7",
    word("osr1", uint64),
    word("usincr", uint64),
    word("t_off", uint64),
    word("madmr", uint64),
    words("dimar23", uint64, 2),
    since=7,
)
