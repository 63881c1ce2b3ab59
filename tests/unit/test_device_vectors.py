"""Golden vectors of the devices: state in, exact bytes out, back in, equal, saved again equal."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from device_vectors import VECTORS, Vector, channel
from devices import State, change, load, present, refused, rows, save, state, told

NAMES = [vector.name for vector in VECTORS]


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_state_to_bytes_and_back(vector: Vector) -> None:
    golden = vector.path.read_bytes()
    assert vector.bytes() == golden, "run tests/device_vectors.py"
    source = change(vector.new(), vector.state)
    assert present(vector.description, source) == list(vector.parts)
    assert save(vector.description, source) == golden
    target = vector.new()
    load(vector.description, target, golden)
    assert state(vector.description, target) == state(vector.description, source)
    assert save(vector.description, target) == golden


WITH_PARTS = [(vector, name) for vector in VECTORS for name in vector.parts]


@pytest.mark.parametrize(("vector", "part"), WITH_PARTS, ids=[f"{v.name}-{part}" for v, part in WITH_PARTS])
def test_without_a_subsection_its_registers_have_their_reset_values(vector: Vector, part: str) -> None:
    others = {name: values for name, values in vector.parts.items() if name != part}
    target, fresh = vector.new(), vector.new()
    load(vector.description, target, replace(vector, parts=others).bytes())
    expected = state(vector.description, change(fresh, vector.state))
    at_reset = state(vector.description, vector.new())
    sub = next(sub for sub in vector.description.subsections if sub.name == part)
    expected |= {row.attribute: at_reset[row.attribute] for row in rows(sub)}
    if part == "apic_sipi":
        expected["wait_for_sipi"] = 0  # the one exception
    assert state(vector.description, target) == expected


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_a_cut_vector_is_refused_and_taken_back(vector: Vector) -> None:
    target = vector.new()
    assert refused(vector.description, target, vector.path.read_bytes()[:-1]).kind == "truncated"


@pytest.mark.parametrize(("name", "pending"), [("12-apic-below-tpr", 0), ("12-apic-pending", 2)])
def test_vector_12_a_maskable_interrupt_waits_for_the_task_priority(name: str, pending: int) -> None:
    vector = VECTORS[NAMES.index(name)]
    for before in (0, 2):
        target = vector.new()
        target.cpu = SimpleNamespace(interrupt_request=before | 0x80)
        load(vector.description, target, vector.path.read_bytes())
        assert target.cpu.interrupt_request == 0x80 | pending


VIOLATIONS: dict[str, tuple[str, State]] = {
    "apic": ("A02", {"count_shift": 8}),
    "cepic": ("E02", {"esr": 1}),
    "e2k-sic": ("S03", {"rt_msi": 1}),
    "e2k-iommu": ("M02", {"flush_pending": 1}),
    "ioepic": ("O01", {"int_ctrl": 1}),
    "iohub-pcibridge": ("P02", {"irq_state": 2}),
    "escc-pci": ("P02", {"irq_state": 2}),
    "escc": ("K01", {"chn": [channel(), channel(reg=16)]}),
    "e2k-lt": ("L01", {"counter_control": 8}),
}
"""Check and the registers that violate it, by description."""


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_with_one_hard_check_violated_the_vector_is_refused(vector: Vector) -> None:
    name, target = vector.description.name, vector.new()
    if name == "PCIBUS":
        error = refused(vector.description, target, replace(vector, reset={"nirq": 3}).bytes())
        assert (error.path, error.message) == ("PCIBUS/0/nirq", "0x3 in the stream, 0x4 here")
    elif name == "mc146818rtc":
        # any content is legal, whose period is derived anew; a version that is not is no content
        error = refused(vector.description, target, vector.bytes(), version=4)
        assert error.kind == "bad-version"
    else:
        code, values = VIOLATIONS[name]
        error = refused(vector.description, target, replace(vector, state=vector.state | values).bytes())
        assert told(error)[0] == code
