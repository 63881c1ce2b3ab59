"""Filled machines: every register off reset, legal, and equal after a move."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qmig_e2k._core import Reader
from qmig_e2k.e2k import MODELS, OPTIONS, Machine, build
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, VmStateHandler, save_full
from qmig_e2k.testing import filled
from qmig_e2k.vmstate.arrays import ArrayField, BufferField
from qmig_e2k.vmstate.kinds import ScalarField
from qmig_e2k.vmstate.runs import Run
from qmig_e2k.vmstate.structs import ElementsField, StructField

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.vmstate import VMStateDescription


def machine(model: str, kind: str = "e2k") -> Machine:
    full = {"tags": True, "options": OPTIONS} if kind == "e2k" else {}
    return build(kind, 64 << 20, cpus=3, model=model, **full)


def registry_of(hardware: Machine) -> Registry:
    registry = Registry()
    hardware.register(registry, VirtualClock(), GlobalState(Profile()))
    return registry


def values(description: VMStateDescription, obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    for row in description.fields:
        name = f"{path}/{row.name}"
        if row.exists is not None and not row.exists(obj, description.version_id):
            continue
        if isinstance(row, StructField):
            yield from values(row.vmsd, row.get(obj), name)
        elif isinstance(row, ElementsField):
            for index, element in enumerate(row.get(obj)):
                yield from values(row.element, element, f"{name}[{index}]")
        elif isinstance(row, ScalarField | ArrayField | BufferField):
            value = row.get(obj)
            yield (
                name,
                value.tolist()
                if isinstance(value, np.ndarray)
                else bytes(value)
                if isinstance(value, bytearray)
                else value,
            )
    for part in description.subsections:
        yield from values(part, obj, f"{path.partition('/')[0]}/{part.name}")


def state(hardware: Machine) -> dict[str, Any]:
    return {
        name: value
        for number, device in enumerate(hardware.devices)
        for name, value in values(device.description, device.obj, f"{number}/{device.description.name}")
    }


def move(source: Registry, target: Registry) -> bytes:
    saved = save_full(source)
    reader = Reader(saved.data)
    loaded = []
    while reader.offset < len(saved.data):
        assert reader.u8() == 4
        reader.u32()
        idstr, number, version = reader.cstr8().decode(), reader.u32(), reader.u32()
        entry = target.find(idstr, number, version)
        assert isinstance(entry.handler, VmStateHandler)
        if target.rules is not None:
            target.rules.before_section(entry, loaded)
        entry.handler.load(reader, version, path=entry.path)
        loaded.append(entry)
        assert reader.u8() == 0x7E
        reader.u32()
    if target.rules is not None:
        target.rules.after_sections(loaded)
    assert not target.missing(loaded)
    return saved.data


@pytest.mark.parametrize(("model", "kind"), [*((model, "e2k") for model in MODELS), ("e8c", "e2k-qemu")])
def test_a_filled_machine_arrives_equal(model: str, kind: str) -> None:
    source, target = filled(machine(model, kind), seed=1), filled(machine(model, kind), seed=2)
    before = state(source)
    assert before != state(target)
    target.reset()
    raw = move(registry_of(source), registry_of(target))
    assert state(target) == state(source)
    assert save_full(registry_of(target)).data == raw
    assert state(filled(machine(model, kind), seed=1)) == before, "the same seed, the same values"


NEVER = {"cpu/rf_form", "cpu/cwd", "cpu/pshtp", "cpu/pcshtp", "e2k-iommu/flush_pending"}
"""Registers that have one legal value."""
COMPARED = {
    "cpu/isa",
    "PCIBUS/nirq",
    *(f"e2k-machine/{name}" for name in ("isa", "mdl", "cpus", "ram_size", "boot_mode", "tags")),
}


@pytest.mark.parametrize(
    ("model", "absent", "same"),
    [
        (
            "e8c",
            (
                "cpu/qp_hi cpu/crs cpu/loop64 cpu/ctpr_hi cpu/mmu_v6 cpu/os_v6 cpu/v7 cpu/hv e2k-sic/hmu e2k-sic/ipcc"
                " e2k-sic/link1 e2k-iommu/v6 e2k-iommu/edbc e2k-iommu/embedded"
            ),
            {"cpu/idr", "apic_sipi/wait_for_sipi"}
            | {f"cpu/{name}" for name in ("monitors/dimtp", "clocks/sclkm3", "clocks/cu_hw1", "clocks/cu_pmgr0")},
        ),
        (
            "e16c",
            "cpu/fx_ext cpu/crs cpu/v7 e2k-sic/ipcc e2k-sic/link1 e2k-iommu/edbc e2k-iommu/embedded",
            set(),
        ),
    ],
)
def test_every_register_and_every_subsection(model: str, absent: str, same: set[str]) -> None:
    hardware = filled(machine(model))
    parts = {
        part: part.needed is None or part.needed(device.obj)
        for device in hardware.devices
        for part in device.description.subsections
    }
    assert {part.name for part, needed in parts.items() if not needed} == set(absent.split())
    before, after = state(machine(model)), state(hardware)
    unchanged = {name for name in after if after[name] == before[name] and after[name] not in ([], b"")}
    unchanged = {re.sub(r"^\d+/", "", name) for name in unchanged}
    unchanged = {name for name in unchanged if not name.startswith(tuple(absent.split()))}
    assert {name for name in unchanged if not name.endswith("/parent/version_id")} == NEVER | COMPARED | same


def test_what_ships_is_moved_in_runs() -> None:
    """Nearly every register goes with its neighbours: one by one 8 CPUs would take three times as long."""

    def fields(description: VMStateDescription) -> Iterator[tuple[int, int]]:
        for step in description.steps:
            yield (len(step.rows), 0) if isinstance(step, Run) else (0, 1)
        for part in description.subsections:
            yield from fields(part)

    for device in machine("e16c").devices:
        joined, alone = (sum(counts) for counts in zip(*fields(device.description), strict=True))
        # values of absent subsections, what has a check of its own, a length that varies or structures inside
        most = {"cpu_common": 2, "cpu": 3, "PCIBUS": 1, "escc": 1}.get(
            device.description.name, int(device.bus_path is not None)
        )
        assert alone <= most, device.description.name
        assert joined or alone
