"""One table per group of registers: its fields on the wire, its values after reset, and the rule when it travels.

    TIMER = Group(
        word("init", uint32),
        word("lvtt", uint32, reset=0x1_0000),
        words("irr", uint64, 16),
        word("id", uint32, reset=lambda apic: apic.index),
    )
    TIMER.reset(obj)        # every register of the group gets its value
    TIMER.differs(obj)      # the default `needed` rule of a subsection (spec/e2k-machine.md 0.4, G2)
    TIMER.FIELDS / TIMER.subsection("apic/timer")

A group holds no state and asks nothing of the object but its attributes, so it serves any emulator's own objects. A
reset value may be a function of the object, which then reads what was fixed at its making (`index`, `model`, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.vmstate import VMStateDescription, VMStateField, array, buffer

if TYPE_CHECKING:
    from qmig_e2k.vmstate.kinds import Kind

Words32 = np.ndarray[Any, np.dtype[np.uint32]]
Words64 = np.ndarray[Any, np.dtype[np.uint64]]
"""What `words` keeps."""

Value = int | bool | bytes | Sequence[int]
Reset = Value | Callable[[Any], Value]


@dataclass(frozen=True, slots=True)
class Register:
    """One register, or an array of equal ones.

    Attributes:
        name: name of the field.
        attribute: attribute that holds it; the same unless two groups of one object have a register of that name.
        field: its row in the description.
        dtype: numpy type of an array's elements; None: a single number; bytes are kept in a bytearray.
        length: elements of an array, bytes of a buffer; 0: a single number.
        initial: value after reset, or a function of the object that gives it. One number stands for all elements.
    """

    name: str
    attribute: str
    field: VMStateField
    dtype: np.dtype[Any] | None
    length: int
    initial: Reset

    def value(self, obj: Any) -> Any:
        """The value after reset, in the form in which it is kept: int, numpy array or bytes."""
        value = self.initial(obj) if callable(self.initial) else self.initial
        if not self.length:
            return value
        if self.dtype is None:
            return bytes([value]) * self.length if isinstance(value, int) else bytes(value)
        if isinstance(value, int):
            return np.full(self.length, value, self.dtype)
        made = np.array(value, self.dtype)
        if made.shape != (self.length,):
            raise ValueError(f"{self.name}: {self.length} reset values expected, {made.size} given")
        return made


def word(name: str, kind: Kind, reset: Reset = 0, *, attr: str | None = None) -> Register:
    """A single number."""
    return Register(name, attr or name, kind(name, attr=attr), None, 0, reset)


def words(name: str, kind: Kind, count: int, reset: Reset = 0, *, attr: str | None = None) -> Register:
    """`count` numbers in a numpy array of the kind's own type, native byte order."""
    field = array(name, kind, count, attr=attr)
    return Register(name, attr or name, field, kind.dtype.newbyteorder("="), count, reset)


def octets(name: str, size: int, reset: Reset = 0, *, attr: str | None = None) -> Register:
    """`size` raw bytes in a bytearray."""
    return Register(name, attr or name, buffer(name, size, attr=attr), None, size, reset)


class Group:
    """Registers that travel together, in the order of the wire.

    Attributes:
        registers: the table.
        FIELDS: its rows for a `VMStateDescription`.
    """

    def __init__(self, *registers: Register) -> None:
        """The table."""
        self.registers = registers
        self.FIELDS = tuple(register.field for register in registers)
        self._constant = tuple(None if callable(r.initial) else r.value(None) for r in registers)
        # single numbers first: they are compared in no time and mostly tell
        self._by_cost = sorted(zip(registers, self._constant, strict=True), key=lambda pair: pair[0].length > 0)

    def reset_values(self, obj: Any) -> dict[str, Any]:
        """Every register's value after reset, by attribute; not to be changed."""
        return dict(zip((r.attribute for r in self.registers), self._values(obj), strict=True))

    def _values(self, obj: Any) -> list[Any]:
        return [
            register.value(obj) if value is None else value
            for register, value in zip(self.registers, self._constant, strict=True)
        ]

    def reset(self, obj: Any) -> None:
        """Every register back to its value after power-on. Arrays keep their identity, so that views stay valid."""
        for register, value in zip(self.registers, self._values(obj), strict=True):
            if not register.length:
                setattr(obj, register.attribute, value)
                continue
            have = getattr(obj, register.attribute, None)
            if have is not None:
                have[:] = value
            else:
                setattr(obj, register.attribute, bytearray(value) if register.dtype is None else value.copy())

    def differs(self, obj: Any) -> bool:
        """True if a register is not at its value after reset."""
        for register, value in self._by_cost:
            if not _same(getattr(obj, register.attribute), register.value(obj) if value is None else value):
                return True
        return False

    def subsection(
        self,
        name: str,
        *,
        when: Callable[[Any], bool] | None = None,
        post_load: Callable[[Any, int], object] | None = None,
    ) -> VMStateDescription:
        """A subsection that travels if a register is off its reset value and `when`, if given, holds too."""
        needed = self.differs if when is None else lambda obj: when(obj) and self.differs(obj)
        return VMStateDescription(name, fields=self.FIELDS, needed=needed, post_load=post_load)


def _same(have: Any, value: Any) -> bool:
    """Equal, whatever container an emulator keeps its registers in."""
    if isinstance(value, np.ndarray):
        if isinstance(have, np.ndarray) and have.dtype == value.dtype and have.ndim == 1:
            return have.tobytes() == value.tobytes()
        return np.array_equal(np.asarray(have).reshape(-1), value)
    return bool(have == value)
