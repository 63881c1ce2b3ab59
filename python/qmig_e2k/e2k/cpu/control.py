"""Identity, instruction pointer and processor status."""

from __future__ import annotations

import logging
from typing import Any

from qmig_e2k.e2k.cpu.parts import IsaField
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import Group, Register, word
from qmig_e2k.vmstate import uint32, uint64

log = logging.getLogger(__name__)

NORMAL_FORM = 0
"""The current window starts at index 0, everything else is in memory; lazy spilling (form 1) is not implemented."""

CONTROL = Group(
    Register("isa", "isa", IsaField(), None, 0, lambda cpu: cpu.model.isa),
    word("idr", uint64, reset=lambda cpu: cpu.model.idr(cpu.index)),
    word("rf_form", uint32, reset=NORMAL_FORM),
    word("ip", uint64, reset=lambda cpu: cpu.entry),
    word("nip", uint64),
    word("psr", uint32, reset=0x01),
    word("upsr", uint32, reset=0x81),
    word("core_mode", uint32),
)

_IDR_IDENTITY = 0xFF | 0x1F << 15 | 0xF << 20
"""Model, core and node number."""
_IDR_RESERVED = ~((1 << 29) - 1)
_ADDRESS = (1 << 48) - 8
_UPSR_FSM = 1 << 8


def core_mode_mask(isa: int) -> int:
    """Bits of CORE_MODE that exist in an ISA."""
    if isa < 3:
        return 0
    return 0x1FE if isa >= 7 else 0x7E if isa == 6 else 0x1E


def check(cpu: Any) -> None:
    """Refuse what no run of this CPU can produce (C02 to C08)."""
    index, idr, local = cpu.index, cpu.idr, cpu.model.idr(cpu.index)
    same = (idr ^ local) & _IDR_IDENTITY == 0 and idr & _IDR_RESERVED == 0
    require(same, "C02", "cpu %d: IDR 0x%x does not match 0x%x", index, idr, local, field="idr")
    if idr != local:
        log.debug("C03: cpu %d: IDR %#x adopted, the model's is %#x", index, idr, local)
    form = cpu.rf_form
    require(form == NORMAL_FORM, "C04", "cpu %d: register file form %u not supported", index, form, field="rf_form")
    for name, address in (("ip", cpu.ip), ("nip", cpu.nip)):
        require(address & ~_ADDRESS == 0, "C05", "cpu %d: bad instruction address 0x%x", index, address, field=name)
    require(cpu.psr <= 0x7F, "C06", "cpu %d: reserved bits in PSR", index, field="psr")
    upsr = 0x7FF if cpu.isa >= 3 else 0x7FF & ~_UPSR_FSM
    require(cpu.upsr & ~upsr == 0, "C07", "cpu %d: reserved bits in UPSR", index, field="upsr")
    good = cpu.core_mode & ~core_mode_mask(cpu.isa) == 0
    require(good, "C08", "cpu %d: reserved bits in CORE_MODE", index, field="core_mode")
