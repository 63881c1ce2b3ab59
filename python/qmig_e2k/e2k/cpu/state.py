"""`Cpu`: all registers of one CPU, and the description of the `cpu` section (spec/e2k-machine.md 2.3 to 2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.e2k import hooks
from qmig_e2k.e2k.cpu import (
    aau,
    access,
    clocks,
    control,
    debug,
    descriptors,
    fp,
    hv,
    loops,
    mmu,
    regfile,
    stacks,
    tags,
    traps,
)
from qmig_e2k.e2k.cpu.common import CpuCommon
from qmig_e2k.vmstate import VMStateDescription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmig_e2k.e2k.models import CpuModel

GUEST_REGISTERS = 16
"""Registers of the window that hold the state of the model guest."""

_MAIN = (control.CONTROL, regfile.REGFILE, stacks.STACKS, descriptors.GLOBALS, loops.LOOPS)

_PARTS = (
    regfile.FX_EXT,
    regfile.QP_HI,
    tags.TAGS,
    stacks.CRS,
    loops.LOOP64,
    loops.CTPR_HI,
    fp.FP,
    clocks.CLOCKS,
    aau.AAU,
    aau.AAU_PREFETCH,
    mmu.MMU,
    mmu.MMU_SEC,
    mmu.MMU_V6,
    traps.TRAP,
    debug.DEBUG,
    debug.MONITORS,
    access.DAM,
    access.MLT,
    stacks.CLW,
    descriptors.SEGMENTS,
    descriptors.OS_V6,
    descriptors.V7,
    hv.HV,
    access.LOCK_PAIR,
)

GROUPS = (*(("cpu", group) for group in _MAIN), *((part.name, part) for part in _PARTS))
"""Every group of registers with the description that it travels in, in the order of the wire."""


class Cpu(CpuCommon):
    """One CPU. Its registers are attributes under the names of their fields, as the groups' tables list them.

    They hold raw architectural words: Python integers, and numpy arrays that keep their identity for ever, so that
    views of them stay valid.

    Attributes:
        model: CPU model; the same on both sides.
        entry: address at which the first instruction is after reset.
        tags: the machine keeps memory tags; without it registers have none either. The tags are `reg_tags`.
    """

    def __init__(self, index: int, model: CpuModel, entry: int, tags: bool = False) -> None:
        """A CPU in its reset state."""
        self.model = model
        self.entry = entry
        self.tags = tags
        super().__init__(index)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def reset(self) -> None:
        """Values after power-on."""
        super().reset()
        for _, group in GROUPS:
            group.reset(self)

    def guest_registers(self) -> list[int]:
        """The 16 registers in which the model guest keeps its state."""
        return [int(word) for word in self.regs_lo[:GUEST_REGISTERS]]

    def set_guest_registers(self, values: Sequence[int]) -> None:
        """Set them: 16 unsigned 64-bit numbers."""
        if len(values) != GUEST_REGISTERS:
            raise ValueError(f"{GUEST_REGISTERS} registers expected, {len(values)} given")
        self.regs_lo[:GUEST_REGISTERS] = np.array(values, np.uint64)


def pre_save(cpu: Any) -> object:
    """Registers up to date, and nothing in them that this CPU does not have."""
    result = hooks.before_save(cpu)
    for group in (regfile, tags, clocks, aau, debug):
        group.settle(cpu)
    return result


def post_load(cpu: Any, version: int) -> object:
    """The checks of the main body; each subsection has its own."""
    for group in (control, regfile, stacks, descriptors, loops):
        group.check(cpu)
    return hooks.after_load(cpu, version)


CPU = VMStateDescription(
    "cpu",
    fields=[*(field for group in _MAIN for field in group.FIELDS), *loops.LOOP64_ABSENT],
    subsections=[part.description for part in _PARTS],
    pre_save=pre_save,
    post_load=post_load,
    reads=("index", "model.physical_bits", "tags"),
)
