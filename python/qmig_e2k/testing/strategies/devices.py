"""Random devices: a description of any shape, values that fit it, and an empty device of the kind."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from qmig_e2k.vmstate import (
    VMStateDescription,
    array,
    array2d,
    array_of_pointer,
    bitmap,
    bool_,
    bool_strict,
    buffer,
    float64,
    gtree,
    int8,
    int16,
    int32,
    int64,
    pointer,
    qlist,
    qtailq,
    struct,
    timer,
    uint8,
    uint16,
    uint32,
    uint32_equal,
    uint64,
    unused,
    unused_varray,
    varray,
    vbuffer,
    vstruct,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.vmstate import VMStateField

    Values = dict[str, Any]
    Maker = Callable[[st.DrawFn, str, Values, dict[str, Any]], list[VMStateField]]

_INTEGERS: dict[Any, type[np.integer[Any]]] = {
    int8: np.int8,
    int16: np.int16,
    int32: np.int32,
    int64: np.int64,
    uint8: np.uint8,
    uint16: np.uint16,
    uint32: np.uint32,
    uint64: np.uint64,
    timer: np.int64,
}


@dataclass
class Device:
    """A device with its description.

    Attributes:
        description: what of it travels.
        values: a device: members by name. Those of a kind that must be equal are in `blank`, too.
        blank: another one of the kind, with room for these values and nothing in it.
    """

    description: VMStateDescription
    values: dict[str, Any] = field(default_factory=dict)
    blank: dict[str, Any] = field(default_factory=dict)


@st.composite
def devices(draw: st.DrawFn, name: str = "dev", *, depth: int = 2, fixed: bool = False) -> Device:
    """A device of up to five fields of any family, up to two subsections, and other devices inside.

    Args:
        draw: hypothesis' own.
        name: of its description.
        depth: how many levels of devices may be inside each other.
        fixed: all devices of the kind take the same bytes, so one entry of the JSON description may stand for all
            elements of an array of them.
    """
    version = draw(st.integers(1, 3))
    values: dict[str, Any] = {}
    fields: list[VMStateField] = []
    families = list(_FIXED if fixed else _FIXED | _VARIABLE)
    families += [] if depth == 0 else _NESTED_FIXED if fixed else _NESTED
    blank: dict[str, Any] = {}
    for index in range(draw(st.integers(0, 5))):
        label = f"f{index}"
        family = draw(st.sampled_from(families))
        options: dict[str, Any] = {} if fixed else {"version": draw(st.integers(0, version))}
        if family in _NESTED:
            # names on one path are no prefixes of each other, or subsections go to the wrong owner (stream.md 3.6)
            inner = draw(devices(f"{depth}{label}", depth=depth - 1, fixed=fixed or family == "structs"))
            made, values[label], blank[label] = _nest(draw, family, label, inner, options)
            fields.append(made)
        else:
            fields += (_FIXED | _VARIABLE)[family](draw, label, values, options)
            if family == "equal":
                blank[label] = values[label]
    subsections = [] if fixed else [_subsection(draw, name, f"s{k}", values) for k in range(draw(st.integers(0, 2)))]
    description = VMStateDescription(name, version_id=version, fields=fields, subsections=subsections)
    return Device(description, values, {key: blank.get(key, _blank(value)) for key, value in values.items()})


def descriptions(name: str = "dev", *, depth: int = 2) -> st.SearchStrategy[VMStateDescription]:
    """A description alone; arguments as for `devices`."""
    return devices(name, depth=depth).map(lambda device: device.description)


def _blank(value: Any) -> Any:
    """The value of that kind before anything was loaded."""
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if isinstance(value, bool | int | float):
        return type(value)()
    if isinstance(value, bytes | bytearray):
        return type(value)(len(value))
    if isinstance(value, list):
        return [_blank(element) for element in value]
    if isinstance(value, dict):
        return {name: _blank(element) for name, element in value.items()}
    return value


def _subsection(draw: st.DrawFn, owner: str, key: str, values: Values) -> VMStateDescription:
    values[key] = draw(st.integers(0, 2))
    return VMStateDescription(f"{owner}/{key}", fields=[uint8(key)], needed=lambda device: device[key] != 0)


def _range(kind: Any) -> st.SearchStrategy[int]:
    limits = np.iinfo(_INTEGERS[kind])
    return st.integers(int(limits.min), int(limits.max))


def _kind(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    """A kind of number and what it can be."""
    kind = draw(st.sampled_from([*_INTEGERS, bool_, bool_strict, float64]))
    if kind in (bool_, bool_strict):
        return kind, st.booleans()
    return kind, st.floats(allow_nan=False) if kind is float64 else _range(kind)


# one maker a family: draws the value of `label`, and returns the fields that carry it


def _number(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    kind, numbers = _kind(draw)
    values[label] = draw(numbers)
    return [kind(label, **options)]


def _equal(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    values[label] = draw(_range(uint32))
    return [uint32_equal(label, **options)]


def _pointed(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    values[label] = draw(_range(uint16))
    return [pointer(label, uint16, **options)]


def _array(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    kind, numbers = _kind(draw)
    values[label] = draw(st.lists(numbers, max_size=5))
    return [array(label, kind, len(values[label]), **options)]


def _numpy(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    kind = draw(st.sampled_from(list(_INTEGERS)))
    values[label] = np.array(draw(st.lists(_range(kind), max_size=5)), _INTEGERS[kind])
    return [array(label, kind, len(values[label]), **options)]


def _table(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    row = st.lists(_range(int16), min_size=columns, max_size=columns)
    values[label] = draw(st.lists(row, min_size=rows, max_size=rows))
    return [array2d(label, int16, rows, columns, **options)]


def _buffer(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    container = draw(st.sampled_from([bytes, bytearray]))
    values[label] = container(draw(st.binary(max_size=8)))
    return [buffer(label, len(values[label]), **options)]


def _unused(draw: st.DrawFn, _label: str, _values: Values, options: dict[str, Any]) -> list[VMStateField]:
    return [unused(draw(st.integers(1, 4)), **options)]


def _pointers(draw: st.DrawFn, label: str, values: Values, options: dict[str, Any]) -> list[VMStateField]:
    values[label] = draw(st.lists(st.none() | st.integers(0, 255), max_size=5))
    return [array_of_pointer(label, uint8, len(values[label]), **options)]


def _varray(draw: st.DrawFn, label: str, values: Values, _options: dict[str, Any]) -> list[VMStateField]:
    numbers = draw(st.lists(_range(uint16), max_size=5))
    count = draw(st.integers(0, len(numbers)))
    values[label], values[f"{label}n"] = numbers[:count] + [0] * (len(numbers) - count), count
    return [uint32(f"{label}n"), varray(label, uint16, f"{label}n")]


def _vbuffer(draw: st.DrawFn, label: str, values: Values, _options: dict[str, Any]) -> list[VMStateField]:
    values[label] = draw(st.binary(max_size=8))
    values[f"{label}n"] = len(values[label])
    return [int32(f"{label}n"), vbuffer(label, f"{label}n", alloc=draw(st.booleans()))]


def _bitmap(draw: st.DrawFn, label: str, values: Values, _options: dict[str, Any]) -> list[VMStateField]:
    values[f"{label}n"] = draw(st.integers(0, 130))
    words = -(-values[f"{label}n"] // 64)
    values[label] = draw(st.lists(_range(uint64), min_size=words, max_size=words))
    return [int32(f"{label}n"), bitmap(label, f"{label}n")]


def _holes(draw: st.DrawFn, label: str, values: Values, _options: dict[str, Any]) -> list[VMStateField]:
    values[f"{label}n"] = draw(st.integers(0, 4))
    return [uint8(f"{label}n"), unused_varray(f"{label}n", draw(st.integers(1, 3)))]


_FIXED: dict[str, Maker] = {
    "number": _number,
    "equal": _equal,
    "pointer": _pointed,
    "array": _array,
    "numpy": _numpy,
    "table": _table,
    "buffer": _buffer,
    "unused": _unused,
    "pointers": _pointers,
}
_VARIABLE: dict[str, Maker] = {"varray": _varray, "vbuffer": _vbuffer, "bitmap": _bitmap, "holes": _holes}
_NESTED_FIXED = ["struct", "structs"]
_NESTED = [*_NESTED_FIXED, "list", "tree", "vstruct"]


def _nest(
    draw: st.DrawFn, family: str, label: str, inner: Device, options: dict[str, Any]
) -> tuple[VMStateField, Any, Any]:
    """A field with `inner`, or several of it, inside; its value, and the value before anything was loaded."""
    vmsd = inner.description
    if family == "struct":
        return struct(label, vmsd, **options), inner.values, inner.blank
    if family == "vstruct":
        return vstruct(label, vmsd, vmsd.version_id, **options), inner.values, inner.blank
    count = draw(st.integers(0, 3))
    some, room = ([copy.deepcopy(one) for _ in range(count)] for one in (inner.values, inner.blank))
    if family == "structs":
        return array(label, vmsd, count, **options), some, room
    new = partial(copy.deepcopy, inner.blank)
    if family == "list":
        return draw(st.sampled_from([qtailq, qlist]))(label, vmsd, new, **options), some, room
    return gtree(label, vmsd, new, **options), dict(enumerate(some)), dict(enumerate(room))
