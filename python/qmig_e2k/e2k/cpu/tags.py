"""Tags of the registers: two bits for each 32 bits of a register, the lowest word in bits 1:0.

They exist only where the machine keeps memory tags: the CPU's `tags` says so, its `reg_tags` are the tags. Up to ISA
v4 a register has two of them, since v5 four.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qmig_e2k.e2k.cpu.parts import Part, mask
from qmig_e2k.e2k.cpu.regfile import REGISTERS
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import words
from qmig_e2k.vmstate import uint8

_OLD_BITS = 0x0F
"""Of each byte up to v4."""


def settle(cpu: Any) -> None:
    """pre_save: no tags without tag mode, two for each register up to v4."""
    if not cpu.tags:
        cpu.reg_tags[:] = 0 if isinstance(cpu.reg_tags, np.ndarray) else [0] * REGISTERS
    elif cpu.isa <= 4:
        mask(cpu.reg_tags, _OLD_BITS)


def _refuse_without_tags(cpu: Any) -> None:
    require(cpu.tags, "C26", "cpu %d: tagged registers but tags are disabled", cpu.index)


def _check(cpu: Any, _version: int) -> None:
    good = cpu.isa >= 5 or max(bytes(cpu.reg_tags)) <= _OLD_BITS
    require(good, "C25", "cpu %d: subsection %s not valid for ISA v%u", cpu.index, TAGS.name, cpu.isa, field="tags")


TAGS = Part("cpu/tags", words("tags", uint8, REGISTERS, attr="reg_tags"), pre_load=_refuse_without_tags, check=_check)
