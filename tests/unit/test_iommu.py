"""IOMMU: reset values, layout, `needed` rules for each model, checks (spec/e2k-machine.md 3.6)."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from devices import LAYOUTS, change, fill, layout, load, pack, present, refused, save, state, subsection, told
from qmig_e2k.e2k.devices import IOMMU, Iommu
from qmig_e2k.e2k.models import MODELS

SUBSECTIONS = [name for name in LAYOUTS if name.startswith("e2k-iommu/")]


def iommu(model: str = "e8c", node: int = 0, link: int = 0, **values: Any) -> Iommu:
    return change(Iommu(MODELS[model], node, link), values)


def attribute(name: str, field: str) -> str:
    return f"edbc_{field}" if name == "e2k-iommu/edbc" else field


def has(name: str, model: str) -> bool:
    """Whether a model has the registers of a subsection."""
    return name == "e2k-iommu/mon" or (name == "e2k-iommu/v6" and MODELS[model].isa >= 6) or model == "e2c3"


def test_size_names_order_and_priority_of_the_main_body() -> None:
    assert len(save(IOMMU, iommu())) == 40
    assert (IOMMU.version_id, IOMMU.minimum_version_id, IOMMU.priority) == (1, 1, 1)
    assert [row.name for row in IOMMU.fields] == [name for name, _ in layout("e2k-iommu")]


def test_order_names_and_bytes_of_subsections() -> None:
    device = iommu("e2c3")
    fill(IOMMU, device)
    assert [sub.name for sub in IOMMU.subsections] == SUBSECTIONS == present(IOMMU, device)
    parts = b""
    for sub in IOMMU.subsections:
        names = [field for field, _ in layout(sub.name)]
        assert [row.name for row in sub.fields] == names
        parts += subsection(sub.name, {field: getattr(device, attribute(sub.name, field)) for field in names})
    assert save(IOMMU, device) == pack("e2k-iommu", vars(device)) + parts


def test_everything_is_zero_after_reset() -> None:
    device = iommu("e2c3")
    fresh = state(IOMMU, device)
    assert fresh == state(IOMMU, change(iommu("e2c3"), dict.fromkeys(fresh, 0)))
    fill(IOMMU, device)
    view = device.unit
    device.reset()
    assert state(IOMMU, device) == fresh
    assert device.unit is view


EACH = [(name, field, model) for name in SUBSECTIONS for field, _ in layout(name) for model in MODELS]


@pytest.mark.parametrize(("name", "field", "model"), EACH, ids=["-".join(row) for row in EACH])
def test_registers_travel_where_the_model_has_them(name: str, field: str, model: str) -> None:
    assert present(IOMMU, iommu(model)) == []
    device, target = iommu(model, **{attribute(name, field): 1}), iommu(model)
    assert present(IOMMU, device) == ([name] if has(name, model) else [])
    raw = save(IOMMU, iommu(model)) + subsection(name, {field: 1})
    if has(name, model):
        load(IOMMU, target, raw)
        assert state(IOMMU, target) == state(IOMMU, device)
        return
    where = f"ISA v{MODELS[model].isa}" if name == "e2k-iommu/v6" else f"CPU model {model}"
    expected = ("G7", f"iommu 0: subsection {name} not valid for {where}", f"e2k-iommu/0/{name}")
    assert told(refused(IOMMU, target, raw)) == expected


@pytest.mark.parametrize("field", ["ptbar", "dtbar"])
@pytest.mark.parametrize("model", list(MODELS))
def test_m01_bases_within_the_physical_width_from_isa_v6_on(field: str, model: str, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    checked, target = MODELS[model].isa >= 6, iommu(model)
    load(IOMMU, target, save(IOMMU, iommu(model, **{field: 0xFFFF_FFFF_F001})))
    assert getattr(target, field) == 0xFFFF_FFFF_F001
    traced = f"iommu 0: {field} 0xfffffffff001 is not aligned to a page"
    assert caplog.messages == ([traced] if checked else [])
    for bit in (48, 63):
        raw, target = save(IOMMU, iommu(model, **{field: 1 << bit})), iommu(model, 2, 1)
        if checked:
            expected = ("M01", "iommu 5: bad table base", f"e2k-iommu/0/{field}")
            assert told(refused(IOMMU, target, raw)) == expected
        else:
            load(IOMMU, target, raw)
            assert getattr(target, field) == 1 << bit


@pytest.mark.parametrize("model", ["e8c", "e16c"])
def test_m02_no_flush_is_outstanding(model: str) -> None:
    raw = save(IOMMU, iommu(model, flush_pending=1))
    expected = ("M02", "iommu 1: flush outstanding", "e2k-iommu/0/flush_pending")
    assert told(refused(IOMMU, iommu(model, link=1), raw)) == expected


def test_an_emulators_own_object_does_as_well() -> None:
    device, calls = iommu("e2c3", ptbar=1 << 40, unit={69: 5}), []
    fields = {name: list(value) if hasattr(value, "dtype") else value for name, value in vars(device).items()}
    del fields["link"]
    own = SimpleNamespace(**fields, before_save=lambda: calls.append("save"), after_load=calls.append)
    raw = save(IOMMU, device)
    assert save(IOMMU, own) == raw
    own.ptbar = 0
    load(IOMMU, own, raw)
    assert own.ptbar == 1 << 40
    assert calls == ["save", 1]
