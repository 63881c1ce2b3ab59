"""`Cpu`: all registers of one CPU, and the description of the `cpu` section's main body (spec/e2k-machine.md 2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.e2k.cpu import control, globals, loops, regfile, stacks  # noqa: A004 - the registers' own name
from qmig_e2k.e2k.cpu.common import CpuCommon
from qmig_e2k.vmstate import VMStateDescription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmig_e2k.e2k.models import CpuModel

Words = np.ndarray[Any, np.dtype[np.uint64]]

GUEST_REGISTERS = 16
"""Registers of the window that hold the state of the model guest."""

_GROUPS = (control, regfile, stacks, globals, loops)


class Cpu(CpuCommon):
    """One CPU with raw architectural words; 64-bit arrays never change their identity, so views stay valid.

    Attributes:
        model: CPU model; the same on both sides.
        entry: address at which the first instruction is after reset.
        tag_mode: the machine keeps memory tags; without it registers have none either.
    """

    isa: int
    idr: int
    rf_form: int
    ip: int
    nip: int
    psr: int
    upsr: int
    core_mode: int
    preds: int
    wd: int
    br: int
    bgr: int
    cwd: int
    pshtp: int
    pcshtp: int
    psp_lo: int
    psp_hi: int
    pcsp_lo: int
    pcsp_hi: int
    usd_lo: int
    usd_hi: int
    sbr: int
    cutd: int
    cuir: int
    tsd: int
    tr: int
    eir: int
    osem: int
    osr0: int
    lsr: int
    ilcr: int

    def __init__(self, index: int, model: CpuModel, entry: int, tags: bool = False) -> None:
        """A CPU in its reset state."""
        self.model = model
        self.entry = entry
        self.tag_mode = tags
        self.regs_lo: Words = np.zeros(regfile.REGISTERS, np.uint64)
        self.cud: Words = np.zeros(2, np.uint64)
        self.gd: Words = np.zeros(2, np.uint64)
        self.oscud: Words = np.zeros(2, np.uint64)
        self.osgd: Words = np.zeros(2, np.uint64)
        self.ctpr: Words = np.zeros(3, np.uint64)
        super().__init__(index)

    def reset(self) -> None:
        """Values after power-on."""
        super().reset()
        for group in _GROUPS:
            group.reset(self)

    def require(self, condition: bool, text: str) -> None:
        """Refuse the load unless `condition` holds."""
        if not condition:
            raise ValueError(f"cpu {self.index}: {text}")

    def check(self, _version: int) -> None:
        """post_load: every group's checks."""
        for group in _GROUPS:
            group.check(self)

    def guest_registers(self) -> list[int]:
        """The 16 registers in which the model guest keeps its state."""
        return [int(word) for word in self.regs_lo[:GUEST_REGISTERS]]

    def set_guest_registers(self, values: Sequence[int]) -> None:
        """Set them: 16 unsigned 64-bit numbers."""
        if len(values) != GUEST_REGISTERS:
            raise ValueError(f"{GUEST_REGISTERS} registers expected, {len(values)} given")
        self.regs_lo[:GUEST_REGISTERS] = np.array(values, np.uint64)


CPU = VMStateDescription(
    "cpu",
    fields=[field for group in _GROUPS for field in group.FIELDS],
    post_load=Cpu.check,
)
