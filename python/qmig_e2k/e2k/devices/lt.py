"""System timer, power-on and reset counters, and watchdog of one node (`e2k-lt`, spec/e2k-machine.md 3.10).

The counters run at 10 MHz. They travel as their values at the moment of the save, with the virtual time of that
moment, so that they go on from there.
"""

from __future__ import annotations

import logging
from typing import Any

from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word
from qmig_e2k.vmstate import VMStateDescription, int64, timer, uint32, uint64

log = logging.getLogger(__name__)

NOT_ARMED = -1
COUNTER_FLAG = 1 << 31
COUNTER_BITS = 0x7FFF_FE00
"""Value of a counter: bits 30:9."""
CONTROL_START, CONTROL_INVERT, CONTROL_LIMIT_INIT = 1, 2, 4
_CONTROL_BITS = 7

BODY = Group(
    word("counter_limit", uint32),
    word("counter_start", uint32),
    word("counter", uint32),
    word("counter_control", uint32),
    word("counter_base_ns", int64),
    word("counter_timer", timer, reset=NOT_ARMED),
    word("power_counter", uint64),
    word("reset_counter", uint64),
    word("latch_power_h", uint32),
    word("latch_reset_h", uint32),
    word("irq_level", uint32),
)
WATCHDOG = Group(
    word("wd_counter", uint32),
    word("wd_prescaler", uint32, reset=0x1000),
    word("wd_limit", uint32, reset=0x2FB2),
    word("wd_control", uint32),
    word("wd_base_ns", int64),
    word("wd_timer", timer, reset=NOT_ARMED),
)


class Lt:
    """The timers of one node: raw register words.

    Attributes:
        node: number of the node, the instance id.
        counter_limit, counter_start, counter: system timer; value in bits 30:9, flag in bit 31.
        counter_control: start 0, invert 1, limit initialises 2.
        counter_base_ns: virtual time of `counter`.
        counter_timer, wd_timer: virtual time of the next event, -1: not armed.
        power_counter, reset_counter: ticks since power-on and since reset.
        latch_power_h, latch_reset_h: high half that a read of the low half has latched.
        irq_level: line of the system timer 0, of the watchdog 1.
        wd_counter, wd_prescaler, wd_limit: watchdog.
        wd_control: mode 0, output enabled 1, event 2.
        wd_base_ns: virtual time of `wd_counter`.
    """

    counter_limit: int
    counter_start: int
    counter: int
    counter_control: int
    counter_base_ns: int
    counter_timer: int
    power_counter: int
    reset_counter: int
    latch_power_h: int
    latch_reset_h: int
    irq_level: int
    wd_counter: int
    wd_prescaler: int
    wd_limit: int
    wd_control: int
    wd_base_ns: int
    wd_timer: int

    def __init__(self, node: int = 0) -> None:
        """The timers of `node` in their reset state."""
        self.node = node
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        BODY.reset(self)
        WATCHDOG.reset(self)


def _check(lt: Any, version: int) -> object:
    """post_load (L01, L02)."""
    for name in ("counter_limit", "counter_start", "counter"):
        good = getattr(lt, name) & ~(COUNTER_FLAG | COUNTER_BITS) == 0
        require(good, "L01", "lt: reserved bits in %s", name, field=name)
    good = lt.counter_control <= _CONTROL_BITS
    require(good, "L01", "lt: reserved bits in %s", "counter_control", field="counter_control")
    good = lt.wd_control <= _CONTROL_BITS
    require(good, "L01", "lt: reserved bits in %s", "wd_control", field="e2k-lt/wd.wd_control")
    if lt.counter_control & CONTROL_START and not lt.counter_limit & COUNTER_BITS:
        log.debug("lt: the system timer runs with a limit of 0")
    return after_load(lt, version)


LT = VMStateDescription(
    "e2k-lt",
    fields=BODY.FIELDS,
    pre_save=before_save,
    post_load=_check,
    subsections=[WATCHDOG.subsection("e2k-lt/wd")],
)
