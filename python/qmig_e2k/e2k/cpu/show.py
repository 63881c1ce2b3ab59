"""The registers of a CPU as text for people, one group under the other (`info registers`).

Numbers are hexadecimal. Of an array the rows that are all zero are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.cpu.parts import Part
from qmig_e2k.e2k.cpu.state import GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.e2k.registers import Register

__all__ = ["describe"]

_IN_A_ROW = 4
_COMMON = ("halted", "interrupt_request", "exception_index")


def describe(name: str, cpu: Any) -> Iterator[str]:
    """The lines of one of a CPU's descriptions, `cpu_common` or `cpu`; registers that `cpu` lacks are left out."""
    if name == "cpu_common":
        yield " ".join(f"{word}={getattr(cpu, word):x}" for word in _COMMON if hasattr(cpu, word))
        return
    isa = getattr(cpu, "isa", None)
    for group_name, group in GROUPS:
        if isinstance(group, Part) and isa is not None and not group.since <= isa <= group.until:
            continue
        there = [register for register in group.registers if hasattr(cpu, register.attribute)]
        words = [f"{register.name}={_word(cpu, register)}" for register in there if not register.length]
        lines = [" ".join(words[at : at + _IN_A_ROW]) for at in range(0, len(words), _IN_A_ROW)]
        for register in there:
            if register.length:
                lines += _array(register.name, getattr(cpu, register.attribute))
        if lines:
            yield f"[{group_name}]"
            yield from lines


def _word(cpu: Any, register: Register) -> str:
    value = int(getattr(cpu, register.attribute))
    return f"{value:016x}" if value >= 0 else str(value)


def _array(name: str, values: Any) -> Iterator[str]:
    if isinstance(values, (bytes, bytearray)):
        shown = bytes(values).rstrip(b"\0").hex()
        if shown:
            yield f"{name}={shown}"
        return
    numbers = [int(value) for value in values]
    for at in range(0, len(numbers), _IN_A_ROW):
        row = numbers[at : at + _IN_A_ROW]
        if any(row):
            yield f"{name}[{at:3}]= " + " ".join(f"{value:016x}" for value in row)
