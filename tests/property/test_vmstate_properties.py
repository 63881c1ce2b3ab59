"""Random devices: what is saved loads again and is described truly; damage never does anything but refuse."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k import build
from qmig_e2k.errors import StreamError
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, load_section, save_full
from qmig_e2k.savevm.text import description_text
from qmig_e2k.vmstate import (
    Members,
    VMStateDescription,
    array,
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
    qlist,
    qtailq,
    struct,
    timer,
    uint8,
    uint16,
    uint32,
    uint64,
    unused,
    varray,
    vbuffer,
    vstruct,
)

if TYPE_CHECKING:
    from collections.abc import Callable

INTEGERS = {
    int8: (-(1 << 7), (1 << 7) - 1, np.int8),
    int16: (-(1 << 15), (1 << 15) - 1, np.int16),
    int32: (-(1 << 31), (1 << 31) - 1, np.int32),
    int64: (-(1 << 63), (1 << 63) - 1, np.int64),
    uint8: (0, (1 << 8) - 1, np.uint8),
    uint16: (0, (1 << 16) - 1, np.uint16),
    uint32: (0, (1 << 32) - 1, np.uint32),
    uint64: (0, (1 << 64) - 1, np.uint64),
    timer: (-(1 << 63), (1 << 63) - 1, np.int64),
}
FORMATS = ("2.9", "7.2", "10.0")


@dataclass
class Made:
    """A description with a source's values and a destination that has room for them."""

    description: VMStateDescription
    source: dict[str, Any] = field(default_factory=dict)
    blank: dict[str, Any] = field(default_factory=dict)


def blank_of(description: VMStateDescription, like: dict[str, Any]) -> dict[str, Any]:
    """The values of a device of this kind before anything was loaded."""
    return {name: _blank(value) for name, value in like.items()}


def _blank(value: Any) -> Any:
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


@st.composite
def numbers(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    kind = draw(st.sampled_from([*INTEGERS, bool_, bool_strict, float64]))
    if kind in (bool_, bool_strict):
        return kind, st.booleans()
    if kind is float64:
        return kind, st.floats(allow_nan=False)
    low, high, _ = INTEGERS[kind]
    return kind, st.integers(low, high)


@st.composite
def devices(draw: st.DrawFn, name: str = "dev", depth: int = 2, fixed: bool = False) -> Made:
    """A device; `fixed`: all of its kind have the same size, so an array of it may be compressed truly."""
    version = draw(st.integers(1, 3))
    source: dict[str, Any] = {}
    fields: list[Any] = []
    families = ["number", "array", "numpy", "buffer", "unused", "pointers"]
    families += [] if fixed else ["varray", "vbuffer", "bitmap"]
    families += (
        [] if depth == 0 else ["struct", "structs"] if fixed else ["struct", "structs", "list", "tree", "vstruct"]
    )
    for index in range(draw(st.integers(0, 5))):
        label = f"f{index}"
        family = draw(st.sampled_from(families))
        options: dict[str, Any] = {"version": draw(st.integers(0, version))} if not fixed else {}
        if family == "number":
            kind, values = draw(numbers())
            source[label] = draw(values)
            fields.append(kind(label, **options))
        elif family == "array":
            kind, values = draw(numbers())
            source[label] = draw(st.lists(values, min_size=0, max_size=5))
            fields.append(array(label, kind, len(source[label]), **options))
        elif family == "numpy":
            kind = draw(st.sampled_from(list(INTEGERS)))
            low, high, dtype = INTEGERS[kind]
            source[label] = np.array(draw(st.lists(st.integers(low, high), max_size=5)), dtype)
            fields.append(array(label, kind, len(source[label]), **options))
        elif family == "buffer":
            container = draw(st.sampled_from([bytes, bytearray]))
            source[label] = container(draw(st.binary(max_size=8)))
            fields.append(buffer(label, len(source[label]), **options))
        elif family == "unused":
            fields.append(unused(draw(st.integers(1, 4)), **options))
        elif family == "pointers":
            source[label] = draw(st.lists(st.none() | st.integers(0, 255), max_size=5))
            fields.append(array_of_pointer(label, uint8, len(source[label]), **options))
        elif family == "varray":
            source[label] = draw(st.lists(st.integers(0, 65535), max_size=5))
            source[f"{label}n"] = draw(st.integers(0, len(source[label])))
            source[label][source[f"{label}n"] :] = [0] * (len(source[label]) - source[f"{label}n"])
            fields += [uint32(f"{label}n"), varray(label, uint16, f"{label}n")]
        elif family == "vbuffer":
            source[label] = draw(st.binary(max_size=8))
            source[f"{label}n"] = len(source[label])
            fields += [int32(f"{label}n"), vbuffer(label, f"{label}n", alloc=draw(st.booleans()))]
        elif family == "bitmap":
            source[f"{label}n"] = draw(st.integers(0, 130))
            words = -(-source[f"{label}n"] // 64)
            source[label] = draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=words, max_size=words))
            fields += [int32(f"{label}n"), bitmap(label, f"{label}n")]
        else:
            # names on one path are no prefixes of each other, or subsections go to the wrong owner (stream.md 3.6)
            nested = draw(devices(f"{depth}{label}", depth - 1, fixed or family == "structs"))
            others = [copy.deepcopy(nested.source) for _ in range(draw(st.integers(0, 3)))]
            if family == "struct":
                source[label] = nested.source
                fields.append(struct(label, nested.description, **options))
            elif family == "vstruct":
                source[label] = nested.source
                fields.append(vstruct(label, nested.description, nested.description.version_id, **options))
            elif family == "structs":
                source[label] = others
                fields.append(array(label, nested.description, len(others), **options))
            elif family == "list":
                source[label] = others
                new = lambda like=nested.source, of=nested.description: blank_of(of, like)  # noqa: E731
                fields.append(draw(st.sampled_from([qtailq, qlist]))(label, nested.description, new, **options))
            else:
                source[label] = dict(enumerate(others))
                new = lambda like=nested.source, of=nested.description: blank_of(of, like)  # noqa: E731
                fields.append(gtree(label, nested.description, new, **options))
    subsections = []
    if not fixed:
        for index in range(draw(st.integers(0, 2))):
            key = f"s{index}"
            source[key] = draw(st.integers(0, 2))
            subsections.append(
                VMStateDescription(f"{name}/{key}", fields=[uint8(key)], needed=lambda obj, key=key: obj[key] != 0)
            )
    made = VMStateDescription(name, version_id=version, fields=fields, subsections=subsections)
    return Made(made, source, blank_of(made, source))


def save(made: Made, format_: Any) -> tuple[bytes, Any]:
    writer = Writer()
    entry = vmstate.save(made.description, made.source, writer, format=format_)
    return writer.getvalue(), entry


def described_size(body: Any) -> int:
    """Bytes that a description object accounts for."""
    total = 0
    for entry in body["fields"]:
        members = dict(entry)
        total += members["size"] * members.get("array_len", 1)
    for sub in body.get("subsections", []):
        total += 2 + len(sub["vmsd_name"]) + 4 + described_size(sub)
    return total


def has_nulls(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_nulls, value.values()))
    return isinstance(value, list) and any(element is None or has_nulls(element) for element in value)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(devices(), st.sampled_from(FORMATS))
def test_what_is_saved_loads_again(made: Made, format_: str) -> None:
    raw, entry = save(made, format_)
    reader = Reader(raw)
    vmstate.load(made.description, made.blank, reader, made.description.version_id)
    assert reader.offset == len(raw)
    again = Made(made.description, made.blank)
    assert save(again, format_)[0] == raw
    assert repr(made.blank) == repr(made.source)
    # the description tells the truth about every byte
    if not (format_ == "10.0" and has_nulls(made.source)):
        assert described_size(entry) == len(raw)
    for loose in (False, True):
        read = json.loads(description_text(entry, loose=loose), object_pairs_hook=Members)
        assert [member[0] for member in read] == list(entry)


def damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A few bytes changed, cut off or put in."""
    place = st.integers(0, max(len(raw) - 1, 0))
    flipped = st.builds(
        lambda i, x: raw[:i] + bytes([raw[i] ^ x]) + raw[i + 1 :] if raw else b"", place, st.integers(1, 255)
    )
    cut = st.builds(lambda i: raw[:i], place)
    put = st.builds(lambda i, b: raw[:i] + b + raw[i:], place, st.binary(max_size=12))
    return flipped | cut | put


def refusal(load: Callable[[], None]) -> StreamError | None:
    """What the load was refused with; any other exception fails the test."""
    try:
        load()
    except StreamError as error:
        return error
    return None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.data())
def test_damage_only_refuses_and_is_taken_back(data: st.DataObject) -> None:
    made = data.draw(devices())
    raw = data.draw(damage(save(made, "7.2")[0]) | st.binary(max_size=64))
    before = repr(made.blank)
    error = refusal(lambda: vmstate.load(made.description, made.blank, Reader(raw, 1000), made.description.version_id))
    if error is not None:
        assert repr(made.blank) == before
        assert error.kind in ("bad-version", "device-state", "limit-exceeded", "truncated")
        assert error.path.startswith("dev")
        assert error.offset is not None
        assert 1000 <= error.offset <= 1000 + len(raw)


@pytest.mark.parametrize("kind", ["e2k", "e2k-qemu"])
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_sections_of_the_machines(kind: str, data: st.DataObject) -> None:
    made, registry = build(kind, 1 << 20), Registry()
    made.register(registry, VirtualClock(), GlobalState(Profile()))
    entry = data.draw(st.sampled_from([entry for entry in registry if not entry.handler.live]))
    alone = Registry(Profile(footers=False))
    alone.register(entry.idstr, entry.handler, instance_id=entry.instance_id)
    before = save_full(alone).data
    payload = before[14 + len(entry.idstr) :]
    raw = data.draw(damage(payload))
    error = refusal(lambda: load_section(entry, Reader(raw), entry.handler.version_id))
    if error is not None:
        assert error.path.startswith(entry.path)
        if entry.idstr != "globalstate":
            assert save_full(alone).data == before
