"""Identity, instruction pointer and processor status."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qmig_e2k.vmstate import uint32, uint32_equal, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu.state import Cpu

log = logging.getLogger(__name__)

FIELDS = (
    uint32_equal.with_hint("both sides need the same CPU model")("isa"),
    uint64("idr"),
    uint32("rf_form"),
    uint64("ip"),
    uint64("nip"),
    uint32("psr"),
    uint32("upsr"),
    uint32("core_mode"),
)

NORMAL_FORM = 0
"""The current window starts at index 0, everything else is in memory; lazy spilling (form 1) is not implemented."""

_IDR_IDENTITY = 0xFF | 0x1F << 15 | 0xF << 20
"""Model, core and node number."""
_IDR_RESERVED = ~((1 << 29) - 1)
_ADDRESS = (1 << 48) - 8
_UPSR_FSM = 1 << 8


def reset(cpu: Cpu) -> None:
    """Values after power-on."""
    cpu.isa = cpu.model.isa
    cpu.idr = cpu.model.idr(cpu.index)
    cpu.rf_form = NORMAL_FORM
    cpu.ip = cpu.entry
    cpu.nip = 0
    cpu.psr = 0x01
    cpu.upsr = 0x81
    cpu.core_mode = 0


def core_mode_mask(isa: int) -> int:
    """Bits of CORE_MODE that exist in an ISA."""
    if isa < 3:
        return 0
    return 0x1FE if isa >= 7 else 0x7E if isa == 6 else 0x1E


def check(cpu: Cpu) -> None:
    """Refuse what no run of this CPU can produce (C02 to C08)."""
    local = cpu.model.idr(cpu.index)
    cpu.require((cpu.idr ^ local) & _IDR_IDENTITY == 0, f"IDR {cpu.idr:#x} does not match {local:#x}")
    cpu.require(cpu.idr & _IDR_RESERVED == 0, f"IDR {cpu.idr:#x} does not match {local:#x}")
    if cpu.idr != local:
        log.debug("cpu %d: IDR %#x adopted, the model's is %#x", cpu.index, cpu.idr, local)
    cpu.require(cpu.rf_form == NORMAL_FORM, f"register file form {cpu.rf_form} not supported")
    for address in (cpu.ip, cpu.nip):
        cpu.require(address & ~_ADDRESS == 0, f"bad instruction address {address:#x}")
    cpu.require(cpu.psr <= 0x7F, "reserved bits in PSR")
    cpu.require(cpu.upsr <= 0x7FF and (cpu.isa >= 3 or not cpu.upsr & _UPSR_FSM), "reserved bits in UPSR")
    cpu.require(cpu.core_mode & ~core_mode_mask(cpu.isa) == 0, "reserved bits in CORE_MODE")
