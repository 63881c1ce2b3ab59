"""Power management controller (`e2k-spmc`, 1fff:800e, spec/e2k-machine.md 3.10)."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.devices.pci import MULTIFUNCTION, PciDevice, PciFunction, pci_fields
from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word
from qmig_e2k.vmstate import VMStateDescription, int64, timer, uint32

NOT_ARMED = -1
_LIVE = {"pm1_sts": 0x44, "atnsus": 0x50, "purst": 0x54}
"""Registers that are kept outside configuration space while the machine runs, with their place in it."""

BODY = Group(
    word("pm1_sts", uint32),
    word("pm_tmr_offset", int64),
    word("g_state", uint32),
    word("s_state", uint32),
    word("atnsus", uint32, reset=0x0037_0000),
    word("purst", uint32, reset=0x0037_0000),
    word("overflow_timer", timer, reset=NOT_ARMED),
    word("sci_state", uint32),
)


class Spmc(PciDevice):
    """The controller.

    Attributes:
        pm1_sts, atnsus, purst: live registers; they are copied to configuration space when saved.
        pm_tmr_offset: ticks at 3579545 Hz from virtual time to the power management timer.
        g_state: 0 on, 1 sleeping.
        s_state: sleeping state, 0 to 5.
        overflow_timer: virtual time of the timer's overflow, -1: not armed.
        sci_state: level of the SCI line.
    """

    pm1_sts: int
    pm_tmr_offset: int
    g_state: int
    s_state: int
    atnsus: int
    purst: int
    overflow_timer: int
    sci_state: int

    def __init__(self, path: str = "0000:00:02.1") -> None:
        """The controller in its reset state."""
        super().__init__(path, PciFunction(0x800E, 0x088000, header_type=MULTIFUNCTION))

    def reset(self) -> None:
        """Values after power-on."""
        super().reset()
        BODY.reset(self)
        _show(self)


def _show(spmc: Any) -> None:
    """The live registers, in configuration space."""
    for name, offset in _LIVE.items():
        spmc.config[offset : offset + 4] = getattr(spmc, name).to_bytes(4, "little")


def _prepare(spmc: Any) -> object:
    """pre_save."""
    result = before_save(spmc)
    _show(spmc)
    return result


def _check(spmc: Any, version: int) -> object:
    """post_load (L04)."""
    require(spmc.g_state <= 1, "L04", "spmc: bad power state", field="g_state")
    require(spmc.s_state <= 5, "L04", "spmc: bad power state", field="s_state")
    return after_load(spmc, version)


SPMC = VMStateDescription("e2k-spmc", fields=pci_fields(*BODY.FIELDS), pre_save=_prepare, post_load=_check)
