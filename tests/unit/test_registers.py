"""Groups of registers: reset values, the rule when they travel, arrays that keep their identity."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k.registers import Group, octets, word, words
from qmig_e2k.vmstate import load, save, uint32, uint64

GROUP = Group(
    word("init", uint32),
    word("id", uint32, reset=lambda obj: obj.index + 1),
    words("irr", uint64, 4, reset=(1, 0, 0, 2)),
    words("mask", uint32, 3, reset=0x1_0000),
    octets("page", 8, reset=0xFF),
)


def fresh(index: int = 3) -> Any:
    obj = SimpleNamespace(index=index)
    GROUP.reset(obj)
    return obj


def test_reset_gives_every_register_its_value_and_type() -> None:
    obj = fresh()
    assert (obj.init, obj.id, obj.page) == (0, 4, bytearray(b"\xff" * 8))
    assert obj.irr.dtype == np.uint64
    assert obj.irr.tolist() == [1, 0, 0, 2]
    assert obj.mask.dtype == np.uint32
    assert obj.mask.tolist() == [0x1_0000] * 3
    assert not GROUP.differs(obj)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("init", lambda o: setattr(o, "init", 1)),
        ("id", lambda o: setattr(o, "id", 3)),
        ("irr", lambda o: o.irr.__setitem__(3, 1 << 63)),
        ("mask", lambda o: o.mask.__setitem__(0, 0)),
        ("page", lambda o: o.page.__setitem__(7, 0)),
    ],
)
def test_any_register_off_its_reset_value_makes_the_group_travel(name: str, change: Any) -> None:
    obj = fresh()
    view = getattr(obj, name)
    change(obj)
    assert GROUP.differs(obj)
    GROUP.reset(obj)
    assert not GROUP.differs(obj)
    if not isinstance(view, int):
        assert getattr(obj, name) is view


def test_an_emulator_may_keep_its_registers_in_containers_of_its_own() -> None:
    obj = fresh()
    obj.irr, obj.mask, obj.page = [1, 0, 0, 2], np.full((3, 1), 0x1_0000, np.int64), bytes(b"\xff" * 8)
    assert not GROUP.differs(obj)
    obj.irr[1] = 5
    assert GROUP.differs(obj)


def test_one_object_does_not_share_its_arrays_with_the_next() -> None:
    one, other = fresh(), fresh()
    one.irr[0] = 9
    assert other.irr[0] == 1


def test_two_groups_of_one_object_may_have_a_register_of_the_same_name() -> None:
    one, other = (
        Group(word("ctrl", uint32)),
        Group(word("ctrl", uint32, 5, attr="hc_ctrl"), words("id", uint64, 2, attr="hc_id")),
    )
    obj = SimpleNamespace()
    one.reset(obj)
    other.reset(obj)
    assert (obj.ctrl, obj.hc_ctrl) == (0, 5)
    obj.hc_ctrl, obj.hc_id[1] = 6, 7
    assert other.differs(obj)
    assert not one.differs(obj)
    writer = Writer()
    described = save(other.subsection("dev/hc"), obj, writer)
    assert [field["name"] for field in described["fields"]] == ["ctrl", "id"]
    obj.hc_ctrl = 0
    load(other.subsection("dev/hc"), obj, Reader(writer.getvalue()), 1)
    assert (obj.ctrl, obj.hc_ctrl) == (0, 6)


def test_a_subsection_can_ask_for_more() -> None:
    sub = GROUP.subsection("dev/group", when=lambda obj: obj.index > 5)
    obj = fresh(6)
    assert sub.needed is not None
    assert not sub.needed(obj)
    obj.init = 1
    assert sub.needed(obj)
    obj.index, obj.id = 2, 3
    assert not sub.needed(obj)


def test_a_wrong_number_of_reset_values_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="irr: 4 reset values expected, 2 given"):
        Group(words("irr", uint64, 4, reset=(1, 2)))
