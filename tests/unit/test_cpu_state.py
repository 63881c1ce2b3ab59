"""The CPU: reset values, which subsections travel, what they do when absent, and objects of an emulator's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cpu_streams import ALL_MODELS, ENTRY, MAIN, MAIN_SIZE, changed, cpu, join, load, save, size_of, split, values
from qmig_e2k.e2k import MODELS
from qmig_e2k.e2k.cpu import CPU, CPU_COMMON, GROUPS
from qmig_e2k.errors import MigrationError, StreamError
from qmig_e2k.testing.cpu_state import HW_VIRT, fill

SUBSECTIONS = {
    "cpu/fx_ext": 512,
    "cpu/qp_hi": 2048,
    "cpu/tags": 256,
    "cpu/crs": 32,
    "cpu/loop64": 16,
    "cpu/ctpr_hi": 24,
    "cpu/fp": 12,
    "cpu/clocks": 80,
    "cpu/aau": 1444,
    "cpu/aau_prefetch": 1536,
    "cpu/mmu": 152,
    "cpu/mmu_sec": 304,
    "cpu/mmu_v6": 24,
    "cpu/trap": 592,
    "cpu/debug": 112,
    "cpu/monitors": 64,
    "cpu/dam": 256,
    "cpu/mlt": 384,
    "cpu/clw": 48,
    "cpu/segments": 96,
    "cpu/os_v6": 12,
    "cpu/v7": 48,
    "cpu/hv": 892,
    "cpu/lock_pair": 16,
}
"""Order on the wire, and bytes of the fields."""

ABSENT = {
    "e2c+": "cpu/qp_hi cpu/loop64 cpu/ctpr_hi cpu/mmu_v6 cpu/mlt cpu/os_v6 cpu/v7 cpu/hv",
    "e2s": "cpu/qp_hi cpu/loop64 cpu/ctpr_hi cpu/mmu_v6 cpu/os_v6 cpu/v7 cpu/hv",
    "e8c": "cpu/qp_hi cpu/loop64 cpu/ctpr_hi cpu/mmu_v6 cpu/os_v6 cpu/v7 cpu/hv",
    "e8c2": "cpu/fx_ext cpu/ctpr_hi cpu/mmu_v6 cpu/os_v6 cpu/v7 cpu/hv",
    "e12c": "cpu/fx_ext cpu/v7",
    "e16c": "cpu/fx_ext cpu/v7",
    "e2c3": "cpu/fx_ext cpu/v7",
    "v7": "cpu/fx_ext",
}
"""What a CPU of each model does not have."""


def set_all(obj: Any, name: str, value: int) -> None:
    current = getattr(obj, name)
    if isinstance(current, np.ndarray):
        current[:] = value
    else:
        setattr(obj, name, value)


# -- reset


@pytest.mark.parametrize(
    ("model", "index", "idr"),
    [
        ("e2c+", 0, 0x2204),
        ("e2s", 0, 0x2203),
        ("e2s", 5, 0x2203 | 1 << 15 | 1 << 20),
        ("e8c", 0, 0x2207),
        ("e8c", 7, 0x3A207),
        ("e8c2", 0, 0x2209),
        ("e12c", 0, 0x220A),
        ("e16c", 0, 0x220B),
        ("e2c3", 0, 0x220C),
        ("e2c3", 7, 0x220C | 1 << 15 | 3 << 20),
    ],
)
def test_idr(model: str, index: int, idr: int) -> None:
    assert cpu(model, index).idr == idr


def test_reset_bytes_of_the_main_body() -> None:
    raw = save(cpu())
    words = {
        0: (4, 4),
        4: (8, 0x2207),
        16: (8, ENTRY),
        32: (4, 1),
        36: (4, 0x81),
        44 + 8 + 2048: (8, 0x0000_0040_0080_0000),
        44 + 8 + 2048 + 8: (4, 0xC4),
    }
    for offset, (size, value) in words.items():
        assert int.from_bytes(raw[offset : offset + size], "big") == value, offset
    assert [cpu(index=index).halted for index in (0, 1)] == [0, 1]


def test_every_register_goes_back_to_reset_and_arrays_keep_their_identity() -> None:
    obj = cpu("v7")
    fresh, arrays = values(obj), [getattr(obj, r.attribute) for _, g in GROUPS for r in g.registers if r.length]
    fill(obj, 7)
    same = [name for name, value in values(obj).items() if value == fresh[name]]
    # the model's own, the other form of the register file, and what another ISA has
    assert same == "isa rf_form cwd pshtp pcshtp fx crs".split()
    obj.reset()
    assert values(obj) == fresh
    now = [getattr(obj, r.attribute) for _, g in GROUPS for r in g.registers if r.length]
    assert all(one is other for one, other in zip(now, arrays, strict=True))


# -- which subsections travel


def test_order_and_size_of_the_subsections() -> None:
    assert [sub.name for sub in CPU.subsections] == list(SUBSECTIONS)
    assert {name: size_of(name) for name in SUBSECTIONS} == SUBSECTIONS
    assert size_of(MAIN) == MAIN_SIZE
    assert all((sub.version_id, sub.minimum_version_id) == (1, 1) for sub in (CPU, *CPU.subsections))


@pytest.mark.parametrize("model", ALL_MODELS)
def test_a_cpu_with_everything_off_reset_arrives_equal(model: str) -> None:
    source, target = cpu(model, 1), cpu(model, 1)
    fill(source, 11)
    raw = save(source)
    absent = {*ABSENT[model].split(), "cpu/crs"}
    assert list(split(raw)) == [MAIN, *(name for name in SUBSECTIONS if name not in absent)]
    load(target, raw)
    assert values(target) == values(source)
    assert save(target) == raw


@pytest.mark.parametrize("model", ALL_MODELS)
def test_at_reset_only_the_clocks_travel(model: str) -> None:
    assert list(split(save(cpu(model)))) == [MAIN, "cpu/clocks"]


NEEDED_BY_ONE = [
    (name, register.attribute)
    for name, group in GROUPS
    for register in group.registers
    if name not in (MAIN, "cpu/clocks", "cpu/fx_ext", "cpu/crs", "cpu/aau_prefetch", "cpu/dam", "cpu/mlt")
]


@pytest.mark.parametrize(("name", "attribute"), NEEDED_BY_ONE)
def test_one_register_off_reset_is_enough(name: str, attribute: str) -> None:
    source = cpu("v7")
    set_all(source, attribute, 0x3 if attribute not in ("dimtp", "fpcr") else 0x40)
    raw = save(source)
    assert list(split(raw)) == [MAIN, *sorted([name, "cpu/clocks"], key=list(SUBSECTIONS).index)]


@pytest.mark.parametrize(
    ("model", "name", "change", "travels"),
    [
        ("e8c", "cpu/fx_ext", {"fx": 1}, True),
        ("e8c2", "cpu/fx_ext", {"fx": 1}, False),
        ("e8c", "cpu/qp_hi", {"regs_hi": 1}, False),
        ("e8c2", "cpu/qp_hi", {"regs_hi": 1}, True),
        ("e8c", "cpu/loop64", {"lsr1": 1}, False),
        ("e8c2", "cpu/loop64", {"lsr1": 5, "lsr": 5 | 1 << 37, "ilcr1": 9, "ilcr": 9 | 1 << 48}, False),
        ("e8c2", "cpu/loop64", {"lsr": 5}, True),
        ("e8c2", "cpu/loop64", {"ilcr1": 1 << 32}, True),
        ("e8c2", "cpu/ctpr_hi", {"ctpr_hi": 1}, False),
        ("e8c2", "cpu/mmu_v6", {"os_vab": 1}, False),
        ("e8c2", "cpu/os_v6", {"oscuir": 1}, False),
        ("e16c", "cpu/v7", {"osr1": 1}, False),
        ("e8c2", "cpu/hv", {"sh_wd": 1, "idr": 0x2209 | HW_VIRT}, False),
        ("e16c", "cpu/hv", {"idr": 0x220B | HW_VIRT}, False),
        ("e16c", "cpu/hv", {"sh_wd": 1}, True),
        ("e16c", "cpu/hv", {"sh_wd": 1, "idr": 0x220B | HW_VIRT}, True),
        ("e8c", "cpu/monitors", {"dimtp": 32}, False),
        ("e16c", "cpu/monitors", {"dimtp": 32}, True),
        ("e8c", "cpu/aau", {"aaincr": 1}, True),
        ("e8c", "cpu/aau_prefetch", {"instr": 1 << 25}, True),
        ("e8c", "cpu/aau_prefetch", {"cdi": 1}, False),
        ("e8c", "cpu/trap", {"nr_tirs": 0}, True),
        ("e8c", "cpu/dam", {"dam": (1 << 58) - 1}, False),
        ("e8c", "cpu/dam", {"dam": 1 << 58}, True),
        ("e2c+", "cpu/mlt", {"mlt": 1 << 53}, False),
        ("e2s", "cpu/mlt", {"mlt": 1 << 53}, True),
        ("e8c", "cpu/mlt", {"mlt": 1}, False),
        ("e16c", "cpu/mlt", {"mlt": 1}, True),
        ("e16c", "cpu/mlt", {"mlt": 1 << 53}, False),
        ("e8c", "cpu/crs", {"crs": 1}, False),
        ("e8c", "cpu/crs", {"rf_form": 1}, True),
    ],
)
def test_rules_of_their_own(model: str, name: str, change: dict[str, int], travels: bool) -> None:
    source = cpu(model)
    for attribute, value in change.items():
        set_all(source, attribute, value)
    assert (name in split(save(source))) is travels


def test_lines_of_the_lock_table_are_valid_by_their_first_word() -> None:
    source = cpu("e16c")
    source.mlt[1::3] = 1
    assert "cpu/mlt" not in split(save(source))
    source.mlt[45] = 1
    assert "cpu/mlt" in split(save(source))


def test_without_tag_mode_there_are_no_tags() -> None:
    source = cpu(tags=False)
    source.reg_tags[:] = 5
    assert "cpu/tags" not in split(save(source))
    assert not source.reg_tags.any()


# -- older CPUs (G7)


@pytest.mark.parametrize("model", ["e2c+", "e2s", "e8c", "e8c2", "e16c"])
def test_an_older_cpu_sends_the_same_bytes_whatever_newer_state_the_object_holds(model: str) -> None:
    """Golden vector 37."""
    plain, loaded = cpu(model), cpu(model)
    fill(plain, 5)
    fill(loaded, 5)
    isa = plain.isa
    newer = {
        7: "osr1 usincr t_off madmr dimar23",
        6: "ctpr_hi os_vptb os_pptb os_vab oscutd oscuir sclkm3 cu_pmgr0 dimtp "
        "sh_wd hv_stacks intc_cu_num intc_info_cu intc_info_mu g_preempt_tmr",
        5: "regs_hi lsr1 ilcr1 cu_hw1",
        3: "sclkr sclkm1 sclkm2 mlt",
    }
    for since, names in newer.items():
        for name in names.split() if isa < since else ():
            set_all(loaded, name, 77)
    if isa <= 4:
        loaded.reg_tags |= 0xA0
        for words in (loaded.aasti, loaded.aaind, loaded.aaincr, loaded.cdi, loaded.ldi):
            words[:] = words | np.uint64(0xFFFF_FFFF_0000_0000)
    else:
        loaded.fx[:] = 77
    assert save(loaded) == save(plain)


def test_negative_increments_are_32_bits_wide_up_to_v4() -> None:
    source = cpu()
    source.aaincr[1] = (1 << 64) - 8
    target = cpu()
    load(target, save(source))
    assert target.aaincr.tolist() == [1, 0xFFFF_FFF8, 0, 0, 0, 0, 0, 0]


def test_extensions_have_16_bits_and_the_first_increment_is_1_whatever_the_emulator_keeps() -> None:
    source, target = cpu(), cpu()
    source.fx = [0xABCD_1234] * 256
    source.aaincr[0] = 9
    load(target, save(source))
    assert target.fx.tolist() == [0x1234] * 256
    assert target.aaincr[0] == 1
    source.fx = np.full(256, 0xF_0007, np.uint32)
    load(target, save(source))
    assert target.fx.tolist() == [7] * 256


# -- absent subsections (G1)


@pytest.mark.parametrize("name", SUBSECTIONS)
def test_an_absent_subsection_leaves_reset_values(name: str) -> None:
    model = "e8c" if name == "cpu/fx_ext" else "v7"
    source, target, fresh = cpu(model), cpu(model), cpu(model)
    fill(source, 3)
    parts = split(save(source))
    parts.pop(name, None)
    load(target, join(parts))
    have, sent, reset = values(target), values(source), values(fresh)
    reset |= {"lsr1": source.lsr & 0xFFFF_FFFF, "ilcr1": source.ilcr & 0xFFFF_FFFF}
    for group_name, group in GROUPS:
        for register in group.registers:
            wanted = reset if group_name == name else sent
            assert have[register.attribute] == wanted[register.attribute], register.name


def test_counters_that_came_as_zero_stay_zero() -> None:
    source, target = cpu("e8c2"), cpu("e8c2")
    source.lsr = source.ilcr = 5
    load(target, save(source))
    assert (target.lsr1, target.ilcr1) == (0, 0)


# -- identity


@pytest.mark.parametrize(
    ("sender", "receiver", "text"),
    [
        ("e8c", "e8c2", "cpu 3: ISA v4 in stream, model is v5"),
        ("e16c", "e8c", "cpu 3: ISA v6 in stream, model is v4"),
    ],
)
def test_another_isa_ends_the_load_at_the_first_field(sender: str, receiver: str, text: str) -> None:
    source, target = cpu(sender, 3), cpu(receiver, 3)
    fill(source, 1)
    before = values(target)
    with pytest.raises(StreamError) as caught:
        load(target, save(source))
    error = caught.value
    assert (error.message, error.path, error.offset) == (text, "cpu/3/isa", 0)
    assert error.__cause__.code == "C01"  # type: ignore[union-attr]
    assert values(target) == before


# -- hooks


def test_any_object_with_the_attributes_will_do() -> None:
    """Registers in lists, no class of ours; its own two hooks are called."""
    source = cpu()
    fill(source, 9)
    calls = []
    own = SimpleNamespace(index=0, model=MODELS["e8c"], entry=0, tags=True, **values(cpu()))
    assert isinstance(own.dam, list)
    own.after_load = lambda version: calls.append(("after_load", version, own.psr))
    own.before_save = lambda: setattr(own, "clkr", own.clkr + 1)
    load(own, save(source))
    assert values(own) == values(source)
    assert calls == [("after_load", 1, source.psr)]
    raw = save(own)
    source.clkr += 1
    assert raw == save(source)


def test_a_refusal_by_the_emulator_leaves_the_state_as_it_was() -> None:
    source, target = cpu("e16c"), cpu("e16c")
    fill(source, 9)
    fill(target, 10)
    before = values(target)

    def refuse(version: int) -> None:
        raise ValueError("no room for so many breakpoints")

    target.after_load = refuse
    with pytest.raises(StreamError, match="no room for so many breakpoints"):
        load(target, save(source))
    assert values(target) == before


def test_a_number_that_does_not_fit_is_named() -> None:
    source = cpu()
    source.psr = 1 << 32
    with pytest.raises(MigrationError, match="psr"):
        save(source)


# -- cpu_common


def test_cpu_common() -> None:
    source, target = cpu(), cpu()
    target.exception_index, target.crash_occurred = 5, True
    source.interrupt_request = 0x203
    load(target, save(source, CPU_COMMON), CPU_COMMON)
    assert (target.interrupt_request, target.exception_index, target.crash_occurred) == (0x202, -1, False)
    source.exception_index, source.crash_occurred = 43, True
    load(target, save(source, CPU_COMMON), CPU_COMMON)
    assert (target.exception_index, target.crash_occurred) == (43, True)


def test_a_refused_cpu_common_leaves_the_state_as_it_was() -> None:
    target = cpu()
    target.exception_index, target.crash_occurred = 5, True
    with pytest.raises(StreamError):
        load(target, save(cpu(), CPU_COMMON)[:-1], CPU_COMMON)
    with pytest.raises(StreamError):
        load(target, save(target, CPU_COMMON)[:-1], CPU_COMMON)
    assert (target.exception_index, target.crash_occurred) == (5, True)


def test_stream_surgery_is_exact() -> None:
    source = cpu()
    fill(source, 2)
    raw = save(source)
    assert join(split(raw)) == raw
    assert changed(raw, ("cpu/fp", "fpsr", 0, source.fpsr)) == raw
