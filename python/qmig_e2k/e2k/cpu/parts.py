"""What the files of this folder build the `cpu` description from: groups that are subsections, and two special rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.e2k.hooks import CheckError, require
from qmig_e2k.e2k.registers import Group, Register, Words64
from qmig_e2k.vmstate import VMStateDescription, VMStateField, uint32_equal
from qmig_e2k.vmstate.kinds import ScalarField

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.vmstate import JsonObject
    from qmig_e2k.vmstate.engine import Loader, Saver

NEWEST_ISA = 7


class Part(Group):
    """A group of registers that is a subsection of `cpu`.

    Attributes:
        name: the subsection's.
        since: first ISA that has it.
        until: last ISA that has it.
        description: the subsection.
    """

    def __init__(
        self,
        name: str,
        *registers: Register,
        since: int = 0,
        until: int = NEWEST_ISA,
        refusal: str = "C37",
        needed: Callable[[Any], bool] | None = None,
        pre_load: Callable[[Any], object] | None = None,
        check: Callable[[Any, int], object] | None = None,
    ) -> None:
        """The table.

        Args:
            name: name of the subsection.
            registers: its fields.
            since: first ISA that has it.
            until: last ISA that has it.
            refusal: code of the check that refuses it in the stream of another ISA.
            needed: when it travels on those ISAs; default: a register is off its reset value.
            pre_load: refuses it for another reason than the ISA.
            check: post_load.
        """
        super().__init__(*registers)
        self.name, self.since, self.until = name, since, until
        self._refusal = refusal
        self._travels = needed or self.differs
        everywhere = since == 0 and until == NEWEST_ISA
        self.description = VMStateDescription(
            name,
            fields=self.FIELDS,
            needed=self._travels if everywhere else self.needed,
            pre_load=pre_load if everywhere else self._refuse_other_isa,
            post_load=check,
        )

    def needed(self, cpu: Any) -> bool:
        """Whether it travels."""
        return self.since <= cpu.isa <= self.until and self._travels(cpu)

    def _refuse_other_isa(self, cpu: Any) -> None:
        if not self.since <= cpu.isa <= self.until:
            text = f"cpu {cpu.index}: subsection {self.name} not valid for ISA v{cpu.isa}"
            raise CheckError(self._refusal, text)


class IsaField(ScalarField):
    """The ISA version, first of all: with another model on the other side nothing else means anything (C01)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("isa", uint32_equal)

    def load(self, loader: Loader, obj: Any) -> None:
        """Compare."""
        found, here = loader.reader.u32(), self.get(obj)
        require(found == here, "C01", "cpu %d: ISA v%u in stream, model is v%u", obj.index, found, here)


class Preset(VMStateField):
    """No bytes: the value that a register has when the subsection that would bring it is absent.

    It is set between the fields, so that a refused load takes it back like any other.
    """

    __slots__ = ("_value",)

    def __init__(self, name: str, value: Callable[[Any], Any]) -> None:
        """`value(obj)` may use the fields before."""
        super().__init__(name)
        self._value = value

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        """Nothing to write."""

    def load(self, loader: Loader, obj: Any) -> None:
        """Set the value."""
        loader.put(self, obj, self._value(obj), self.peek(obj))


def array(words: Any) -> Words64:
    """`words` as 64-bit numbers, whatever the emulator keeps them in; no copy of what is such an array."""
    return np.asarray(words, np.uint64)


def mask(words: Any, bits: int) -> None:
    """Clear every bit of every element that is not in `bits`, in place."""
    if isinstance(words, np.ndarray):
        np.bitwise_and(words, bits, out=words)
    else:
        words[:] = [word & bits for word in words]
