"""Console of the simulator, ports 0x300 to 0x304 (`lmscon`, spec/e2k-machine.md 3.10)."""

from __future__ import annotations

from qmig_e2k.e2k.hooks import after_load, before_save
from qmig_e2k.e2k.registers import Group, word
from qmig_e2k.vmstate import VMStateDescription, uint8

BODY = Group(word("tx", uint8))


class Lmscon:
    """The console; its receiving side has no state.

    Attributes:
        tx: byte to be sent.
    """

    tx: int

    def __init__(self) -> None:
        """A console in its reset state."""
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        BODY.reset(self)


LMSCON = VMStateDescription("lmscon", fields=BODY.FIELDS, pre_save=before_save, post_load=after_load)
