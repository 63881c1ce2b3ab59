"""Core part of the EPIC interrupt controller, one per CPU from ISA v6 on (spec/e2k-machine.md 3.2)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.devices.controllers import HARD, NMI, highest, request
from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, octets, word, words
from qmig_e2k.vmstate import VMStateDescription, timer, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu import CpuCommon
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words64

log = logging.getLogger(__name__)

CTRL_BOOTSTRAP = 1 << 8
CTRL_ENABLE = 1 << 10
MASKED = 1 << 16
"""Mask bit of a local vector."""
NOT_ARMED = -1
GUEST_PAGE = 4096
NMI_SOURCES = 0x3_2600
"""Requests in pnmirr that are non-maskable interrupts: those that pnmirr_mask can hold back (9, 10, 13, 16, 17)."""

_MAX_VECTOR = 0x3FF
_VECTORS = (("esr2", 0xFFF), ("cir", 0xFFF), ("timer_lvtt", 0xFFF), ("svr", 0xFFFF_FFFF), ("vect_inta", 0xFFFF))
"""Words with a vector, and their bits below the first flag: all that a vector could be."""
_DEFINED = (("esr", 0x7E0), ("pnmirr", 0x3_3EFF))
_TIMERS = ("timer", "nm_timer")


def local_id(cepic: Any) -> int:
    """Identification of the core at `cepic.index`: core 3:0, node 9:8."""
    node, core = divmod(cepic.index, cepic.model.cores)
    return int(core | node << 8)


BODY = Group(
    word("ctrl", uint32, reset=lambda cepic: CTRL_BOOTSTRAP if cepic.index == 0 else 0),
    word("id", uint32, reset=local_id),
    word("cpr", uint32),
    word("esr", uint32),
    word("esr2", uint32, reset=MASKED),
    word("cir", uint32),
    words("pmirr", uint64, 16),
    word("pnmirr", uint32),
    word("esr_new", uint32),
    word("icr", uint64),
    word("timer_lvtt", uint32, reset=MASKED),
    word("timer_init", uint32),
    word("timer_cur", uint32),
    word("timer_div", uint32),
    word("nm_timer_lvtt", uint32),
    word("nm_timer_init", uint32),
    word("nm_timer_cur", uint32),
    word("nm_timer_div", uint32),
    word("svr", uint32),
    word("pnmirr_mask", uint32, reset=0x3_2000),
    word("vect_inta", uint32),
    word("timer_expiry", timer, reset=NOT_ARMED),
    word("nm_timer_expiry", timer, reset=NOT_ARMED),
    word("wait_for_startup", uint32, reset=lambda cepic: int(cepic.index != 0)),
)
HV = Group(
    word("ctrl2", uint32),
    word("dat", uint64),
    word("epic_int", uint32),
    word("epic_int2", uint64),
    word("gstbase", uint64),
    word("gstid", uint32),
    octets("guest_page", GUEST_PAGE),
)


class Cepic:
    """The CEPIC of one CPU: raw register words.

    Attributes:
        index: number of its CPU, the instance id.
        model: CPU model.
        cpu: the CPU whose HARD and NMI requests it drives; None: nobody's.
        ctrl: bootstrap core bit 8, software enable bit 10.
        id: core 3:0, node 9:8.
        cpr: priority of the core in 10:8.
        esr, esr2, esr_new: error status; vector of the error interrupt in 9:0, status 12, mask 16.
        cir, vect_inta: current interrupt, and the one acknowledged last with the priority before it in 18:16.
        pmirr: maskable requests: vector v is bit v mod 64 of word v // 64.
        pnmirr, pnmirr_mask: non-maskable requests, and which of them are held back.
        icr: interrupt command.
        timer_lvtt, timer_init, timer_cur, timer_div: timer, its count as of the save; `nm_` the non-maskable one.
        svr: spurious vector.
        timer_expiry, nm_timer_expiry: ns of the virtual clock, -1: not armed.
        wait_for_startup: 1 while the CPU waits to be started.
        ctrl2, dat, epic_int, epic_int2, gstbase, gstid: hypervisor's registers.
        guest_page: the guest half's registers as stored, a bytearray of 4096.
    """

    ctrl: int
    id: int
    cpr: int
    esr: int
    esr2: int
    cir: int
    pmirr: Words64
    pnmirr: int
    esr_new: int
    icr: int
    timer_lvtt: int
    timer_init: int
    timer_cur: int
    timer_div: int
    nm_timer_lvtt: int
    nm_timer_init: int
    nm_timer_cur: int
    nm_timer_div: int
    svr: int
    pnmirr_mask: int
    vect_inta: int
    timer_expiry: int
    nm_timer_expiry: int
    wait_for_startup: int
    ctrl2: int
    dat: int
    epic_int: int
    epic_int2: int
    gstbase: int
    gstid: int
    guest_page: bytearray

    def __init__(self, index: int, model: CpuModel, cpu: CpuCommon | None = None) -> None:
        """The CEPIC of CPU `index` in its reset state."""
        self.index = index
        self.model = model
        self.cpu = cpu
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        for group in (BODY, HV):
            group.reset(self)


def interrupt_pending(cepic: Cepic) -> bool:
    """Whether the CEPIC asserts the core's maskable interrupt (HARD).

    It must be enabled (soft_en of ctrl), and the priority of the highest request in pmirr must be above cpr 10:8. The
    priority of a vector is its bits 9:8 plus one, so that priority 0 of the core lets all of them pass.
    """
    if not cepic.ctrl & CTRL_ENABLE:
        return False
    return (highest(cepic.pmirr, 64) >> 8) + 1 > cepic.cpr >> 8 & 7


def nmi_pending(cepic: Cepic) -> bool:
    """Whether it asserts the non-maskable one: a source in pnmirr that is not held back by pnmirr_mask.

    The other bits of pnmirr are the start-up entry and the start-up and init requests, which are no NMI.
    """
    return bool(cepic.pnmirr & NMI_SOURCES & ~cepic.pnmirr_mask)


def check(cepic: Cepic) -> None:
    """E01 to E05."""
    index = cepic.index
    require(cepic.id <= _MAX_VECTOR, "E01", "cepic %d: bad id 0x%x", index, cepic.id, field="id")
    if cepic.id != local_id(cepic):
        log.debug("cepic %d: id %#x adopted, the core's own is %#x", index, cepic.id, local_id(cepic))
    for name, bits in _DEFINED:
        require(getattr(cepic, name) & ~bits == 0, "E02", "cepic %d: reserved bits in %s", index, name, field=name)
    for name in _TIMERS:
        initial = getattr(cepic, f"{name}_init")
        for part, most in (("div", 0xF), ("cur", initial)):
            field = f"{name}_{part}"
            require(getattr(cepic, field) <= most, "E03", "cepic %d: invalid timer", index, field=field)
    for name, bits in _VECTORS:
        require(getattr(cepic, name) & bits <= _MAX_VECTOR, "E04", "cepic %d: vector out of range", index, field=name)
    for name in _TIMERS:
        field = f"{name}_expiry"
        idle = getattr(cepic, field) == NOT_ARMED
        armed = "cepic %d: timer armed with zero count"
        require(idle or getattr(cepic, f"{name}_init"), "E05", armed, index, field=field)


def loaded(cepic: Cepic, version: int) -> object:
    """post_load: the checks, then the CPU's requests (R3).

    HARD and NMI become `interrupt_pending` and `nmi_pending`, whatever the stream said of them. Arming both timers by
    their expiry is the emulator's `after_load`; so is raising HARD for a vector that it keeps in cir alone.
    """
    check(cepic)
    request(cepic, HARD, interrupt_pending(cepic))
    request(cepic, NMI, nmi_pending(cepic))
    return after_load(cepic, version)


CEPIC = VMStateDescription(
    "cepic",
    fields=BODY.FIELDS,
    pre_save=before_save,
    post_load=loaded,
    reads=("index", "model.cores"),
    may_read=("cpu",),
    # an emulator that does not model virtualization has zeros there
    subsections=[HV.subsection("cepic/hv")],
)
