"""Golden vectors of the CPU: state in, exact bytes out, back in, equal, saved again equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cpu_streams import MAIN, cpu, join, load, save, split, values
from cpu_vectors import LAYOUT, VECTORS, State, Vector, pack
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
