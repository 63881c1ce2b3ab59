"""Serial controller ESCC with its two channels, and the PCI function that shows it (spec/e2k-machine.md 3.8, 3.9)."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.devices.pci import MULTIFUNCTION, PciDevice, PciFunction, pci_fields
from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, octets, word
from qmig_e2k.vmstate import VMStateDescription, array, uint8, uint32

REGISTERS = 16
SERIAL = "serial"
_WRITE_RESET = {4: 0x04, 9: 0xC0, 11: 0x08, 14: 0x30, 15: 0xF8}
_READ_RESET = {0: 0x44, 1: 0x07}

CHANNEL = Group(
    word("vmstate_dummy", uint32),
    word("reg", uint32),
    word("rxint", uint32),
    word("txint", uint32),
    word("rxint_under_svc", uint32),
    word("txint_under_svc", uint32),
    word("rx", uint8),
    word("tx", uint8),
    octets("wregs", REGISTERS, bytes(_WRITE_RESET.get(i, 0) for i in range(REGISTERS))),
    octets("rregs", REGISTERS, bytes(_READ_RESET.get(i, 0) for i in range(REGISTERS))),
)


class EsccChannel:
    """One serial channel.

    Attributes:
        channel_type: `serial`; no other type can migrate.
        vmstate_dummy: nothing, kept for the layout.
        reg: register selected for the next access.
        rxint, txint: pending interrupts.
        rxint_under_svc, txint_under_svc: interrupts being served.
        rx, tx: data bytes.
        wregs, rregs: write and read registers.
    """

    channel_type = SERIAL
    vmstate_dummy: int
    reg: int
    rxint: int
    txint: int
    rxint_under_svc: int
    txint_under_svc: int
    rx: int
    tx: int
    wregs: bytearray
    rregs: bytearray

    def __init__(self) -> None:
        """A channel in its reset state."""
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        CHANNEL.reset(self)


class Escc:
    """The controller.

    Attributes:
        chn: channels B and A, in this order.
    """

    def __init__(self) -> None:
        """A controller in its reset state."""
        self.chn = [EsccChannel(), EsccChannel()]

    def reset(self) -> None:
        """Values after power-on."""
        for channel in self.chn:
            channel.reset()


class EsccPci(PciDevice):
    """The PCI function in front of it, 1fff:8019; window 1 shows the controller's registers."""

    def __init__(self, path: str = "0000:00:02.2") -> None:
        """The function in its reset state."""
        function = PciFunction(0x8019, 0x070002, revision=1, header_type=MULTIFUNCTION, pin=1, bars={1: 4})
        super().__init__(path, function)


def _check_channel(channel: Any, _version: int) -> None:
    """post_load of one channel (K01)."""
    require(channel.reg < REGISTERS, "K01", "escc: bad register index", field="reg")


def _prepare(escc: Any) -> object:
    """pre_save: the queues of keyboards and mice have no layout."""
    if any(getattr(channel, "channel_type", SERIAL) != SERIAL for channel in escc.chn):
        raise ValueError("escc: channel type not migratable")
    return before_save(escc)


ESCC_CHANNEL = VMStateDescription(
    "escc_chn",
    version_id=2,
    minimum_version_id=1,
    fields=CHANNEL.FIELDS,
    post_load=_check_channel,
    may_read=("channel_type",),
)
ESCC = VMStateDescription(
    "escc",
    version_id=2,
    minimum_version_id=1,
    fields=[array("chn", ESCC_CHANNEL, 2, version=2)],
    pre_save=_prepare,
    post_load=after_load,
)
ESCC_PCI = VMStateDescription("escc-pci", fields=pci_fields(), pre_save=before_save, post_load=after_load)
