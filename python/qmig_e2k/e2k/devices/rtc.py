"""Real-time clock MC146818, layout of QEMU's `mc146818rtc` (spec/e2k-machine.md 3.10).

Versions 1 and 2 know no time but that in the registers: it is taken from there. The period of the periodic interrupt
follows from registers A and B, whatever the stream says.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from qmig_e2k.e2k.hooks import after_load, before_save
from qmig_e2k.e2k.registers import Group, octets, word
from qmig_e2k.vmstate import VMStateDescription, buffer, int64, timer, uint8, uint16, uint32, uint64, unused

NOT_ARMED = -1
CMOS_SIZE = 128
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
CENTURY = 0x32
REG_A, REG_B, REG_C, REG_D = 10, 11, 12, 13
A_RATE = 0x0F
"""Rate of the periodic interrupt in register A."""
B_HOURS_24, B_BINARY, B_PERIODIC = 0x02, 0x04, 0x40
_HOUR_PM = 0x80
_A_RESET, _B_RESET, _D_RESET = 0x26, B_HOURS_24, 0x80
"""32768 Hz time base and 1024 Hz rate; BCD and 24 hours; the battery is good."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STATE = Group(
    octets("cmos_data", CMOS_SIZE),
    word("cmos_index", uint8),
    word("periodic_timer", timer, reset=NOT_ARMED),
    word("next_periodic_time", int64),
    word("irq_coalesced", uint32),
    word("period", uint32),
    word("base_rtc", uint64, reset=lambda rtc: rtc.base),
    word("last_update", uint64),
    word("offset", int64),
    word("update_timer", timer, reset=NOT_ARMED),
    word("next_alarm_time", uint64),
)
_REINJECT = Group(word("irq_reinject_on_ack_count", uint16))


class Rtc:
    """The clock.

    Hooks call `clock_ns()` if there is one: the present time in ns by which `last_update` is counted.

    Attributes:
        base: seconds since 1970 that it shows after power-on.
        cmos_data: registers and battery-backed memory.
        cmos_index: register selected by port 0x70.
        periodic_timer, update_timer: when they fire, -1: not armed.
        next_periodic_time: time of the next periodic interrupt.
        irq_coalesced: periodic interrupts that are still owed to the guest.
        period: ticks of 32768 Hz between two of them, 0: none.
        base_rtc: seconds since 1970 at `last_update`; `offset`: ns to be added.
        next_alarm_time: time of the alarm.
        irq_reinject_on_ack_count: interrupts that were delivered again at their acknowledgement.
    """

    cmos_data: bytearray
    cmos_index: int
    periodic_timer: int
    next_periodic_time: int
    irq_coalesced: int
    period: int
    base_rtc: int
    last_update: int
    offset: int
    update_timer: int
    next_alarm_time: int
    irq_reinject_on_ack_count: int

    def __init__(self, base: int = 0) -> None:
        """A clock in its reset state."""
        self.base = base
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        _STATE.reset(self)
        _REINJECT.reset(self)
        cmos = self.cmos_data
        cmos[REG_A], cmos[REG_B], cmos[REG_D] = _A_RESET, _B_RESET, _D_RESET
        put_time(cmos, self.base)


def put_time(cmos: bytearray, seconds: int) -> None:
    """Write a time, seconds since 1970, to the registers in the form that register B asks for."""
    now = _EPOCH + timedelta(seconds=seconds)
    hour, late = now.hour, 0
    if not cmos[REG_B] & B_HOURS_24:
        late = _HOUR_PM if hour >= 12 else 0
        hour = hour % 12 or 12
    values = {
        SECONDS: now.second,
        MINUTES: now.minute,
        HOURS: hour,
        WEEKDAY: now.isoweekday() % 7 + 1,
        DAY: now.day,
        MONTH: now.month,
        YEAR: now.year % 100,
        CENTURY: now.year // 100,
    }
    binary = cmos[REG_B] & B_BINARY
    for index, value in values.items():
        cmos[index] = value if binary else value // 10 << 4 | value % 10
    cmos[HOURS] |= late


def read_time(cmos: bytes | bytearray) -> int:
    """Seconds since 1970 that the registers show. A guest may have written anything: months carry over into years."""
    binary = cmos[REG_B] & B_BINARY

    def number(byte: int) -> int:
        return byte if binary else (byte >> 4) * 10 + (byte & 15)

    if cmos[REG_B] & B_HOURS_24:
        hour = number(cmos[HOURS])
    else:
        hour = number(cmos[HOURS] & ~_HOUR_PM) % 12 + (12 if cmos[HOURS] & _HOUR_PM else 0)
    year, month = divmod((number(cmos[CENTURY]) * 100 + number(cmos[YEAR])) * 12 + number(cmos[MONTH]) - 1, 12)
    days = _days(year, month + 1) + number(cmos[DAY]) - 1
    return ((days * 24 + hour) * 60 + number(cmos[MINUTES])) * 60 + number(cmos[SECONDS])


def _days(year: int, month: int) -> int:
    """Days from 1970-01-01 to the first of a month, in the Gregorian calendar, for any year."""
    cycle, year_in_cycle = divmod(year, 400)  # a cycle of the calendar is 146097 days
    first = datetime(2000 + year_in_cycle, month, 1, tzinfo=UTC)
    return (first - _EPOCH).days + (cycle - 5) * 146_097


def periodic_ticks(cmos: bytes | bytearray) -> int:
    """Ticks of 32768 Hz between two periodic interrupts as registers A and B ask for them; 0: none."""
    rate = cmos[REG_A] & A_RATE
    if not rate or not cmos[REG_B] & B_PERIODIC:
        return 0
    return 1 << (rate + 7 if rate <= 2 else rate) - 1


def _derive(rtc: Any, version: int) -> object:
    """post_load."""
    if version < 3:
        clock = getattr(rtc, "clock_ns", None)
        rtc.base_rtc = read_time(rtc.cmos_data) % (1 << 64)
        rtc.last_update = 0 if clock is None else clock()
        rtc.offset = 0
    rtc.period = periodic_ticks(rtc.cmos_data)
    if not rtc.period:
        rtc.irq_coalesced = 0  # nothing is owed without a periodic interrupt
    return after_load(rtc, version)


RTC = VMStateDescription(
    "mc146818rtc",
    version_id=3,
    minimum_version_id=1,
    fields=[
        buffer("cmos_data", CMOS_SIZE),
        uint8("cmos_index"),
        unused(28),
        timer("periodic_timer"),
        int64("next_periodic_time"),
        unused(24),
        uint32("irq_coalesced", version=2),
        uint32("period", version=2),
        uint64("base_rtc", version=3),
        uint64("last_update", version=3),
        int64("offset", version=3),
        timer("update_timer", version=3),
        uint64("next_alarm_time", version=3),
    ],
    pre_save=before_save,
    post_load=_derive,
    may_read=("clock_ns",),
    subsections=[_REINJECT.subsection("mc146818rtc/irq_reinject_on_ack_count")],
)
