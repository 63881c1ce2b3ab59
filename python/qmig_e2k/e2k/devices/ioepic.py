"""IO part of the EPIC interrupt controller with its 64 pins, one per node from ISA v6 on (spec/e2k-machine.md 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.e2k.devices.controllers import first_with
from qmig_e2k.e2k.hooks import CheckError, after_load, before_save
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.registers import Words32

PINS = 64
MASKED = 1 << 16
"""Mask bit of a pin's control word."""

_CHECKS = (
    ("O01", "int_ctrl", 0xFFFE_4FFF, "ioepic: reserved bits in pin %u"),
    ("O02", "int_rid", 0xFFFF_0000, "ioepic: bad requester id at pin %u"),
    ("O03", "msg_data", 0xFFFF_1C00, "ioepic: reserved bits in pin %u"),
)
"""Code, words, bits that none of them may have, text."""

BODY = Group(
    word("id", uint32),
    words("int_ctrl", uint32, PINS, reset=MASKED),
    words("msg_data", uint32, PINS),
    words("addr_high", uint32, PINS),
    words("addr_low", uint32, PINS),
    words("int_rid", uint32, PINS),
    word("irr", uint64),
    word("line_level", uint64),
)


class Ioepic:
    """The IOEPIC of one node: raw register words, one a pin where they are arrays.

    Attributes:
        node: its node, the instance id.
        id: id 15:0, node 31:16.
        int_ctrl: status 12, software 13, level-triggered 15, mask 16.
        msg_data: vector 9:0, delivery mode 15:13.
        addr_high, addr_low: where the message goes.
        int_rid: requester: function 2:0, device 7:3, bus 15:8.
        irr: pending pins, pin n in bit n.
        line_level: input levels, likewise.
    """

    id: int
    int_ctrl: Words32
    msg_data: Words32
    addr_high: Words32
    addr_low: Words32
    int_rid: Words32
    irr: int
    line_level: int

    def __init__(self, node: int = 0) -> None:
        """The IOEPIC of `node` in its reset state."""
        self.node = node
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        BODY.reset(self)


def loaded(ioepic: Ioepic, version: int) -> object:
    """post_load: O01 to O03.

    Sending pending unmasked pins again is the emulator's `after_load`: in the order in which a machine's sections are
    made, all CEPICs are loaded by then.
    """
    for code, name, reserved, text in _CHECKS:
        pin = first_with(getattr(ioepic, name), reserved)
        if pin is not None:
            raise CheckError(code, text % pin, f"{name}[{pin}]")
    return after_load(ioepic, version)


IOEPIC = VMStateDescription("ioepic", fields=BODY.FIELDS, pre_save=before_save, post_load=loaded)
