"""Serial controller ESCC with its two channels (spec/e2k-machine.md 3.9)."""

from __future__ import annotations

from qmig_e2k.vmstate import VMStateDescription, array, buffer, uint8, uint32

REGISTERS = 16
_WRITE_RESET = {4: 0x04, 9: 0xC0, 11: 0x08, 14: 0x30, 15: 0xF8}
_READ_RESET = {0: 0x44, 1: 0x07}


class EsccChannel:
    """One serial channel.

    Attributes:
        reg: register selected for the next access.
        rxint, txint: pending interrupts.
        rxint_under_svc, txint_under_svc: interrupts being served.
        rx, tx: data bytes.
        wregs, rregs: write and read registers.
    """

    def __init__(self) -> None:
        """A channel in its reset state."""
        self.wregs = bytearray(REGISTERS)
        self.rregs = bytearray(REGISTERS)
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        self.vmstate_dummy = self.reg = self.rxint = self.txint = self.rxint_under_svc = self.txint_under_svc = 0
        self.rx = self.tx = 0
        self.wregs[:] = bytes(_WRITE_RESET.get(i, 0) for i in range(REGISTERS))
        self.rregs[:] = bytes(_READ_RESET.get(i, 0) for i in range(REGISTERS))

    def check(self, _version: int) -> None:
        """post_load."""
        if self.reg >= REGISTERS:
            raise ValueError("escc: bad register index")


class Escc:
    """The controller: channels B and A, in this order."""

    def __init__(self) -> None:
        """A controller in its reset state."""
        self.chn = [EsccChannel(), EsccChannel()]

    def reset(self) -> None:
        """Values after power-on."""
        for channel in self.chn:
            channel.reset()


ESCC_CHANNEL = VMStateDescription(
    "escc_chn",
    version_id=2,
    minimum_version_id=1,
    fields=[
        *(uint32(name) for name in ("vmstate_dummy", "reg", "rxint", "txint", "rxint_under_svc", "txint_under_svc")),
        uint8("rx"),
        uint8("tx"),
        buffer("wregs", REGISTERS),
        buffer("rregs", REGISTERS),
    ],
    post_load=EsccChannel.check,
)

ESCC = VMStateDescription("escc", version_id=2, minimum_version_id=1, fields=[array("chn", ESCC_CHANNEL, 2, version=2)])
