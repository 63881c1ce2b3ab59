"""PCI, hub, ESCC, timers, clock, options: any legal state round-trips; one changed field loads legally or is refused.

What is legal is said here a second time, after spec/e2k-machine.md 3.7 to 3.10.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import HUB_LAYOUTS, layout, load, number, put, rows, save, state
from qmig_e2k.e2k import MODELS
from qmig_e2k.e2k import devices as e2k
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.vmstate import VMStateDescription

Device = Any
OLD, NEW = MODELS["e8c"], MODELS["e16c"]
COUNTER = 0xFFFF_FE00
LIVE = {"pm1_sts": 0x44, "atnsus": 0x50, "purst": 0x54}
GPIO_16 = dict.fromkeys(("regs", "inputs"), ("L05", range(1 << 16)))


@dataclass(frozen=True)
class Kind:
    """One kind of device: its description, how it is made, and the values that a register may have with their check."""

    description: VMStateDescription
    new: Callable[[], Device]
    checks: dict[str, tuple[str, Any]] = field(default_factory=dict)


class Bits:
    """Numbers within a mask."""

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def __contains__(self, value: int) -> bool:
        return value & ~self.mask == 0


KINDS = {
    "host": Kind(e2k.PCI_HOST, e2k.PciHost),
    "bus": Kind(e2k.PCI_BUS, lambda: e2k.PciBus(4)),
    "iohub": Kind(e2k.IOHUB, e2k.IoHub),
    "bridge": Kind(e2k.IOHUB_PCIBRIDGE, e2k.PciBridge),
    "escc-pci": Kind(e2k.ESCC_PCI, e2k.EsccPci),
    "escc": Kind(e2k.ESCC, e2k.Escc, {"reg": ("K01", range(16))}),
    "lmscon": Kind(e2k.LMSCON, e2k.Lmscon),
    "lt": Kind(
        e2k.LT,
        e2k.Lt,
        dict.fromkeys(("counter_limit", "counter_start", "counter"), ("L01", Bits(COUNTER)))
        | dict.fromkeys(("counter_control", "wd_control"), ("L01", range(8))),
    ),
    "spmc": Kind(e2k.SPMC, e2k.Spmc, {"g_state": ("L04", range(2)), "s_state": ("L04", range(6))}),
    "i2c-spi": Kind(e2k.I2C_SPI, lambda: e2k.I2cSpi(OLD)),
    "gpio-16": Kind(e2k.GPIO, lambda: e2k.Gpio(OLD), GPIO_16),
    "gpio-32": Kind(e2k.GPIO, lambda: e2k.Gpio(NEW)),
    "rtc": Kind(e2k.RTC, e2k.Rtc),
}
IDENTITY = {*range(4), *range(8, 12), 14, 52, 61}
COMPARED = {"iohub": {44, 45, 46, 47}, "bridge": set[int]()}
"""Bytes of configuration space that cannot differ; all but the bridge have four more."""


def codes(name: str) -> dict[str, str]:
    """`struct` code of every register of a description, those inside it too."""
    made = {}
    for field_name, code in layout(name):
        number, nested, inner = code.partition("@")
        if nested:
            made |= {f"{field_name}.{key}" if number else key: c for key, c in codes(inner).items()}
        elif field_name not in ("unused", "nirq", "version_id"):
            made[field_name] = code
    return made


def all_codes(description: VMStateDescription) -> dict[str, str]:
    return codes(description.name) | {
        key: code for part in description.subsections for key, code in codes(part.name).items()
    }


def places(device: Device, register: str) -> list[tuple[Device, str]]:
    """The objects that hold a register: both channels for one of a channel."""
    owner, dot, name = register.partition(".")
    return [(channel, name) for channel in getattr(device, owner)] if dot else [(device, register)]


def numbers(code: str) -> st.SearchStrategy[Any]:
    """Any content of a register; extremes and single bits are frequent."""
    one = number(code[-1])
    if len(code) == 1:
        return one
    count = int(code[:-1])
    few = st.dictionaries(st.integers(0, count - 1), one, min_size=1, max_size=2)
    if code[-1] == "B":
        return few | st.binary(min_size=count, max_size=count).map(list)
    return few | st.lists(one, min_size=count, max_size=count)


def wrong(name: str, device: Device, fresh: Device) -> set[str]:
    """Codes of everything that is wrong with a device's state."""
    found = set()
    for register in all_codes(KINDS[name].description):
        for owner, attribute in places(device, register):
            have = getattr(owner, attribute)
            code, legal = KINDS[name].checks.get(attribute, ("", None))
            values = [have] if isinstance(have, int) else list(map(int, have))
            if legal is not None and any(value not in legal for value in values):
                found.add(code)
    if not hasattr(device, "config"):
        return found
    compared = IDENTITY | COMPARED.get(name, {44, 45, 46, 47})
    masks = dict.fromkeys(compared, 0xFF) | {6: 0x10} | ({20: 3} if name == "escc-pci" else {})
    if any((device.config[at] ^ fresh.config[at]) & mask for at, mask in masks.items()):
        found.add("P01")
    return found | ({"P02"} if max(device.irq_state) > 1 else set())


def draw(data: st.DataObject, name: str, device: Device, register: str) -> None:
    """Put any value into a register."""
    for owner, attribute in places(device, register):
        put(owner, attribute, data.draw(numbers(all_codes(KINDS[name].description)[register]), register))


def legal_device(data: st.DataObject, name: str) -> Device:
    """A device some of whose registers are off their reset values."""
    kind = KINDS[name]
    device, fresh = kind.new(), kind.new()
    registers = sorted(all_codes(kind.description))
    for register in sorted(data.draw(st.sets(st.sampled_from(registers), max_size=12), "registers")):
        draw(data, name, device, register)
    for register in registers:
        for owner, attribute in places(device, register):
            _, legal = kind.checks.get(attribute, ("", None))
            have = getattr(owner, attribute)
            if isinstance(legal, Bits):
                setattr(owner, attribute, have & legal.mask)
            elif legal is not None and isinstance(have, int):
                setattr(owner, attribute, have % len(legal))
            elif legal is not None:
                have %= len(legal)
    if hasattr(device, "config"):
        device.irq_state &= 1
        for at in IDENTITY | {6, 20, 44, 45, 46, 47}:
            device.config[at] = fresh.config[at]
    settle(name, device)
    return device


def settle(name: str, device: Device) -> None:
    """What follows from other registers."""
    if name == "spmc":
        for register, at in LIVE.items():
            device.config[at : at + 4] = getattr(device, register).to_bytes(4, "little")
    if name == "rtc":
        rate = device.cmos_data[10] & 15
        device.period = (0, 128, 256, *(1 << n for n in range(2, 15)))[rate] if device.cmos_data[11] & 0x40 else 0
        device.irq_coalesced *= device.period != 0


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=30)
@given(st.data())
def test_any_legal_state_round_trips(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    source, target = legal_device(data, name), kind.new()
    at_reset, have = state(kind.description, target), state(kind.description, source)
    assert wrong(name, source, target) == set()
    raw = save(kind.description, source)
    load(kind.description, target, raw)
    assert state(kind.description, target) == have
    assert save(kind.description, target) == raw
    for part in kind.description.subsections:
        assert part.needed is not None
        assert part.needed(source) is any(have[row.attribute] != at_reset[row.attribute] for row in rows(part))
    target.reset()
    assert state(kind.description, target) == at_reset


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=50)
@given(st.data())
def test_one_changed_register_loads_legally_or_is_refused_by_its_check(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    source, target = legal_device(data, name), kind.new()
    before = state(kind.description, target)
    changed = data.draw(st.sampled_from(sorted(all_codes(kind.description))), "changed")
    draw(data, name, source, changed)
    found = wrong(name, source, target)
    raw = save(kind.description, source)
    if not found:
        load(kind.description, target, raw)
        settle(name, source)
        assert state(kind.description, target) == state(kind.description, source)
        return
    with pytest.raises(StreamError) as caught:
        load(kind.description, target, raw)
    cause = caught.value.__cause__
    assert isinstance(cause, CheckError)
    assert {cause.code} == found
    assert caught.value.path.endswith(f".{changed.partition('.')[2] or changed}") or caught.value.path.endswith(
        f"/{changed}"
    )
    assert state(kind.description, target) == before


def test_no_table_is_left_out() -> None:
    described = [part.name for kind in KINDS.values() for part in (kind.description, *kind.description.subsections)]
    assert {*described, "PCIDevice", "escc_chn"} == set(HUB_LAYOUTS)
