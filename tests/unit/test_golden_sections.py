"""What we write for a machine equals what real QEMUs wrote, byte for byte outside RAM."""

from __future__ import annotations

import lzma
from functools import cache
from typing import Any

import pytest

from qmig_e2k._core import Reader
from qmig_e2k.e2k import Machine, build
from qmig_e2k.savevm import (
    Configuration,
    GlobalState,
    Profile,
    Registry,
    VirtualClock,
    load_section,
    save_full,
    stream_head,
    stream_tail,
)
from support import STREAMS

GOLDEN = [
    ("qemu29-none-plain", "2.9", "none", 16 << 20),
    ("qemu7-none-plain", "7.2", "none", 16 << 20),
    ("qemu10-none-plain", "10.0", "none", 16 << 20),
    ("e2k-plain", "7.2", "e2k-qemu", 32 << 20),
]


@cache
def golden(name: str) -> bytes:
    return lzma.decompress((STREAMS / f"{name}.stream.xz").read_bytes())


def machine(kind: str, ram: int, format_: Any) -> tuple[Machine, Registry, GlobalState]:
    profile = Profile(format_)
    made, registry, state = build(kind, ram), Registry(profile), GlobalState(profile)
    made.register(registry, VirtualClock(), state)
    return made, registry, state


def rest(made: Machine, registry: Registry) -> tuple[bytes, bytes]:
    """What stands before and behind RAM."""
    head, configuration = stream_head(Configuration(made.wire_name), registry.profile)
    saved = save_full(registry)
    return head, saved.data + stream_tail(registry.profile, saved.devices, configuration)


@pytest.mark.parametrize(("name", "format_", "kind", "ram"), GOLDEN)
def test_reset_machine_writes_the_golden_bytes(name: str, format_: str, kind: str, ram: int) -> None:
    made, registry, state = machine(kind, ram, format_)
    state.store("prelaunch")
    head, tail = rest(made, registry)
    stream = golden(name)
    assert stream[: len(head)] == head
    assert stream[-len(tail) :] == tail
    assert registry.ram is not None
    # RAM's START follows the head, its END (footer) precedes the FULL sections
    number = registry.ram.section_id.to_bytes(4, "big")
    assert stream[len(head) :].startswith(b"\1" + number + b"\3ram")
    assert stream[: -len(tail)].endswith(b"\x7e" + number)
    switchover = b"\x08\0\x0b\0\0\3" + number
    assert (switchover in stream[-len(tail) - 30 :]) is registry.profile.switchover_start


@pytest.mark.parametrize(("name", "format_", "kind", "ram"), GOLDEN)
def test_golden_sections_load_and_come_out_again(name: str, format_: str, kind: str, ram: int) -> None:
    made, registry, state = machine(kind, ram, format_)
    stream = golden(name)
    begin = stream.index(b"\4\0\0\0\0\5timer")
    reader = Reader(stream[begin:], begin)
    loaded = []
    while reader.u8() == 4:
        offset = reader.offset - 1
        number = reader.u32()
        entry = registry.find(reader.cstr8().decode(), reader.u32(), version := reader.u32(), offset=offset)
        assert entry.section_id == number
        load_section(entry, reader, version)
        assert reader.read(5) == b"\x7e" + number.to_bytes(4, "big")
        loaded.append(entry)
    assert registry.missing(loaded) == []
    assert state.received == "prelaunch"
    assert rest(made, registry)[1] == stream[begin:]


def test_changed_values_survive_a_move_of_the_public_machine() -> None:
    made, registry, _ = machine("e2k-qemu", 32 << 20, "7.2")
    common, host, root, _, escc = (device.obj for device in made.devices)
    common.interrupt_request, common.exception_index = 0x200, 7
    host.config_reg = 0x8000_0000
    root.irq_count[2] = 1
    escc.chn[1].rregs[3] = 0x38
    data = save_full(registry).data
    copy, target, _ = machine("e2k-qemu", 32 << 20, "7.2")
    reader = Reader(data)
    while reader.offset < len(data):
        assert reader.u8() == 4
        reader.u32()
        entry = target.find(reader.cstr8().decode(), reader.u32(), version := reader.u32())
        load_section(entry, reader, version)
        reader.skip(5)
    assert save_full(target).data == data
    assert copy.devices[0].obj.exception_index == 7
    copy.reset()
    _, fresh, _ = machine("e2k-qemu", 32 << 20, "7.2")
    assert save_full(target).data == save_full(fresh).data
