"""Any state that a CPU can be in arrives; any single damaged register is refused by a check, or is such a state too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_streams import ALL_MODELS, MAIN, changed, cpu, load, place, refusal, registers, save, split, values
from qmig_e2k.e2k.cpu import GROUPS
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.testing.cpu_state import HW_VIRT, legalize, set_register

if TYPE_CHECKING:
    from qmig_e2k.e2k.cpu import Cpu

WORD = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, (1 << 64) - 1, 1 << 63, (1 << 32) - 1, 1 << 32, 1 << 48]),
    st.builds(lambda bit: 1 << bit, st.integers(0, 63)),
)
REGISTERS = [register for _, group in GROUPS for register in group.registers]


class State(NamedTuple):
    """A CPU and the payload of its `cpu` section."""

    model: str
    tags: bool
    cpu: Cpu
    raw: bytes


@st.composite
def states(draw: st.DrawFn) -> State:
    """A legal state: whole groups of registers at random, some single ones as drawn, all cut to what can be."""
    model, tags = draw(st.sampled_from(sorted(ALL_MODELS))), draw(st.booleans())
    made = cpu(model, 1, tags=tags)
    numbers = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    chosen = draw(st.integers(0, (1 << len(GROUPS)) - 1))  # one draw for all groups: a set of them takes far longer
    for position, (_, group) in enumerate(GROUPS):
        for register in group.registers if chosen >> position & 1 else ():
            set_register(made, register, numbers.integers(0, 1 << 64, max(register.length, 1), np.uint64))
    for position, word in draw(st.dictionaries(st.integers(0, len(REGISTERS) - 1), WORD, max_size=4)).items():
        register = REGISTERS[position]
        set_register(made, register, np.full(max(register.length, 1), word, np.uint64))
    if draw(st.booleans()):
        made.idr |= HW_VIRT
    legalize(made)
    return State(model, tags, made, save(made))


@settings(max_examples=80)
@given(states())
def test_any_legal_state_arrives(state: State) -> None:
    target = cpu(state.model, 1, tags=state.tags)
    load(target, state.raw)
    assert values(target) == values(state.cpu)
    assert save(target) == state.raw


@settings(max_examples=120)
@given(states(), WORD, st.data())
def test_one_damaged_register_is_legal_or_refused_by_a_check(state: State, word: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(split(state.raw))))
    register = data.draw(st.sampled_from(registers(name)))
    index = data.draw(st.integers(0, max(register.length, 1) - 1))
    _, size, signed = place(name, register.name, index)
    value = int.from_bytes((word & (1 << 8 * size) - 1).to_bytes(size, "big"), "big", signed=signed)
    target = cpu(state.model, 1, tags=state.tags)
    before = values(target)
    error = refusal(target, changed(state.raw, (name, register.name, index, value)))
    if error is not None:
        assert isinstance(error.__cause__, CheckError)
        assert re.fullmatch(r"C\d\d", error.__cause__.code)
        assert error.message.startswith("cpu 1: ")
        assert error.path.startswith("cpu/1" if name == MAIN else f"cpu/1/{name}")
        assert values(target) == before
        return
    # what was accepted is a legal state: it can be sent on
    raw, other = save(target), cpu(state.model, 1, tags=state.tags)
    load(other, raw)
    assert save(other) == raw
