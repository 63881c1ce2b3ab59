"""The shipped descriptions on objects of an emulator's own: a plain class, slots, dicts, and a mapping of names."""

from __future__ import annotations

from dataclasses import make_dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from qmig_e2k import MigrationError, StreamError, Vm, e2k, vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.testing import filled
from qmig_e2k.vmstate.mapped import Mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmig_e2k.vmstate import VMStateDescription

MODEL = "e16c"


class Kind(NamedTuple):
    """A way of keeping registers: from the shipped object to a foreign one and its mapping."""

    make: Callable[[dict[str, Any]], Any]
    mapping: Callable[[dict[str, Any]], dict[str, str] | None]


class Plain:
    """Attributes and no method."""


def plain(members: dict[str, Any]) -> Plain:
    made = Plain()
    vars(made).update(members)
    return made


def slots(members: dict[str, Any]) -> Any:
    return make_dataclass("Slots", list(members), slots=True)(**members)


def scattered(members: dict[str, Any]) -> Any:
    """Every other member in a dict of its own, 64-bit numbers in numpy arrays, the rest under another name."""
    made = SimpleNamespace(parts={}, numbers=np.zeros(len(members), np.uint64), other=SimpleNamespace())
    for at, (name, value) in enumerate(members.items()):
        if at % 3 == 0:
            made.parts[name] = value
        elif type(value) is int and 0 <= value < 1 << 64 and at % 3 == 1:
            made.numbers[at] = value
        else:
            setattr(made.other, f"my_{name}", value)
    return made


def scattered_mapping(members: dict[str, Any]) -> dict[str, str]:
    made = scattered(members)
    return {
        name: f"parts.{name}"
        if name in made.parts
        else f"other.my_{name}"
        if hasattr(made.other, f"my_{name}")
        else f"numbers.{at}"
        for at, name in enumerate(members)
    }


KINDS = {
    "class": Kind(plain, lambda _: None),
    "slots": Kind(slots, lambda _: None),
    "dict": Kind(dict, lambda _: None),
    "mapped": Kind(scattered, scattered_mapping),
    "mapped dict": Kind(
        lambda members: {f"my_{name}": value for name, value in members.items()},
        lambda members: {name: f"my_{name}" for name in members},
    ),
}
DEVICES = {"cpu": e2k.CPU, "cepic": e2k.CEPIC, "e2k-sic": e2k.SIC, "0000:00:02.4/e2k-gpio": e2k.GPIO, "escc": e2k.ESCC}


def device(name: str, seed: int) -> Any:
    """A shipped object full of values."""
    hardware = filled(e2k.build("e2k", 64 << 20, cpus=2, model=MODEL, tags=True, options=e2k.OPTIONS), seed)
    return next(d.obj for d in hardware.devices if d.description.name == name.rpartition("/")[2])


def attributes(description: VMStateDescription) -> Iterator[str]:
    yield from (name.partition(".")[0] for name in description.reads)
    for row in description.fields:
        if row.structure is not None and not row.attribute:
            yield from attributes(row.structure)
        else:
            yield row.attribute
    for part in description.subsections:
        yield from attributes(part)


def members(description: VMStateDescription, obj: Any) -> dict[str, Any]:
    """What a foreign object needs and nothing else, copied."""
    made: dict[str, Any] = {}
    for name in attributes(description):
        value = getattr(obj, name)
        if description is e2k.ESCC and name == "chn":
            value = [members(row.structure, each) for row in description.fields for each in value]
        made[name] = value.copy() if isinstance(value, np.ndarray | bytearray) else value
    return made


def registered(name: str, kind: str, values: dict[str, Any]) -> Any:
    """The foreign object as engine and hooks see it."""
    description, how = DEVICES[name], KINDS[kind]
    if "chn" in values:
        inner = how.mapping(values["chn"][0]) or {}
        values = {**values, "chn": [how.make(each) for each in values["chn"]]}
        mapping = how.mapping(values)
        if mapping is not None:
            mapping |= {f"chn.{part}": place for part, place in inner.items()}
    else:
        mapping = how.mapping(values)
    vm = Vm("e2k")
    bus_path = name.rpartition("/")[0] or None
    return vm.register(description, how.make(values), mapping=mapping, bus_path=bus_path).handler.obj


def saved(description: VMStateDescription, obj: Any) -> tuple[bytes, Any]:
    writer = Writer()
    made = vmstate.save(description, obj, writer)
    return writer.getvalue(), made


def loaded(description: VMStateDescription, obj: Any, raw: bytes) -> None:
    reader = Reader(raw)
    vmstate.load(description, obj, reader, description.version_id, path="dev")
    assert reader.offset == len(raw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DEVICES)
def test_a_foreign_object_moves_like_ours(name: str, kind: str) -> None:
    description = DEVICES[name]
    ours, other = device(name, 1), device(name, 2)
    raw, made = saved(description, ours)
    foreign = registered(name, kind, members(description, ours))
    assert saved(description, foreign) == (raw, made)

    target = registered(name, kind, members(description, other))
    array = next((a for a in ("regs_lo", "pmirr", "mc", "regs") if a in attributes(description)), None)
    before = getattr(target, array) if array else None
    assert saved(description, target)[0] != raw
    loaded(description, target, raw)
    assert saved(description, target)[0] == raw
    if array:
        assert getattr(target, array) is before, "filled in place"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "field", "value", "code"),
    [
        ("cpu", "wd", 0x18, "C09"),
        ("cpu", "fpcr", 0, "C24"),
        ("cepic", "id", 0x400, "E01"),
        ("e2k-sic", "rt_msi", 1, "S03"),
        ("0000:00:02.4/e2k-gpio", "inputs", 1 << 32, None),
        ("escc", "chn", 16, "K01"),
    ],
)
def test_checks_refuse_and_leave_no_trace(name: str, field: str, value: int, code: str | None, kind: str) -> None:
    description = DEVICES[name]
    source = device(name, 1)
    if field == "chn":
        source.chn[1].reg = value
    else:
        setattr(source, field, value)
    if code is None:
        with pytest.raises(MigrationError, match="inputs"):
            saved(description, source)
        return
    raw, _ = saved(description, source)
    target = registered(name, kind, members(description, device(name, 2)))
    before = saved(description, target)
    with pytest.raises(StreamError) as caught:
        loaded(description, target, raw)
    assert caught.value.__cause__.code == code
    assert saved(description, target) == before
    with pytest.raises(StreamError) as ours:
        loaded(description, device(name, 2), raw)
    assert str(caught.value) == str(ours.value)


@pytest.mark.parametrize("kind", ["class", "dict", "mapped dict"])
@pytest.mark.parametrize("name", DEVICES)
def test_the_emulators_own_hooks_are_called(name: str, kind: str) -> None:
    description, called = DEVICES[name], []
    values = members(description, device(name, 1))
    values |= {"before_save": lambda: called.append("save"), "after_load": called.append}
    obj = registered(name, kind, values)
    raw, _ = saved(description, obj)
    loaded(description, obj, raw)
    assert called == ["save", description.version_id]


def test_a_view_passes_everything_on() -> None:
    state = {"a": 1, "b": {"c": [5, 6]}, "words": np.array([7, 8], np.uint64)}
    view = Mapped(state, {"c": "b.c.1", "second": "words.1"})
    assert (view.a, view.c, view.second, view["a"], view["c"]) == (1, 6, 8, 1, 6)
    assert type(view.second) is int
    assert view.words is state["words"]
    view.c, view.second, view.new, view["a"] = 60, 80, 9, 10
    assert state["b"]["c"] == [5, 60]
    assert state["words"].tolist() == [7, 80]
    assert (state["new"], state["a"]) == (9, 10)
    del view.new
    assert "new" not in state
    assert "new" not in view
    assert "c" in view
    assert 5 not in view
    assert view.get("a") == 10, "a dict's own methods are there too"
    with pytest.raises(KeyError, match="nowhere"):
        view["nowhere"]
    with pytest.raises(AttributeError, match="has no element 9"):
        _ = Mapped(state, {"x": "words.9"}).x
    with pytest.raises(AttributeError):
        del view.nothing
    plain_view = Mapped(SimpleNamespace(x=SimpleNamespace(y=3)), {"z": "x.y"})
    del plain_view.z
    assert not hasattr(plain_view, "z")
    assert repr(Mapped({"a": 1}, {})) == "Mapped({'a': 1})"


def test_structures_in_dicts_have_attributes() -> None:
    escc = SimpleNamespace(chn=[{"reg": 3}, {"reg": 4}])
    seen = Vm("e2k").register(e2k.ESCC, escc).handler.obj
    assert seen.chn[1].reg == 4
    whole = SimpleNamespace(chn=[SimpleNamespace(reg=3), SimpleNamespace(reg=4)])
    assert Vm("e2k").register(e2k.ESCC, whole).handler.obj is whole, "no view where none is needed"


def test_mistakes_in_a_mapping() -> None:
    vm = Vm("e2k")
    for mapping, text in (
        ({"regs": "file"}, "cpu has no 'regs'"),
        ({"regs_low": "file"}, "did you mean 'regs_lo'?"),
        ({"zzzzzz": "file"}, "it has "),
    ):
        with pytest.raises(MigrationError) as caught:
            vm.register(e2k.CPU, SimpleNamespace(), mapping=mapping)
        assert caught.value.kind == "invalid-argument"
        assert text in str(caught.value)
    assert vm.register(e2k.CPU, {}, mapping={"index": "number", "tags": "t", "before_save": "flush"})
