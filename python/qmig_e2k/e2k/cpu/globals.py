"""Code and data descriptors, compilation unit and operating-system registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.e2k.cpu.stacks import DESCRIPTOR_BITS
from qmig_e2k.vmstate import array, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu.state import Cpu

FIELDS = (
    array("cud", uint64, 2),
    array("gd", uint64, 2),
    array("oscud", uint64, 2),
    array("osgd", uint64, 2),
    uint64("cutd"),
    uint32("cuir"),
    uint64("tsd"),
    uint32("tr"),
    uint32("eir"),
    uint32("osem"),
    uint64("osr0"),
)

_CUTD_BITS = (1 << 48) - 32
_TSD_BITS = 0x7FFF | 0x7FFF << 32


def reset(cpu: Cpu) -> None:
    """Values after power-on."""
    for descriptor in (cpu.cud, cpu.gd, cpu.oscud, cpu.osgd):
        descriptor[:] = 0
    cpu.cutd = cpu.cuir = cpu.tsd = cpu.tr = cpu.eir = cpu.osem = cpu.osr0 = 0


def check(cpu: Cpu) -> None:
    """Refuse reserved bits (C20, C21)."""
    for name, descriptor in (("CUD", cpu.cud), ("GD", cpu.gd), ("OSCUD", cpu.oscud), ("OSGD", cpu.osgd)):
        cpu.require(int(descriptor[0]) & ~DESCRIPTOR_BITS == 0, f"reserved bits in {name}")
    cpu.require(cpu.cuir <= 0x1FFFF, "reserved bits in CUIR")
    cpu.require(cpu.tr <= 0x7FFF, "reserved bits in TR")
    cpu.require(cpu.tsd & ~_TSD_BITS == 0, "reserved bits in TSD")
    cpu.require(cpu.cutd & ~_CUTD_BITS == 0, "reserved bits in CUTD")
