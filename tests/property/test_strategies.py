"""Whole streams as hypothesis draws them: every reader takes them for what they are, and one thing wrong hurts none."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmig_e2k import MigrationError, StreamError, Vm
from qmig_e2k._core import Reader, decode
from qmig_e2k.analyze import analyze
from qmig_e2k.e2k import build
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, load_section, save_full
from qmig_e2k.testing import strategies

if TYPE_CHECKING:
    from qmig_e2k.e2k import Machine
    from qmig_e2k.savevm import Entry
    from qmig_e2k.testing.strategies import Damaged, Stream

FEW = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=1000)
"""For `make test-long`."""
PLAIN = strategies.streams(encodings=("zero", "page"))
"""What `decode` reads, which is told of no capabilities."""
ARRIVING = strategies.streams(commands=False, blocks={"ram": 16 * 4096}, switches=False)


def registry_of(stream: Stream) -> Registry:
    """The handlers of a machine that is like the stream's, and empty."""
    registry = Registry(stream.profile)
    build(stream.machine, 1 << 20).register(registry, VirtualClock(), GlobalState(stream.profile))
    for device in stream.devices:
        registry.register_description(device.description, device.blank)
    return registry


def decoded(stream: Stream, data: bytes) -> list[dict]:
    registry = registry_of(stream)

    def resolve(idstr: str, instance: int, version: int, reader: Reader) -> None:
        load_section(registry.find(idstr, instance, version), reader, version)

    return decode(data, resolve, footers=stream.profile.footers)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_decoded(stream: Stream) -> None:
    found = decoded(stream, stream.data)
    (begun,) = [element for element in found if element["type"] == "start"]
    for block in begun["blocks"]:
        assert block["size"] == stream.blocks[block["name"]]
        assert block["sha256"] in (None, sha256(stream.memory[block["name"]]))
    assert [element["offset"] for element in found if element["type"] == "full"] == [
        offset for offset, element in zip(stream.offsets, stream.elements, strict=True) if element[0] == 4
    ]
    for device in stream.devices:
        assert repr(device.blank) == repr(device.values)


def check_analyzed(stream: Stream) -> None:
    made = analyze(stream.data)
    if not stream.profile.footers and not stream.profile.description and stream.devices:
        assert not made.complete, "nothing says where a device ends"
        return
    assert made.complete, made.error
    record = made.record()
    assert [device["name"] for device in record["devices"]][2:] == [d.description.name for d in stream.devices]
    assert {block["name"] for block in record["ram"]["blocks"]} == set(stream.blocks)
    for block in record["ram"]["blocks"]:
        assert block["sha256"] in (None, sha256(stream.memory[block["name"]]))


def check_damaged(stream: Stream, data: bytes) -> None:
    made = analyze(data, hashes=False)
    assert made.complete is (made.error is None)
    refusal = None
    try:
        decoded(stream, data)
    except StreamError as error:
        refusal = error
    if refusal is not None:
        assert refusal.kind
        assert refusal.message
        assert refusal.offset is None or 0 <= refusal.offset <= len(data)


def arrive(vm: Vm, data: bytes) -> MigrationError | None:
    """Let `data` arrive at a machine; what it was refused with."""
    file = os.memfd_create("stream")
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    arrival = vm.incoming("fd:stream", fd=file)
    assert arrival is not None
    try:
        arrival.wait(20)
    except MigrationError as error:
        return error
    return None


def machine_of(stream: Stream) -> Vm:
    """A machine that is like the stream's, and empty."""
    vm = Vm(stream.machine, format=stream.profile.format)
    vm.set_capabilities(compress=True)
    vm.add_ram("ram", stream.blocks["ram"])
    for device in stream.devices:
        vm.register(device.description, device.blank)
    return vm


def check_arrives(stream: Stream) -> None:
    with machine_of(stream) as vm:
        assert arrive(vm, stream.data) is None
        (ram,) = vm.machine.blocks
        assert ram.read(0, ram.size) == stream.memory["ram"]
        for device in stream.devices:
            assert repr(device.blank) == repr(device.values)


def check_refused(stream: Stream, data: bytes) -> None:
    """The damaged stream arrives, or is refused with its place; after that the whole one arrives."""
    with machine_of(stream) as vm:
        error = arrive(vm, data)
        if error is None:
            vm.stop()
            vm.reset()
        else:
            assert vm.run_state == "inmigrate"
            assert isinstance(error, StreamError) or "ends" in str(error)
            assert error.offset is None or 0 <= error.offset <= len(data)
        (ram,) = vm.machine.blocks
        ram.write(0, bytes(ram.size))
        assert arrive(vm, stream.data) is None
        assert ram.read(0, ram.size) == stream.memory["ram"]


def saved(machine: Machine) -> Registry:
    registry = Registry()
    machine.register(registry, VirtualClock(), GlobalState(Profile()))
    return registry


def check_machine(made: tuple[Machine, Machine]) -> None:
    """Every section of it loads, and what was loaded is saved alike."""
    machine, again = made
    for entry, other in zip(saved(machine), saved(again), strict=True):
        if not entry.handler.live:
            payload = payload_of(entry)
            load_section(other, Reader(payload), other.handler.version_id)
            assert payload_of(other) == payload


def payload_of(entry: Entry) -> bytes:
    alone = Registry(Profile(footers=False))
    alone.register(entry.idstr, entry.handler, instance_id=entry.instance_id)
    return save_full(alone).data[14 + len(entry.idstr) :]


@FEW
@given(PLAIN)
def test_a_stream_is_decoded(stream: Stream) -> None:
    check_decoded(stream)


@FEW
@given(strategies.streams())
def test_a_stream_is_analyzed(stream: Stream) -> None:
    check_analyzed(stream)


@FEW
@given(ARRIVING)
def test_a_stream_arrives(stream: Stream) -> None:
    check_arrives(stream)


@FEW
@given(strategies.damaged_streams())
def test_a_damaged_stream_is_refused_with_its_place(made: Damaged) -> None:
    check_damaged(made.stream, made.data)


@FEW
@given(strategies.damaged_streams(ARRIVING))
def test_after_a_damaged_stream_another_arrives(made: Damaged) -> None:
    check_refused(made.stream, made.data)


@pytest.mark.parametrize("kind", ["e2k", "e2k-qemu"])
@settings(FEW, max_examples=10)
@given(data=st.data())
def test_a_machine_loads_what_another_saved(kind: str, data: st.DataObject) -> None:
    check_machine(data.draw(strategies.machines(kind, max_cpus=2)))


@pytest.mark.long
def test_many_streams() -> None:
    for strategy, check in (
        (PLAIN, check_decoded),
        (strategies.streams(), check_analyzed),
        (ARRIVING, check_arrives),
    ):
        MANY(given(strategy)(check))()


@pytest.mark.long
def test_many_damaged_streams() -> None:
    for strategy, check in (
        (strategies.damaged_streams(), lambda made: check_damaged(made.stream, made.data)),
        (strategies.damaged_streams(ARRIVING), lambda made: check_refused(made.stream, made.data)),
    ):
        MANY(given(strategy)(check))()


@pytest.mark.long
def test_many_machines() -> None:
    for kind in ("e2k", "e2k-qemu"):
        settings(MANY, max_examples=300)(given(strategies.machines(kind))(check_machine))()


def test_what_is_missing_without_hypothesis() -> None:
    """One line that says what to install; the rest of the package needs none of it."""
    lines = "import sys; sys.modules['hypothesis'] = None; import qmig_e2k.testing; import qmig_e2k.testing.strategies"
    ended = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: qmig_e2k.testing.strategies needs hypothesis: pip install 'qmig_e2k[testing]'"
    )
