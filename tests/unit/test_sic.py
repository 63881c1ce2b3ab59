"""SIC: reset values, layout, `needed` rules for each model, checks (spec/e2k-machine.md 3.5)."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from device_vectors import SIC_RESET
from devices import LAYOUTS, change, fill, layout, load, pack, present, refused, save, state, subsection, told
from qmig_e2k.e2k.devices import SIC, Sic
from qmig_e2k.e2k.devices.sic import memory_controller_words
from qmig_e2k.e2k.models import MODELS

SUBSECTIONS = [name for name in LAYOUTS if name.startswith("e2k-sic/")]
PREFIXED = ("prepic", "ic", "rdma", "ipcc", "link1")
"""Subsections whose attributes have the name as a prefix."""


def sic(model: str = "e8c", node: int = 0, nodes: int = 1, links: int = 1, **values: Any) -> Sic:
    return change(Sic(MODELS[model], node, nodes=nodes, links=links), values)


def attribute(name: str, field: str) -> str:
    part = name.removeprefix("e2k-sic/")
    return f"{part}_{field}" if part in PREFIXED else field


def values(name: str, device: Sic) -> dict[str, Any]:
    return {field: getattr(device, attribute(name, field)) for field, _ in layout(name)}


def test_size_names_and_order_of_the_main_body() -> None:
    assert len(save(SIC, sic())) == 244
    assert (SIC.version_id, SIC.minimum_version_id, SIC.priority) == (1, 1, 0)
    assert [row.name for row in SIC.fields] == [name for name, _ in layout("e2k-sic")]


def test_order_names_and_bytes_of_subsections() -> None:
    device = sic("e16c", nodes=2, links=2)
    fill(SIC, device)
    assert [sub.name for sub in SIC.subsections] == SUBSECTIONS == present(SIC, device)
    for sub in SIC.subsections:
        assert [row.name for row in sub.fields] == [field for field, _ in layout(sub.name)]
    parts = b"".join(subsection(name, values(name, device)) for name in SUBSECTIONS)
    assert save(SIC, device) == pack("e2k-sic", vars(device)) + parts


def test_no_two_registers_share_an_attribute() -> None:
    attributes = [row.attribute for part in (SIC, *SIC.subsections) for row in part.fields]
    assert len(set(attributes)) == len(attributes)


def test_reset_values() -> None:
    device = sic()
    fresh = state(SIC, device)
    expected = dict.fromkeys(fresh, 0) | SIC_RESET | {"l3_ctrl": 0x3F_00F8}
    assert fresh == state(SIC, change(sic(), expected))
    fill(SIC, device)
    view = device.mc
    device.reset()
    assert state(SIC, device) == fresh
    assert device.mc is view


# -- needed


@pytest.mark.parametrize("model", list(MODELS))
def test_a_machine_after_reset_has_no_subsections(model: str) -> None:
    assert present(SIC, sic(model)) == []


EACH = [(name, field) for name in SUBSECTIONS for field, _ in layout(name)]


@pytest.mark.parametrize(("name", "field"), EACH, ids=[f"{name}-{field}" for name, field in EACH])
def test_any_register_off_its_reset_value_travels(name: str, field: str) -> None:
    facts = {"nodes": 1 + (name == "e2k-sic/ipcc"), "links": 1 + (name == "e2k-sic/link1")}
    where = attribute(name, field)
    single = isinstance(getattr(sic(), where), int)
    for value in (1,) if single else ({0: 1}, {-1: 1 << 31}):
        device, target = sic("e16c", **facts, **{where: value}), sic("e16c", **facts)
        assert present(SIC, device) == [name]
        load(SIC, target, save(SIC, device))
        assert state(SIC, target) == state(SIC, device)


@pytest.mark.parametrize(("model", "has"), [(model.name, model.isa >= 6) for model in MODELS.values()])
def test_hmu_from_isa_v6_on(model: str, has: bool) -> None:
    device = sic(model, hmu=1)
    assert present(SIC, device) == (["e2k-sic/hmu"] if has else [])
    raw = save(SIC, sic(model)) + subsection("e2k-sic/hmu", {"hmu": 1})
    if has:
        load(SIC, sic(model), raw)
        return
    text = f"sic 0: subsection e2k-sic/hmu not valid for ISA v{MODELS[model].isa}"
    assert told(refused(SIC, sic(model), raw)) == ("G7", text, "e2k-sic/0/e2k-sic/hmu")


def test_links_to_other_nodes_travel_if_there_are_any_whatever_they_hold() -> None:
    assert present(SIC, sic(nodes=4)) == ["e2k-sic/ipcc"]
    alone = sic(ipcc_csr=1)
    assert present(SIC, alone) == []
    raw = save(SIC, sic(nodes=2, ipcc_csr=1))
    text = "sic 0: subsection e2k-sic/ipcc not valid for one node"
    assert told(refused(SIC, sic(), raw)) == ("G7", text, "e2k-sic/0/e2k-sic/ipcc")


def test_the_second_io_link_travels_if_there_is_one_whatever_it_holds() -> None:
    assert present(SIC, sic(links=2)) == ["e2k-sic/link1"]
    assert present(SIC, sic(link1_io_vid=1)) == []
    raw = save(SIC, sic(links=2, link1_io_vid=1))
    text = "sic 0: subsection e2k-sic/link1 not valid for one IO link"
    assert told(refused(SIC, sic(), raw)) == ("G7", text, "e2k-sic/0/e2k-sic/link1")


# -- checks

MC_WORDS = {"e2c+": 0, "e2s": 41, "e8c": 57, "e8c2": 61, "e12c": 48, "e16c": 192, "e2c3": 48}


@pytest.mark.parametrize("model", list(MODELS))
def test_s02_memory_controllers_of_each_model(model: str) -> None:
    count = MC_WORDS[model]
    assert memory_controller_words(MODELS[model]) == count
    if count:
        device = sic(model, mc=dict.fromkeys(range(count), 0xFFFF_FFFF))
        assert present(SIC, device) == ["e2k-sic/mc"]
        target = sic(model)
        load(SIC, target, save(SIC, device))
        assert target.mc.tolist() == device.mc.tolist()
    for index in {count, 191} - set(range(count)) - {192}:
        raw = save(SIC, sic(model, node=1, mc={index: 1 << 31}))
        text = f"sic 1: memory controller word {index} not present"
        assert told(refused(SIC, sic(model, node=1), raw)) == ("S02", text, f"e2k-sic/0/e2k-sic/mc.mc[{index}]")


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        *((name, [*range(11), *range(16, 27)]) for name in ("rt_mlo", "rt_pcim")),
        ("rt_pciio", [*range(12), *range(16, 28)]),
    ],
)
def test_s01_unused_bits_of_routes(name: str, reserved: list[int]) -> None:
    for bit in range(32):
        element = bit % 4
        device = sic(**{name: {element: 1 << bit}})
        target = sic()
        if bit not in reserved:
            load(SIC, target, save(SIC, device))
            assert getattr(target, name)[element] == 1 << bit
            continue
        place = f"e2k-sic/0/{name}[{element}]"
        assert told(refused(SIC, target, save(SIC, device))) == ("S01", f"sic 0: reserved bits in {name}", place)


def test_s01_unused_bits_of_the_configuration_route() -> None:
    for bit in range(32):
        device, target = sic(rt_pcicfgb=1 << bit), sic(node=3)
        if 3 <= bit <= 20:
            load(SIC, target, save(SIC, device))
            assert target.rt_pcicfgb == 1 << bit
            continue
        expected = ("S01", "sic 3: reserved bits in rt_pcicfgb", "e2k-sic/0/rt_pcicfgb")
        assert told(refused(SIC, target, save(SIC, device))) == expected


def test_s03_the_msi_window_is_aligned() -> None:
    target = sic()
    load(SIC, target, save(SIC, sic(rt_msi=0xFFFF_FFFF_FFF0_0000)))
    assert target.rt_msi == 0xFFFF_FFFF_FFF0_0000
    for bit in (0, 12, 19):
        raw = save(SIC, sic(rt_msi=1 << 32 | 1 << bit))
        assert told(refused(SIC, target, raw)) == ("S03", "sic 0: bad MSI window", "e2k-sic/0/rt_msi")


@pytest.mark.parametrize(
    ("ram", "pci", "overlaps"),
    [
        (0x3800_0000, 0x7800_4000, []),  # RAM 0 to 7, PCI 8 to 15
        (0x4000_0000, 0x7800_4000, [0x4000_0000]),
        (0xF800_0000, 0x2000_2000, [0x2000_0000]),
        (0x3800_8000, 0xF800_0000, []),  # begin above end: no window
    ],
)
def test_s04_overlapping_windows_are_only_traced(
    ram: int, pci: int, overlaps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    target = sic()
    load(SIC, target, save(SIC, sic(rt_mlo={0: ram}, rt_pcim={3: pci})))
    assert target.rt_pcim[3] == pci
    assert caplog.messages == [f"sic 0: PCI memory at {base:#x} overlaps RAM" for base in overlaps]


def test_an_emulators_own_object_does_as_well() -> None:
    device, calls = sic("e16c", rt_msi=1 << 20, mc={0: 5}), []
    fields = {name: list(value) if hasattr(value, "dtype") else value for name, value in vars(device).items()}
    del fields["nodes"], fields["links"]
    own = SimpleNamespace(**fields, before_save=lambda: calls.append("save"), after_load=calls.append)
    raw = save(SIC, device)
    assert save(SIC, own) == raw
    own.rt_msi = 0
    load(SIC, own, raw)
    assert own.rt_msi == 1 << 20
    assert calls == ["save", 1]
