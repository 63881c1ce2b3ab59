"""Golden vectors of the CPU: state in, exact bytes out, back in, equal, saved again equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cpu_streams import MAIN, changed, cpu, join, load, refusal, save, split, values
from cpu_vectors import LAYOUT, REJECTIONS, VECTORS, Rejection, State, Vector, pack
from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k.cpu import CPU, CPU_COMMON, GROUPS
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.errors import StreamError

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu import Cpu

RESET = {"e8c": {"isa": 4, "idr": 0x2207}, "v7": {"isa": 7, "idr": 0x220E}}
NAMES = [vector.name for vector in VECTORS]
COMMON = 8
"""Bytes of `cpu_common`."""
_OTHER = {"e8c": "e8c2", "e8c2": "e16c", "e16c": "e8c"}


def machine(vector: Vector, state: State) -> Cpu:
    """A CPU in the vector's state."""
    made = cpu(vector.model, vector.index)
    made.interrupt_request = vector.request
    for name, value in state.items():
        attribute = "reg_tags" if name == "tags" else name
        if isinstance(value, list):
            getattr(made, attribute)[: len(value)] = value
        else:
            setattr(made, attribute, value)
    return made


def both(obj: Cpu) -> bytes:
    writer = Writer()
    for description in (CPU_COMMON, CPU):
        vmstate.save(description, obj, writer)
    return writer.getvalue()


def load_both(obj: Cpu, raw: bytes) -> None:
    reader = Reader(raw)
    for description in (CPU_COMMON, CPU):
        vmstate.load(description, obj, reader, 1)
    assert reader.offset == len(raw)


@pytest.mark.parametrize("model", RESET)
@pytest.mark.parametrize("name", LAYOUT)
def test_every_group_is_the_specifications_table(name: str, model: str) -> None:
    """Order, types and reset values: those that no vector has too."""
    writer, fields = Writer(), [row for group_name, group in GROUPS if group_name == name for row in group.FIELDS]
    vmstate.save(vmstate.VMStateDescription(name, fields=fields), cpu(model), writer)
    assert writer.getvalue() == pack(name, RESET[model])
    assert [row.name for row in fields] == [row.split(":")[0] for row in LAYOUT[name].split()]


def test_order_of_the_groups() -> None:
    assert list(dict.fromkeys(name for name, _ in GROUPS)) == list(LAYOUT)


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_state_to_bytes_and_back(vector: Vector) -> None:
    golden = vector.path.read_bytes()
    assert vector.bytes() == golden, "run tests/cpu_vectors.py"
    assert list(split(golden[COMMON:])) == [MAIN, *vector.subsections]
    assert both(machine(vector, vector.state | vector.ignored)) == golden
    source, target = machine(vector, vector.state), cpu(vector.model, vector.index)
    load_both(target, golden)
    assert values(target) == values(source)
    assert (target.halted, target.interrupt_request) == (int(vector.index != 0), vector.request)
    assert both(target) == golden


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_another_isa_refuses_the_vector(vector: Vector) -> None:
    target = cpu(_OTHER[vector.model], vector.index)
    before = values(target)
    with pytest.raises(StreamError) as caught:
        load(target, vector.path.read_bytes()[COMMON:])
    assert isinstance(caught.value.__cause__, CheckError)
    assert caught.value.__cause__.code == "C01"
    assert values(target) == before


WITH_PARTS = [(vector, name) for vector in VECTORS for name in vector.subsections]


@pytest.mark.parametrize(("vector", "part"), WITH_PARTS, ids=[f"{v.name}-{part[4:]}" for v, part in WITH_PARTS])
def test_without_a_subsection_its_registers_have_their_reset_values(vector: Vector, part: str) -> None:
    parts = split(vector.path.read_bytes()[COMMON:])
    del parts[part]
    expected, target = machine(vector, vector.state), cpu(vector.model, vector.index)
    group = next(group for name, group in GROUPS if name == part)
    group.reset(expected)
    if part == "cpu/loop64":
        expected.lsr1, expected.ilcr1 = expected.lsr & 0xFFFF_FFFF, expected.ilcr & 0xFFFF_FFFF
    load(target, join(parts))
    assert values(target) == values(expected)
    assert save(target) == join(parts) or part == "cpu/clocks"


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_a_cut_vector_is_refused_and_taken_back(vector: Vector) -> None:
    target = cpu(vector.model, vector.index)
    before = values(target)
    with pytest.raises(StreamError) as caught:
        load(target, vector.path.read_bytes()[COMMON:-1])
    assert caught.value.kind == "truncated"
    assert values(target) == before


# -- one hard check violated

_MAIN_BODY = {
    "C04": ("rf_form", 1),
    "C05": ("ip", 4),
    "C06": ("psr", 0x80),
    "C07": ("upsr", 0x800),
    "C08": ("core_mode", 1),
    "C09": ("wd", 0x708 << 16),
    "C10": ("pshtp", 1),
    "C11": ("br", 1 << 28),
    "C13": ("bgr", 0x800),
    "C14": ("psp_lo", 1 << 48),
    "C15": ("psp_hi", 0x20),
    "C16": ("pcsp_hi", 0x1000 << 32 | 8),
    "C18": ("usd_hi", 8 << 32),
    "C20": ("gd", 1 << 57),
    "C21": ("cuir", 0x2_0000),
    "C22": ("lsr", 1 << 61),
    "C23": ("ctpr", 6 << 54),
}
"""A value of the first element that no state makes legal."""
_PARTS = {
    "cpu/fp": ("C24", "fpcr", 0, 0x17F),
    "cpu/clocks": ("C38", "rndpr", 0, 1 << 17),
    "cpu/aau": ("C27", "aasr", 0, 0x10),
    "cpu/aau_prefetch": ("C30", "instr", 63, 1),
    "cpu/mmu": ("C32", "pid", 0, 0x1000),
    "cpu/mmu_v6": ("C32", "os_pptb", 0, 8),
    "cpu/trap": ("C31", "nr_tirs", 0, -2),
    "cpu/debug": ("C35", "dibcr", 0, 0x1000),
    "cpu/monitors": ("C35", "dimtp", 0, 16),
    "cpu/dam": ("C34", "dam", 31, 1 << 59),
    "cpu/hv": ("C36", "intc_cu_num", 0, 7),
}
_FOREIGN = {
    "e8c": ("C37", "cpu/loop64", "lsr1"),
    "e8c2": ("C25", "cpu/fx_ext", "fx"),
    "e16c": ("C37", "cpu/v7", "osr1"),
}
"""A subsection that the model cannot have."""
_UNCHECKED = {f"cpu/{name}" for name in "fx_ext qp_hi loop64 ctpr_hi mlt clw lock_pair".split()}
"""Subsections in which every value is legal where they may be at all."""


def violations(vector: Vector) -> list[tuple[str, tuple[str, str, int, int]]]:
    """Check and change of the vector's payload: three of the main body, one of each subsection, one more."""
    code, part, field = _FOREIGN[vector.model]
    made = [(code, (part, field, 0, 1))]
    first = VECTORS.index(vector)
    for number in range(first, first + 3):
        code, (field, value) = list(_MAIN_BODY.items())[number % len(_MAIN_BODY)]
        made.append((code, (MAIN, field, 0, value)))
    for part in vector.subsections:
        if part == "cpu/tags":
            made += [("C25", (part, "tags", 0, 0x10))] if vector.model == "e8c" else []
        elif part not in _UNCHECKED:
            code, field, index, value = _PARTS[part]
            made.append((code, (part, field, index, value)))
    return made


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_with_one_hard_check_violated_the_vector_is_refused(vector: Vector) -> None:
    raw = vector.path.read_bytes()[COMMON:]
    target = cpu(vector.model, vector.index)
    before = values(target)
    for code, edit in violations(vector):
        error = refusal(target, changed(raw, edit))
        assert error is not None, edit
        assert isinstance(error.__cause__, CheckError), error
        assert error.__cause__.code == code, error
        assert values(target) == before
    assert refusal(target, raw) is None


def test_violations_are_of_all_checks_that_do_not_depend_on_the_rest_of_the_state() -> None:
    codes = {code for vector in VECTORS for code, _ in violations(vector)}
    others = {"C01", "C02", "C03", "C12", "C17", "C19", "C26", "C28", "C29", "C33"}
    assert codes | others == {f"C{number:02}" for number in range(1, 39)}


@pytest.mark.parametrize("case", REJECTIONS, ids=[case.vector.name for case in REJECTIONS])
def test_vector_38_is_refused_and_leaves_the_state_untouched(case: Rejection) -> None:
    golden = case.vector.path.read_bytes()
    assert case.vector.bytes() == golden, "run tests/cpu_vectors.py"
    target = cpu(case.model, tags=case.tags)
    before = values(target)
    error = refusal(target, golden[COMMON:])
    assert error is not None
    assert isinstance(error.__cause__, CheckError)
    assert (error.__cause__.code, error.message) == (case.code, f"cpu 0: {case.text}")
    assert values(target) == before
