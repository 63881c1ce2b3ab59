"""Random devices: what is saved loads again and is described truly; damage never does anything but refuse."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k import build
from qmig_e2k.errors import StreamError
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, load_section, save_full
from qmig_e2k.savevm.text import description_text
from qmig_e2k.testing.strategies import Device, damaged, devices
from qmig_e2k.vmstate import Members

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("2.9", "7.2", "10.0")


def save(made: Device, format_: Any) -> tuple[bytes, Any]:
    writer = Writer()
    entry = vmstate.save(made.description, made.values, writer, format=format_)
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


@settings(max_examples=150)
@given(devices(), st.sampled_from(FORMATS))
def test_what_is_saved_loads_again(made: Device, format_: str) -> None:
    raw, entry = save(made, format_)
    reader = Reader(raw)
    vmstate.load(made.description, made.blank, reader, made.description.version_id)
    assert reader.offset == len(raw)
    again = Device(made.description, made.blank)
    assert save(again, format_)[0] == raw
    assert repr(made.blank) == repr(made.values)
    # the description tells the truth about every byte
    if not (format_ == "10.0" and has_nulls(made.values)):
        assert described_size(entry) == len(raw)
    for loose in (False, True):
        read = json.loads(description_text(entry, loose=loose), object_pairs_hook=Members)
        assert [member[0] for member in read] == list(entry)


def refusal(load: Callable[[], None]) -> StreamError | None:
    """What the load was refused with; any other exception fails the test."""
    try:
        load()
    except StreamError as error:
        return error
    return None


@settings(max_examples=150)
@given(st.data())
def test_damage_only_refuses_and_is_taken_back(data: st.DataObject) -> None:
    made = data.draw(devices())
    raw = data.draw(damaged(save(made, "7.2")[0]) | st.binary(max_size=64))
    before = repr(made.blank)
    error = refusal(lambda: vmstate.load(made.description, made.blank, Reader(raw, 1000), made.description.version_id))
    if error is not None:
        assert repr(made.blank) == before
        assert error.kind in ("bad-version", "device-state", "limit-exceeded", "truncated")
        assert error.path.startswith("dev")
        assert error.offset is not None
        assert 1000 <= error.offset <= 1000 + len(raw)


@pytest.mark.parametrize("kind", ["e2k", "e2k-qemu"])
@settings(max_examples=150)
@given(st.data())
def test_damaged_sections_of_the_machines(kind: str, data: st.DataObject) -> None:
    made, registry = build(kind, 1 << 20), Registry()
    made.register(registry, VirtualClock(), GlobalState(Profile()))
    entry = data.draw(st.sampled_from([entry for entry in registry if not entry.handler.live]))
    alone = Registry(Profile(footers=False))
    alone.register(entry.idstr, entry.handler, instance_id=entry.instance_id)
    before = save_full(alone).data
    payload = before[14 + len(entry.idstr) :]
    raw = data.draw(damaged(payload))
    error = refusal(lambda: load_section(entry, Reader(raw), entry.handler.version_id))
    if error is not None:
        assert error.path.startswith(entry.path)
        if entry.idstr != "globalstate":
            assert save_full(alone).data == before
