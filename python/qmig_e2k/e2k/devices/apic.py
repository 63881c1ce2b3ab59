"""Local APIC of one CPU, with the registers that Elbrus adds to it (spec/e2k-machine.md 3.1).

The layout is QEMU's `apic`, version 3; the Elbrus registers travel in the subsection `apic/e2k`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.e2k.cpu.parts import Preset
from qmig_e2k.e2k.devices.controllers import HARD, NMI, first_with, highest, request
from qmig_e2k.e2k.hooks import CheckError, after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, int32, int64, uint8, uint32

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu import CpuCommon
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words32

BASE = 0xFEE0_0000
BASE_ENABLE = 1 << 11
BASE_BOOTSTRAP = 1 << 8
SPURIOUS_ENABLE = 1 << 8
"""Software enable bit of the spurious-vector register."""
MASKED = 1 << 16
"""Mask bit of an LVT entry."""
NOT_ARMED = -1
_LVT_RESERVED = 0xFFF0_0000
_NM_CAUSES = 0x7_FF00

BODY = Group(
    word("apicbase", uint32, reset=lambda apic: BASE | BASE_ENABLE | (BASE_BOOTSTRAP if apic.index == 0 else 0)),
    word("id", uint8, reset=lambda apic: apic.index),
    word("arb_id", uint8),
    word("tpr", uint8),
    word("spurious_vec", uint32, reset=0xFF),
    word("log_dest", uint8),
    word("dest_mode", uint8, reset=0xF),
    words("isr", uint32, 8),
    words("tmr", uint32, 8),
    words("irr", uint32, 8),
    words("lvt", uint32, 6, reset=MASKED),
    word("esr", uint32),
    words("icr", uint32, 2),
    word("divide_conf", uint32),
    word("count_shift", int32),
    word("initial_count", uint32),
    word("initial_count_load_time", int64),
    word("next_time", int64),
    word("timer_expiry", int64, reset=NOT_ARMED),
)
SIPI = Group(
    word("sipi_vector", int32),
    word("wait_for_sipi", int32, reset=lambda apic: int(apic.index != 0)),
)
E2K = Group(
    word("nm_timer_lvtt", uint32, reset=MASKED),
    word("nm_timer_init", uint32),
    word("nm_timer_cur", uint32),
    word("nm_timer_div", uint32),
    word("lvt2", uint32, reset=MASKED),
    word("lvt3", uint32, reset=MASKED),
    word("lvt4", uint32, reset=MASKED),
    word("m_erm", uint32),
    word("nm", uint32),
    word("nm_timer_expiry", int64, reset=NOT_ARMED),
)


class Apic:
    """The local APIC of one CPU: raw register words.

    Attributes:
        index: number of its CPU: initial APIC id and instance id.
        model: CPU model.
        cpu: the CPU whose HARD and NMI requests it drives; None: nobody's.
        apicbase: base address, enable bit 11, bootstrap bit 8.
        id, arb_id, tpr, log_dest, dest_mode: identification, task priority, logical addressing.
        spurious_vec: vector 7:0, software enable bit 8.
        isr, tmr, irr: in service, level-triggered, requested: vector v is bit v mod 32 of word v // 32.
        lvt: timer, thermal, performance, LINT0, LINT1, error.
        esr, icr: error status; interrupt command, low word first.
        divide_conf, count_shift, initial_count: the timer's divider (as written, and as a shift) and first count.
        initial_count_load_time, next_time: ns of the virtual clock.
        timer_expiry, nm_timer_expiry: ns of the virtual clock, -1: not armed.
        sipi_vector, wait_for_sipi: start-up vector, and 1 while the CPU waits for it.
        nm_timer_lvtt, nm_timer_init, nm_timer_cur, nm_timer_div: the non-maskable timer, its count as of the save.
        lvt2, lvt3, lvt4, m_erm: Elbrus' further vectors and error mask.
        nm: pending non-maskable causes.
    """

    apicbase: int
    id: int
    arb_id: int
    tpr: int
    spurious_vec: int
    log_dest: int
    dest_mode: int
    isr: Words32
    tmr: Words32
    irr: Words32
    lvt: Words32
    esr: int
    icr: Words32
    divide_conf: int
    count_shift: int
    initial_count: int
    initial_count_load_time: int
    next_time: int
    timer_expiry: int
    sipi_vector: int
    wait_for_sipi: int
    nm_timer_lvtt: int
    nm_timer_init: int
    nm_timer_cur: int
    nm_timer_div: int
    lvt2: int
    lvt3: int
    lvt4: int
    m_erm: int
    nm: int
    nm_timer_expiry: int

    def __init__(self, index: int, model: CpuModel, cpu: CpuCommon | None = None) -> None:
        """The APIC of CPU `index` in its reset state."""
        self.index = index
        self.model = model
        self.cpu = cpu
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        for group in (BODY, SIPI, E2K):
            group.reset(self)


def interrupt_pending(apic: Apic) -> bool:
    """Whether the APIC asserts the CPU's maskable interrupt (HARD).

    It must be enabled (bit 11 of apicbase, bit 8 of spurious_vec), and the class (vector 7:4) of the highest request
    in irr must be above the processor priority, which is the higher one of tpr 7:4 and the highest class in isr.
    """
    if not (apic.apicbase & BASE_ENABLE and apic.spurious_vec & SPURIOUS_ENABLE):
        return False
    return highest(apic.irr, 32) >> 4 > max(apic.tpr >> 4, highest(apic.isr, 32) >> 4)


def check_e2k(apic: Apic, _version: int) -> None:
    """post_load of `apic/e2k`: A04."""
    require(apic.nm & ~_NM_CAUSES == 0, "A04", "apic %d: reserved bits in NM", apic.index, field="nm")


def loaded(apic: Apic, version: int) -> object:
    """post_load: A01, A02, then the CPU's requests (R3).

    HARD becomes `interrupt_pending`, whatever the stream said of it. NMI is set if a cause is pending in nm and left
    as it came otherwise: an NMI from elsewhere (a pin, another CPU's command) leaves no trace in the APIC, and must not
    be lost. Arming or cancelling both timers by their expiry is the emulator's `after_load`.
    """
    index = first_with(apic.lvt, _LVT_RESERVED)
    if index is not None:
        raise CheckError("A01", f"apic {apic.index}: reserved bits in LVT {index}", f"lvt[{index}]")
    require(0 <= apic.count_shift <= 7, "A02", "apic %d: bad divider", apic.index, field="count_shift")
    request(apic, HARD, interrupt_pending(apic))
    if apic.nm:
        request(apic, NMI, True)
    return after_load(apic, version)


APIC = VMStateDescription(
    "apic",
    version_id=3,
    minimum_version_id=3,
    # a stream without `apic_sipi` means that the CPU does not wait, on secondary CPUs too
    fields=[*BODY.FIELDS, Preset("wait_for_sipi", lambda _: 0)],
    pre_save=before_save,
    post_load=loaded,
    reads=("index",),
    may_read=("cpu",),
    subsections=[
        VMStateDescription("apic_sipi", fields=SIPI.FIELDS, needed=lambda apic: apic.wait_for_sipi != 0),
        E2K.subsection("apic/e2k", post_load=check_e2k),
    ],
)
