"""Breakpoints, trace and performance monitors."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word, words
from qmig_e2k.vmstate import uint32, uint64

_TEXT = "cpu %d: invalid debug register"


def settle(cpu: Any) -> None:
    """pre_save: no trace buffer before v6."""
    if cpu.isa < 6:
        cpu.dimtp[0] = cpu.dimtp[1] = 0


def _check(cpu: Any, _version: int) -> None:
    require(cpu.dibcr <= 0xFFF, "C35", _TEXT, cpu.index, field="dibcr")
    require(cpu.dibsr <= (0xFFF if cpu.isa >= 7 else 0x1FF), "C35", _TEXT, cpu.index, field="dibsr")


DEBUG = Part(
    "cpu/debug",
    word("dibcr", uint32),
    word("dibsr", uint32),
    words("dibar", uint64, 4),
    word("ddbcr", uint64),
    word("ddbsr", uint64),
    words("ddbar", uint64, 4),
    word("dtcr", uint64),
    word("dtarf", uint64),
    word("dtart", uint64),
    check=_check,
)


def _check_monitors(cpu: Any, _version: int) -> None:
    require(cpu.dimtp[0] % 32 == 0, "C35", _TEXT, cpu.index, field="dimtp[0]")


MONITORS = Part(
    "cpu/monitors",
    word("dimcr", uint64),
    words("dimar", uint64, 2),
    word("ddmcr", uint64),
    words("ddmar", uint64, 2),
    words("dimtp", uint64, 2),
    check=_check_monitors,
)
