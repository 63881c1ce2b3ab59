"""APIC, CEPIC, IO-APIC and IOEPIC: reset values, layout, `needed` rules, checks (spec/e2k-machine.md 3.1 to 3.4)."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from devices import (
    LAYOUTS,
    change,
    fill,
    layout,
    load,
    own_rows,
    pack,
    present,
    refused,
    save,
    state,
    subsection,
    told,
)
from qmig_e2k._core import Reader
from qmig_e2k.e2k import build
from qmig_e2k.e2k.devices import APIC, CEPIC, IOAPIC, IOEPIC, Apic, Cepic, Ioapic, Ioepic
from qmig_e2k.e2k.models import MODELS
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, load_section, save_full

E8C, E16C, E2C3 = MODELS["e8c"], MODELS["e16c"], MODELS["e2c3"]


def apic(index: int = 0, **values: Any) -> Apic:
    return change(Apic(index, E8C), values)


def cepic(index: int = 0, **values: Any) -> Cepic:
    return change(Cepic(index, E16C), values)


def ioapic(**values: Any) -> Ioapic:
    return change(Ioapic(), values)


def ioepic(**values: Any) -> Ioepic:
    return change(Ioepic(), values)


def blank(device: Any) -> Any:
    """Another of the kind after reset."""
    return type(device)(*((device.index, device.model) if hasattr(device, "model") else ()))


DEVICES = [(APIC, apic, 181), (CEPIC, cepic, 232), (IOAPIC, ioapic, 206), (IOEPIC, ioepic, 1300)]


# -- layout


@pytest.mark.parametrize(("description", "new", "size"), DEVICES, ids=lambda value: getattr(value, "name", ""))
def test_size_names_and_order_of_the_main_body(description: Any, new: Any, size: int) -> None:
    device = new()
    assert len(save(description, device)) == size == len(pack(description.name, {}))
    names = [name for name, _ in layout(description.name) if name != "unused"]
    assert [row.name for row in own_rows(description)] == names
    fill(description, device)
    assert save(description, device).startswith(pack(description.name, vars(device)))


def test_versions() -> None:
    assert [(d.name, d.version_id, d.minimum_version_id) for d, _, _ in DEVICES] == [
        ("apic", 3, 3),
        ("cepic", 1, 1),
        ("ioapic", 3, 1),
        ("ioepic", 1, 1),
    ]
    for description, new, _ in DEVICES:
        assert all(sub.version_id == 1 for sub in description.subsections)
        raw = save(description, new())
        assert refused(description, new(), raw, description.version_id + 1).kind == "bad-version"
    for version in (1, 2):
        assert refused(APIC, apic(), save(APIC, apic()), version).kind == "bad-version"


def test_order_and_bytes_of_subsections() -> None:
    for description, device in ((APIC, apic(1)), (CEPIC, cepic())):
        fill(description, device)
        names = [name for name in LAYOUTS if name.startswith(description.name) and name != description.name]
        assert present(description, device) == [sub.name for sub in description.subsections] == names
        parts = b"".join(subsection(name, vars(device)) for name in names)
        assert save(description, device) == pack(description.name, vars(device)) + parts


# -- reset values


def test_reset_of_the_apic() -> None:
    expected = {name: 0 for name in vars(apic()) if name not in ("index", "model", "cpu")}
    expected |= {"apicbase": 0xFEE0_0900, "spurious_vec": 0xFF, "dest_mode": 0xF, "lvt": 0x1_0000, "timer_expiry": -1}
    expected |= {"nm_timer_lvtt": 0x1_0000, "lvt2": 0x1_0000, "lvt3": 0x1_0000, "lvt4": 0x1_0000, "nm_timer_expiry": -1}
    assert state(APIC, apic()) == state(APIC, change(apic(), expected))
    secondary = expected | {"apicbase": 0xFEE0_0800, "id": 5, "wait_for_sipi": 1}
    assert state(APIC, apic(5)) == state(APIC, change(apic(5), secondary))


def test_reset_of_the_cepic() -> None:
    expected = {name: 0 for name in vars(cepic()) if name not in ("index", "model", "cpu")}
    expected |= {"ctrl": 0x100, "esr2": 0x1_0000, "timer_lvtt": 0x1_0000, "pnmirr_mask": 0x3_2000}
    expected |= {"timer_expiry": -1, "nm_timer_expiry": -1}
    assert state(CEPIC, cepic()) == state(CEPIC, change(cepic(), expected))
    secondary = expected | {"ctrl": 0, "id": 5, "wait_for_startup": 1}
    assert state(CEPIC, cepic(5)) == state(CEPIC, change(cepic(5), secondary))
    # two cores a node
    assert [Cepic(index, E2C3).id for index in range(8)] == [0, 1, 0x100, 0x101, 0x200, 0x201, 0x300, 0x301]


def test_reset_of_the_io_parts() -> None:
    assert state(IOAPIC, ioapic()) == {"id": 0, "ioregsel": 0, "irr": 0, "ioredtbl": [0x1_0000] * 24}
    words = {name: [0] * 64 for name in ("msg_data", "addr_high", "addr_low", "int_rid")}
    assert state(IOEPIC, ioepic()) == {"id": 0, "int_ctrl": [0x1_0000] * 64, "irr": 0, "line_level": 0} | words


@pytest.mark.parametrize(("description", "new", "size"), DEVICES, ids=lambda value: getattr(value, "name", ""))
def test_reset_keeps_the_arrays(description: Any, new: Any, size: int) -> None:
    device = new()
    fresh, arrays = state(description, device), {n: v for n, v in vars(device).items() if hasattr(v, "__setitem__")}
    fill(description, device)
    device.reset()
    assert state(description, device) == fresh
    assert all(getattr(device, name) is array for name, array in arrays.items())


# -- QEMU's layouts


def test_unused_bytes_of_the_ioapic_are_zero_and_skipped() -> None:
    device = ioapic(id=1, ioregsel=2, irr=3)
    raw = save(IOAPIC, device)
    assert raw[2:10] == bytes(8)
    target = ioapic()
    load(IOAPIC, target, raw[:2] + b"\xff" * 8 + raw[10:])
    assert state(IOAPIC, target) == state(IOAPIC, device)


def test_older_versions_of_the_ioapic() -> None:
    device = ioapic(id=1, ioregsel=2, irr=3, ioredtbl={23: 1 << 63})
    raw = save(IOAPIC, device)
    target = ioapic()
    load(IOAPIC, target, raw, 2)
    assert state(IOAPIC, target) == state(IOAPIC, device)
    target = ioapic(irr=0xFFF)
    load(IOAPIC, target, raw[:2] + raw[14:], 1)
    assert state(IOAPIC, target) == state(IOAPIC, device) | {"irr": 0}


def test_without_apic_sipi_no_cpu_waits() -> None:
    assert present(APIC, apic()) == []
    assert present(APIC, apic(1)) == ["apic_sipi"]
    assert present(APIC, apic(1, wait_for_sipi=0, sipi_vector=7)) == []
    target = apic(1)
    load(APIC, target, save(APIC, apic(1, wait_for_sipi=0)))
    assert target.wait_for_sipi == 0
    load(APIC, target, save(APIC, apic(1, sipi_vector=0x9A)))
    assert (target.wait_for_sipi, target.sipi_vector) == (1, 0x9A)


@pytest.mark.parametrize("name", [name for name, _ in layout("apic/e2k")])
def test_apic_e2k_travels_with_any_register_off_reset(name: str) -> None:
    device = apic(**{name: 0x100})
    assert present(APIC, device) == ["apic/e2k"]
    target = apic()
    load(APIC, target, save(APIC, device))
    assert getattr(target, name) == 0x100


@pytest.mark.parametrize("name", [name for name, _ in layout("cepic/hv")])
def test_cepic_hv_travels_with_any_register_off_zero(name: str) -> None:
    assert present(CEPIC, cepic()) == []
    device = cepic(**{name: 0x10})
    assert present(CEPIC, device) == ["cepic/hv"]
    target = cepic()
    load(CEPIC, target, save(CEPIC, device))
    assert state(CEPIC, target) == state(CEPIC, device)


# -- checks


@pytest.mark.parametrize(
    ("description", "device", "code", "text", "field"),
    [
        *(
            (APIC, apic(2, lvt={i: 1 << bit}), "A01", f"apic 2: reserved bits in LVT {i}", f"lvt[{i}]")
            for i, bit in ((0, 20), (3, 25), (5, 31))
        ),
        (APIC, apic(count_shift=8), "A02", "apic 0: bad divider", "count_shift"),
        (APIC, apic(7, count_shift=-1), "A02", "apic 7: bad divider", "count_shift"),
        *(
            (APIC, apic(1, nm=1 << bit), "A04", "apic 1: reserved bits in NM", "apic/e2k.nm")
            for bit in (0, 7, 19, 31)
        ),
        (CEPIC, cepic(id=0x400), "E01", "cepic 0: bad id 0x400", "id"),
        (CEPIC, cepic(3, id=0x8000_0000), "E01", "cepic 3: bad id 0x80000000", "id"),
        *((CEPIC, cepic(esr=1 << bit), "E02", "cepic 0: reserved bits in esr", "esr") for bit in (4, 11, 31)),
        *((CEPIC, cepic(pnmirr=1 << bit), "E02", "cepic 0: reserved bits in pnmirr", "pnmirr") for bit in (8, 14, 18)),
        (CEPIC, cepic(timer_div=0x10), "E03", "cepic 0: invalid timer", "timer_div"),
        (CEPIC, cepic(nm_timer_div=0x10), "E03", "cepic 0: invalid timer", "nm_timer_div"),
        (CEPIC, cepic(4, timer_cur=6, timer_init=5), "E03", "cepic 4: invalid timer", "timer_cur"),
        (CEPIC, cepic(nm_timer_cur=1), "E03", "cepic 0: invalid timer", "nm_timer_cur"),
        *(
            (CEPIC, cepic(**{name: 1 << bit}), "E04", "cepic 0: vector out of range", name)
            for name, bit in (
                *(("esr2", 10), ("esr2", 11), ("cir", 10), ("cir", 11), ("timer_lvtt", 11)),
                *(("svr", 10), ("svr", 31), ("vect_inta", 10), ("vect_inta", 15)),
            )
        ),
        (CEPIC, cepic(timer_expiry=0), "E05", "cepic 0: timer armed with zero count", "timer_expiry"),
        (CEPIC, cepic(6, nm_timer_expiry=9), "E05", "cepic 6: timer armed with zero count", "nm_timer_expiry"),
        *((IOAPIC, ioapic(irr=1 << bit), "I01", "ioapic: request on a non-existing pin", "irr") for bit in (24, 31)),
        *(
            (IOEPIC, ioepic(int_ctrl={pin: 1 << bit}), "O01", f"ioepic: reserved bits in pin {pin}", f"int_ctrl[{pin}]")
            for pin, bit in ((0, 0), (5, 11), (31, 14), (32, 17), (63, 31))
        ),
        (IOEPIC, ioepic(int_rid={63: 0x1_0000}), "O02", "ioepic: bad requester id at pin 63", "int_rid[63]"),
        *(
            (IOEPIC, ioepic(msg_data={pin: 1 << bit}), "O03", f"ioepic: reserved bits in pin {pin}", f"msg_data[{pin}]")
            for pin, bit in ((0, 10), (9, 12), (33, 16), (62, 31))
        ),
    ],
)  # fmt: skip
def test_what_no_run_can_produce_is_refused(description: Any, device: Any, code: str, text: str, field: str) -> None:
    raw = save(description, device)
    assert told(refused(description, blank(device), raw)) == (code, text, f"{description.name}/0/{field}")


@pytest.mark.parametrize(
    ("description", "device"),
    [
        (APIC, apic(lvt=0xF_FFFF, count_shift=7, nm=0x7_FF00, icr=0xFFFF_FFFF, divide_conf=0xFFFF_FFFF)),
        (APIC, apic(3, apicbase=0xFEE0_0900, id=0xFF, timer_expiry=-(1 << 63), nm_timer_expiry=5)),
        (CEPIC, cepic(id=0x3FF, esr=0x7E0, pnmirr=0x3_3EFF, esr2=0x1_13FF, cir=0x13FF, svr=0x3FF, vect_inta=0x7_03FF)),
        (CEPIC, cepic(timer_lvtt=0x3_13FF, nm_timer_lvtt=0x2_0000, icr=(1 << 64) - 1, pmirr=(1 << 64) - 1)),
        (CEPIC, cepic(timer_init=5, timer_cur=5, timer_div=0xF, timer_expiry=0, nm_timer_init=1, nm_timer_expiry=7)),
        (IOAPIC, ioapic(irr=0xFF_FFFF, ioredtbl=(1 << 64) - 1)),
        (IOEPIC, ioepic(int_ctrl=0x1_B000, int_rid=0xFFFF, msg_data=0xE3FF, irr=(1 << 64) - 1, addr_low=0xFFFF_FFFF)),
    ],
)
def test_the_edges_of_what_is_legal_load(description: Any, device: Any) -> None:
    target = blank(device)
    load(description, target, save(description, device))
    assert state(description, target) == state(description, device)


def test_a_foreign_id_is_only_traced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    target = cepic(2)
    load(CEPIC, target, save(CEPIC, cepic(2)))
    assert not caplog.records
    load(CEPIC, target, save(CEPIC, cepic(2, id=0x103)))
    assert target.id == 0x103
    assert caplog.messages == ["cepic 2: id 0x103 adopted, the core's own is 0x2"]


# -- the CPU's pending bits

HARD, NMI, OTHERS = 0x0002, 0x0200, 0x3DF4


def requests_after(description: Any, device: Any, before: int) -> int:
    target = type(device)(device.index, device.model, SimpleNamespace(interrupt_request=before))
    load(description, target, save(description, device))
    return int(target.cpu.interrupt_request)


def bit(vector: int, width: int) -> dict[int, int]:
    return {vector // width: 1 << vector % width}


ENABLED = {"spurious_vec": 0x1FF}


@pytest.mark.parametrize(
    ("values", "pending"),
    [
        (ENABLED, False),
        (ENABLED | {"irr": bit(0x10, 32)}, True),
        (ENABLED | {"irr": bit(0x0F, 32)}, False),  # class 0 is never above the processor priority
        (ENABLED | {"irr": bit(0xFF, 32), "tpr": 0xEF}, True),
        (ENABLED | {"irr": bit(0xFF, 32), "tpr": 0xF0}, False),
        (ENABLED | {"irr": bit(0x50, 32) | bit(0x81, 32), "isr": bit(0x70, 32)}, True),
        (ENABLED | {"irr": bit(0x7F, 32), "isr": bit(0x70, 32)}, False),
        (ENABLED | {"irr": bit(0x90, 32), "isr": bit(0x70, 32), "tpr": 0x80}, True),
        (ENABLED | {"irr": bit(0x90, 32), "isr": bit(0x70, 32), "tpr": 0x90}, False),
        ({"irr": bit(0x90, 32)}, False),
        (ENABLED | {"irr": bit(0x90, 32), "apicbase": 0xFEE0_0100}, False),
    ],
)
def test_apic_asserts_hard(values: dict[str, Any], pending: bool) -> None:
    for before in (OTHERS, OTHERS | HARD):
        assert requests_after(APIC, apic(**values), before) == OTHERS | (HARD if pending else 0)


def test_apic_sets_nmi_but_never_takes_one_back() -> None:
    assert requests_after(APIC, apic(nm=0x100), OTHERS) == OTHERS | NMI
    # golden vector 11: an NMI that came another way
    assert requests_after(APIC, apic(), NMI) == NMI
    assert requests_after(APIC, apic(), 0) == 0


CTRL = {"ctrl": 0x500}


@pytest.mark.parametrize(
    ("values", "hard", "nmi"),
    [
        (CTRL, False, False),
        (CTRL | {"pmirr": bit(0, 64)}, True, False),
        (CTRL | {"pmirr": bit(0xFF, 64), "cpr": 1 << 8}, False, False),
        (CTRL | {"pmirr": bit(0x100, 64), "cpr": 1 << 8}, True, False),
        (CTRL | {"pmirr": bit(0x3FF, 64), "cpr": 3 << 8}, True, False),
        (CTRL | {"pmirr": bit(0x3FF, 64), "cpr": 4 << 8}, False, False),
        ({"ctrl": 0x100, "pmirr": bit(0x3FF, 64)}, False, False),
        *(({"pnmirr": 1 << source, "pnmirr_mask": 0}, False, True) for source in (9, 10, 13, 16, 17)),
        *(({"pnmirr": 1 << source, "pnmirr_mask": 1 << source}, False, False) for source in (9, 10, 13, 16, 17)),
        # start-up entry, init and start-up are no NMI
        ({"pnmirr": 0x18FF, "pnmirr_mask": 0}, False, False),
    ],
)
def test_cepic_asserts_hard_and_nmi(values: dict[str, Any], hard: bool, nmi: bool) -> None:
    for before in (OTHERS, OTHERS | HARD | NMI):
        after = requests_after(CEPIC, cepic(**values), before)
        assert after == OTHERS | (HARD if hard else 0) | (NMI if nmi else 0)


def test_a_refused_load_asserts_nothing() -> None:
    target = apic()
    target.cpu = SimpleNamespace(interrupt_request=HARD)  # type: ignore[assignment]
    refused(APIC, target, save(APIC, apic(count_shift=9)))
    assert target.cpu.interrupt_request == HARD


def machine(model: str) -> tuple[Any, Registry, list[Any]]:
    """Two CPUs, their sections, and the local controllers."""
    made, registry = build("e2k", 1 << 20, cpus=2, model=model), Registry()
    made.register(registry, VirtualClock(), GlobalState(Profile()))
    return made, registry, [device.obj for device in made.devices if device.description.name in ("apic", "cepic")]


@pytest.mark.parametrize(
    ("model", "pending"),
    [("e8c", ENABLED | {"irr": bit(0x31, 32)}), ("e16c", {"ctrl": 1 << 10, "pmirr": bit(5, 64), "pnmirr": 1 << 10})],
)
def test_in_a_whole_machine_the_stored_bits_are_only_a_hint(model: str, pending: dict[str, Any]) -> None:
    source, registry, controllers = machine(model)
    source.cpus[0].interrupt_request = HARD | 0x80
    change(controllers[1], pending)
    data = save_full(registry).data
    target, registry, _ = machine(model)
    reader = Reader(data)
    while reader.offset < len(data):
        reader.skip(5)
        entry = registry.find(reader.cstr8().decode(), reader.u32(), version := reader.u32())
        load_section(entry, reader, version)
        reader.skip(5)
    assert [cpu.interrupt_request for cpu in target.cpus] == [0x80, HARD | (NMI if model == "e16c" else 0)]


# -- objects of an emulator


@pytest.mark.parametrize(("description", "new", "size"), DEVICES, ids=lambda value: getattr(value, "name", ""))
def test_an_emulators_own_object_does_as_well(description: Any, new: Any, size: int) -> None:
    device, calls = new(), []
    fields = {name: list(value) if hasattr(value, "dtype") else value for name, value in vars(device).items()}
    own = SimpleNamespace(
        **fields,
        before_save=lambda: calls.append("before_save"),
        after_load=lambda version: calls.append(("after_load", version)),
    )
    assert save(description, own) == save(description, device)
    change(device, {"id": 3})
    load(description, own, save(description, device))
    assert own.id == 3
    assert calls == ["before_save", ("after_load", description.version_id)]
