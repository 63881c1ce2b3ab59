"""Timers, clock and optional devices: reset values, layout, checks (spec/e2k-machine.md 3.10)."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from devices import change, layout, load, pack, present, refused, save, state, subsection, told
from qmig_e2k.e2k import MODELS
from qmig_e2k.e2k.devices import GPIO, I2C_SPI, LMSCON, LT, RTC, SPMC, Gpio, I2cSpi, Lmscon, Lt, Rtc, Spmc
from qmig_e2k.e2k.devices.rtc import periodic_ticks, put_time, read_time
from support import STREAMS

RECORDED = STREAMS / "sections" / "qemu7-pc.json"
WATCHDOG_RESET = {"wd_prescaler": 0x1000, "wd_limit": 0x2FB2, "wd_timer": -1}


def seconds(*when: int) -> int:
    """Seconds since 1970 of a date and time."""
    return int(datetime(*when, tzinfo=UTC).timestamp())  # type: ignore[arg-type, misc]


# -- e2k-lt


def test_lt_reset_and_layout() -> None:
    device = Lt(node=3)
    assert device.node == 3
    raw = save(LT, device)
    assert raw == pack("e2k-lt", {"counter_timer": -1})
    assert present(LT, device) == []
    assert [row.name for row in LT.fields] == [name for name, _ in layout("e2k-lt")]
    at_reset = {name: getattr(device, name) for name, _ in layout("e2k-lt/wd")}
    assert at_reset == dict.fromkeys(at_reset, 0) | WATCHDOG_RESET
    change(device, dict.fromkeys(state(LT, device), 1))
    device.reset()
    assert save(LT, device) == raw


@pytest.mark.parametrize("name", [name for name, _ in layout("e2k-lt/wd")])
def test_the_watchdog_travels_when_it_is_off_its_reset_value(name: str) -> None:
    source, target = change(Lt(), {name: 5}), Lt()
    raw = save(LT, source)
    assert raw == pack("e2k-lt", {"counter_timer": -1}) + subsection("e2k-lt/wd", WATCHDOG_RESET | {name: 5})
    load(LT, target, raw)
    assert state(LT, target) == state(LT, source)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        *((name, 0xFFFF_FE00) for name in ("counter_limit", "counter_start", "counter")),
        ("counter_control", 7),
        ("wd_control", 7),
    ],
)
def test_l01_reserved_bits(name: str, allowed: int) -> None:
    target = Lt()
    load(LT, target, save(LT, change(Lt(), {name: allowed})))
    assert getattr(target, name) == allowed
    place = f"e2k-lt/0/e2k-lt/wd.{name}" if name == "wd_control" else f"e2k-lt/0/{name}"
    for bit in range(32):
        if not allowed >> bit & 1:
            error = refused(LT, Lt(), save(LT, change(Lt(), {name: 1 << bit})))
            assert told(error) == ("L01", f"lt: reserved bits in {name}", place)


@pytest.mark.parametrize(("limit", "control", "said"), [(0, 1, True), (1 << 9, 1, False), (0, 6, False)])
def test_l02_a_limit_of_zero_is_only_traced(limit: int, control: int, said: bool, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    load(LT, Lt(), save(LT, change(Lt(), {"counter_limit": limit, "counter_control": control})))
    assert ("limit of 0" in caplog.text) is said


# -- lmscon, spmc, i2c-spi, gpio


def test_lmscon() -> None:
    source, target = change(Lmscon(), {"tx": 0xEE}), Lmscon()
    assert save(LMSCON, source) == b"\xee"
    load(LMSCON, target, b"\xee")
    assert target.tx == 0xEE
    target.reset()
    assert target.tx == 0


def test_spmc_reset() -> None:
    at_reset = {"atnsus": 0x0037_0000, "purst": 0x0037_0000, "overflow_timer": -1}
    assert save(SPMC, Spmc())[276:] == pack("e2k-spmc", {"version_id": 0, "config": 0} | at_reset)[276:]


def test_l04_live_registers_are_copied_to_configuration_space() -> None:
    source, target = Spmc(), Spmc()
    change(source, {"pm1_sts": 0x1122_3344, "atnsus": 0x5566_7788, "purst": 0x99AA_BBCC, "g_state": 1, "s_state": 5})
    source.config[0x40], source.config[0x58] = 9, 8
    raw = save(SPMC, source)
    config = raw[4:260]
    assert (config[0x40], config[0x58]) == (9, 8)
    assert config[0x44:0x48] == bytes.fromhex("44332211")
    assert config[0x50:0x58] == bytes.fromhex("88776655ccbbaa99")
    load(SPMC, target, raw)
    assert state(SPMC, target) == state(SPMC, source)


@pytest.mark.parametrize(("name", "value"), [("g_state", 2), ("s_state", 6), ("s_state", 1 << 31)])
def test_l04_power_states(name: str, value: int) -> None:
    error = refused(SPMC, Spmc(), save(SPMC, change(Spmc(), {name: value})))
    assert told(error) == ("L04", "spmc: bad power state", f"e2k-spmc/0/{name}")


@pytest.mark.parametrize("model", ["e8c", "e16c"])
def test_i2c_spi(model: str) -> None:
    source, target = I2cSpi(MODELS[model]), I2cSpi(MODELS[model])
    change(source, {"ctrl": [n << 24 | n for n in range(16)], "data": list(range(64))})
    source.config[0x60:0x6C] = bytes(range(12))
    raw = save(I2C_SPI, source)
    assert len(raw) == 276 + 64 + 64
    load(I2C_SPI, target, raw)
    assert state(I2C_SPI, target) == state(I2C_SPI, source)
    target.reset()
    assert save(I2C_SPI, target) == save(I2C_SPI, I2cSpi(MODELS[model]))


def test_another_hub_is_another_device() -> None:
    error = refused(I2C_SPI, I2cSpi(MODELS["e8c"]), save(I2C_SPI, I2cSpi(MODELS["e16c"])))
    assert told(error)[0] == "P01"


@pytest.mark.parametrize(("model", "pins"), [("e8c", 16), ("e16c", 32)])
@pytest.mark.parametrize("register", [*range(8), "inputs"])
def test_l05_pins_that_do_not_exist(model: str, pins: int, register: Any) -> None:
    def gpio(value: int) -> Gpio:
        return change(Gpio(MODELS[model]), {"inputs": value} if register == "inputs" else {"regs": {register: value}})

    target = Gpio(MODELS[model])
    load(GPIO, target, save(GPIO, gpio((1 << pins) - 1)))
    assert state(GPIO, target) == state(GPIO, gpio((1 << pins) - 1))
    if pins == 32:
        return
    name = "inputs" if register == "inputs" else "regs"
    error = refused(GPIO, Gpio(MODELS[model]), save(GPIO, gpio(1 << pins)))
    assert told(error) == ("L05", f"gpio: reserved bits in {name}", f"e2k-gpio/0/{name}")


# -- mc146818rtc


def test_rtc_reset_and_layout() -> None:
    base = seconds(2031, 12, 24, 18, 5, 9)
    device = Rtc(base)
    cmos = {0: 0x09, 2: 0x05, 4: 0x18, 6: 0x04, 7: 0x24, 8: 0x12, 9: 0x31, 0x32: 0x20, 10: 0x26, 11: 0x02, 13: 0x80}
    expected = {"cmos_data": [cmos.get(i, 0) for i in range(128)], "base_rtc": base}
    raw = save(RTC, device)
    assert raw == pack("mc146818rtc", expected | {"periodic_timer": -1, "update_timer": -1})
    assert (RTC.version_id, RTC.minimum_version_id) == (3, 1)
    view = device.cmos_data
    change(device, dict.fromkeys(state(RTC, device), 7))
    assert present(RTC, device) == ["mc146818rtc/irq_reinject_on_ack_count"]
    device.reset()
    assert save(RTC, device) == raw
    assert device.cmos_data is view


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("clock", [None, 123_456_789])
def test_old_versions_take_the_time_from_the_registers(version: int, clock: int | None) -> None:
    source, target = Rtc(seconds(1999, 12, 31, 23, 59, 59)), Rtc()
    change(source, {"cmos_index": 3, "periodic_timer": 5, "next_periodic_time": 6, "irq_coalesced": 2})
    source.cmos_data[10], source.cmos_data[11] = 0x2D, 0x42
    if clock is not None:
        target.clock_ns = lambda: clock  # type: ignore[attr-defined]
    raw = save(RTC, source)
    load(RTC, target, raw[: 197 if version == 1 else 205], version)
    assert target.base_rtc == seconds(1999, 12, 31, 23, 59, 59)
    assert (target.last_update, target.offset) == (clock or 0, 0)
    assert (target.update_timer, target.next_alarm_time) == (-1, 0)
    assert (target.periodic_timer, target.next_periodic_time, target.period) == (5, 6, 4096)
    assert target.irq_coalesced == (2 if version == 2 else 0)


def test_a_reset_comes_before_an_old_stream() -> None:
    """What version 1 does not have keeps its reset value."""
    target = Rtc(77)
    load(RTC, target, save(RTC, Rtc(0))[:197], 1)
    assert (target.base_rtc, target.next_alarm_time) == (0, 0)


@pytest.mark.parametrize(
    ("a", "b", "ticks"),
    [
        (0x26, 0x02, 0),
        *((rate, 0x42, ticks) for rate, ticks in ((0x20, 0), (0x21, 128), (0x22, 256), (0x23, 4), (0x26, 32))),
        *((rate, 0x42, ticks) for rate, ticks in ((0x2D, 4096), (0x2F, 16384))),
    ],
)
def test_the_period_follows_from_the_registers(a: int, b: int, ticks: int) -> None:
    source, target = Rtc(), Rtc()
    source.cmos_data[10], source.cmos_data[11] = a, b
    source.period, source.irq_coalesced = 0x999, 3
    assert periodic_ticks(source.cmos_data) == ticks
    load(RTC, target, save(RTC, source))
    assert (target.period, target.irq_coalesced) == (ticks, 3 if ticks else 0)


@pytest.mark.parametrize("b", [0x02, 0x00, 0x06, 0x04])
@pytest.mark.parametrize("hour", [0, 1, 11, 12, 13, 23])
def test_time_in_every_form_of_the_registers(b: int, hour: int) -> None:
    cmos = bytearray(128)
    cmos[11] = b
    for day in ((1970, 1, 1), (2000, 2, 29), (2099, 12, 31)):
        put_time(cmos, seconds(*day, hour, 58, 59))
        assert read_time(cmos) == seconds(*day, hour, 58, 59)


def test_a_real_clock_shows_the_time_that_it_says() -> None:
    (row,) = (row for row in json.loads(RECORDED.read_text()) if row["description"]["name"] == "mc146818rtc")
    clock = Rtc()
    load(RTC, clock, bytes.fromhex(row["payload"]))
    assert 0 <= read_time(clock.cmos_data) - clock.base_rtc <= 1


def test_whatever_a_guest_wrote_is_a_time() -> None:
    cmos = bytearray(b"\xff" * 128)
    for b in (0, 2, 4, 6):
        cmos[11] = b
        assert read_time(cmos) > 0
    target, source = Rtc(), Rtc()
    source.cmos_data[:10], source.cmos_data[0x32] = b"\0" * 10, 0
    load(RTC, target, save(RTC, source)[:197], 1)
    # the year 0, month 0, day 0: the last of November in the year before it, 719560 days before 1970
    assert target.base_rtc == (1 << 64) - 719_560 * 86_400
