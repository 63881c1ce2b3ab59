"""Interrupt controllers, SIC and IOMMU: any legal state round-trips; one changed field loads legally or is refused.

What is legal is said here a second time, after spec/e2k-machine.md 3.1 to 3.6: the bits that a register may have, and
in a function for each device what depends on another register or on the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import LAYOUTS, RANGES, State, change, layout, load, number, own_rows, present, rows, save, state
from qmig_e2k.e2k import devices as e2k
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.e2k.models import MODELS
from qmig_e2k.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.vmstate import VMStateDescription

MC_WORDS = {"e2c+": 0, "e2s": 41, "e8c": 57, "e8c2": 61, "e12c": 48, "e16c": 192, "e2c3": 48}
TIMERS = ("timer", "nm_timer")
PLACES = ("index", "model", "node", "nodes", "links", "link")
"""What is fixed when a device is made."""

Checks = dict[str, tuple[str, int]]
"""Code and allowed bits, by attribute."""


@dataclass(frozen=True)
class Kind:
    """One kind of device.

    Attributes:
        description: of its section.
        new: makes one after reset, by model and number.
        checks: its masks.
        settle: makes a state legal in what the masks do not say.
        lacks: subsections that a device cannot have.
    """

    description: VMStateDescription
    new: Callable[[Any, int], Any]
    checks: Callable[[Any], Checks]
    settle: Callable[[Any, State], set[str]] = lambda *_: set()
    lacks: Callable[[Any], set[str]] = lambda _: set()


def settle_apic(_: Any, have: State) -> set[str]:
    """The start-up vector travels only while it is waited for."""
    if not have["wait_for_sipi"]:
        have["sipi_vector"] = 0
    return set()


def settle_cepic(_: Any, have: State) -> set[str]:
    """E03 and E05."""
    codes = set()
    for name in TIMERS:
        initial = have[f"{name}_init"]
        if have[f"{name}_cur"] > initial:
            have[f"{name}_cur"] = initial
            codes.add("E03")
        if not initial and have[f"{name}_expiry"] != -1:
            have[f"{name}_expiry"] = -1
            codes.add("E05")
    return codes


def settle_sic(sic: Any, have: State) -> set[str]:
    """S02."""
    count = MC_WORDS[sic.model.name]
    beyond = any(have["mc"][count:])
    have["mc"][count:] = [0] * (192 - count)
    return {"S02"} if beyond else set()


def sic_lacks(sic: Any) -> set[str]:
    facts = {"hmu": sic.model.isa >= 6, "ipcc": sic.nodes > 1, "link1": sic.links > 1}
    return {f"e2k-sic/{part}" for part, there in facts.items() if not there}


def iommu_lacks(iommu: Any) -> set[str]:
    embedded = iommu.model.name == "e2c3"
    facts = {"v6": iommu.model.isa >= 6, "edbc": embedded, "embedded": embedded}
    return {f"e2k-iommu/{part}" for part, there in facts.items() if not there}


def iommu_checks(iommu: Any) -> Checks:
    bases: Checks = dict.fromkeys(("ptbar", "dtbar"), ("M01", (1 << 48) - 1))
    return {"flush_pending": ("M02", 0)} | (bases if iommu.model.isa >= 6 else {})


CEPIC_CHECKS: Checks = {
    "id": ("E01", 0x3FF),
    "esr": ("E02", 0x7E0),
    "pnmirr": ("E02", 0x3_3EFF),
    **dict.fromkeys(("timer_div", "nm_timer_div"), ("E03", 0xF)),
    **dict.fromkeys(("esr2", "cir", "timer_lvtt"), ("E04", 0xFFFF_F3FF)),
    "svr": ("E04", 0x3FF),
    "vect_inta": ("E04", 0xFFFF_03FF),
}
SIC_CHECKS: Checks = {
    **dict.fromkeys(("rt_mlo", "rt_pcim"), ("S01", 0xF800_F800)),
    "rt_pciio": ("S01", 0xF000_F000),
    "rt_pcicfgb": ("S01", 0x001F_FFF8),
    "rt_msi": ("S03", (1 << 64) - (1 << 20)),
}
KINDS = {
    "apic": Kind(
        e2k.APIC,
        lambda model, number: e2k.Apic(number, model),
        lambda _: {"lvt": ("A01", 0xF_FFFF), "count_shift": ("A02", 7), "nm": ("A04", 0x7_FF00)},
        settle_apic,
    ),
    "cepic": Kind(e2k.CEPIC, lambda model, number: e2k.Cepic(number, model), lambda _: CEPIC_CHECKS, settle_cepic),
    "ioapic": Kind(e2k.IOAPIC, lambda *_: e2k.Ioapic(), lambda _: {"irr": ("I01", 0xFF_FFFF)}),
    "ioepic": Kind(
        e2k.IOEPIC,
        lambda _, number: e2k.Ioepic(number // 2),
        lambda _: {"int_ctrl": ("O01", 0x1_B000), "int_rid": ("O02", 0xFFFF), "msg_data": ("O03", 0xE3FF)},
    ),
    "sic": Kind(
        e2k.SIC,
        lambda model, number: e2k.Sic(model, number // 2, nodes=1 + number // 4, links=1 + number % 2),
        lambda _: SIC_CHECKS,
        settle_sic,
        sic_lacks,
    ),
    "iommu": Kind(
        e2k.IOMMU,
        lambda model, number: e2k.Iommu(model, number // 2, number % 2),
        iommu_checks,
        lacks=iommu_lacks,
    ),
}


def codes_of(description: VMStateDescription) -> dict[str, str]:
    """`struct` code of every attribute, from the specification's tables."""
    codes: dict[str, str] = {}
    for part in (description, *description.subsections):
        table = [code for name, code in layout(part.name) if name != "unused"]
        codes |= {row.attribute: code for row, code in zip(own_rows(part), table, strict=True)}
    return codes


CODES = {name: codes_of(kind.description) for name, kind in KINDS.items()}


@cache
def numbers(code: str) -> st.SearchStrategy[Any]:
    """Any content of a field; extremes and single bits are frequent."""
    one = number(code[-1])
    if len(code) == 1:
        return one
    count = int(code[:-1])

    def rich(seed: int) -> list[int]:
        low, high = RANGES[code[-1]]
        return list(np.random.default_rng(seed).integers(low, high, count, np.uint64, endpoint=True).tolist())

    def sparse(index: int, value: int) -> list[int]:
        return [value if i == index else 0 for i in range(count)]

    return st.integers(0, 1 << 32).map(rich) | st.builds(sparse, st.integers(0, count - 1), one)


def again(device: Any) -> Any:
    """Another of the kind, after reset."""
    return type(device)(**{name: value for name, value in vars(device).items() if name in PLACES})


def legal_state(data: st.DataObject, name: str) -> tuple[Any, State]:
    """A device after reset, and a legal state of it: some registers are off their reset values."""
    kind, codes = KINDS[name], CODES[name]
    device = kind.new(
        data.draw(st.sampled_from(list(MODELS.values())), "model"), data.draw(st.integers(0, 7), "number")
    )
    absent = [
        row.attribute for part in kind.description.subsections if part.name in kind.lacks(device) for row in rows(part)
    ]
    some = data.draw(st.sets(st.sampled_from(sorted(set(codes) - set(absent))), max_size=12), "registers")
    have, checks = state(kind.description, device), kind.checks(device)
    for register in sorted(some):
        value = data.draw(numbers(codes[register]), register)
        _, bits = checks.get(register, ("", -1))
        have[register] = [element & bits for element in value] if isinstance(value, list) else value & bits
    kind.settle(device, have)
    return device, have


def faults(kind: Kind, device: Any, have: State) -> set[str]:
    """Codes of everything that is wrong with a state."""
    found = kind.settle(device, dict(have) | ({"mc": list(have["mc"])} if "mc" in have else {}))
    for register, (code, bits) in kind.checks(device).items():
        values = have[register] if isinstance(have[register], list) else [have[register]]
        found |= {code for value in values if value & ~bits}
    return found


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=50)
@given(st.data())
def test_any_legal_state_round_trips(name: str, data: st.DataObject) -> None:
    description = KINDS[name].description
    blank, have = legal_state(data, name)
    at_reset = state(description, blank)
    source, target = change(again(blank), have), again(blank)
    assert faults(KINDS[name], blank, have) == set()
    raw = save(description, source)
    load(description, target, raw)
    assert state(description, target) == have
    assert save(description, target) == raw
    for part in description.subsections:
        if part.name not in ("apic_sipi", "e2k-sic/ipcc", "e2k-sic/link1"):  # they have a rule of their own
            differs = any(have[row.attribute] != at_reset[row.attribute] for row in rows(part))
            assert (part.name in present(description, source)) is differs


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=70)
@given(st.data())
def test_one_changed_field_loads_legally_or_is_refused_by_its_check(name: str, data: st.DataObject) -> None:
    description = KINDS[name].description
    blank, have = legal_state(data, name)
    source, target = change(again(blank), have), again(blank)
    parts = [part for part in description.subsections if part.name in present(description, source)]
    travel = [row.attribute for part in (description, *parts) for row in own_rows(part)]
    changed = data.draw(st.sampled_from(travel), "changed")
    change(source, {changed: data.draw(numbers(CODES[name][changed]), "value")})
    if name == "apic":
        source.sipi_vector *= source.wait_for_sipi != 0
    sent, before = state(description, source), state(description, target)
    wrong = faults(KINDS[name], blank, sent)
    raw = save(description, source)
    if not wrong:
        load(description, target, raw)
        assert state(description, target) == sent
        assert save(description, target) == raw
        return
    with pytest.raises(StreamError) as caught:
        load(description, target, raw)
    cause = caught.value.__cause__
    assert isinstance(cause, CheckError)
    assert cause.code in wrong
    place = caught.value.path.removeprefix(f"{description.name}/0/").split(".")[-1].split("[")[0]
    # a timer's first count may be told as the fault of what depends on it
    assert place == changed or (changed.endswith("_init") and place.startswith(changed.removesuffix("init")))
    assert state(description, target) == before


def test_no_table_is_left_out() -> None:
    assert {part.name for kind in KINDS.values() for part in (kind.description, *kind.description.subsections)} == set(
        LAYOUTS
    )
