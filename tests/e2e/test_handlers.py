"""Handlers written in Python travel with a machine: live, old-style and described; what they refuse is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.savevm import SaveVmHandler
from qmig_e2k.testing import pair
from qmig_e2k.vmstate import VMStateDescription, uint8

if TYPE_CHECKING:
    from qmig_e2k._core import Reader, Writer
    from qmig_e2k.testing import Side


class Log(SaveVmHandler):
    """A live handler: a growing log, sent in counted pieces; an empty piece ends a section."""

    version_id = 2

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.sent = 0
        self.sections: list[str] = []

    def _write(self, writer: Writer, until: int) -> None:
        for line in self.lines[self.sent : until]:
            writer.cstr8(line)
        self.sent = until
        writer.cstr8(b"")

    def setup(self, writer: Writer) -> None:
        self.sections.append("setup")
        self.sent = 0
        self._write(writer, 0)

    def iterate(self, writer: Writer, budget: int) -> bool:
        self.sections.append("iterate")
        self._write(writer, min(self.sent + 2, len(self.lines)))
        return self.sent == len(self.lines)

    def pending(self) -> int:
        # so much that it cannot wait for the switchover
        return (len(self.lines) - self.sent) << 40

    def complete(self, writer: Writer) -> None:
        self.sections.append("complete")
        self.lines.append(b"last words")
        self._write(writer, len(self.lines))

    def cleanup(self) -> None:
        self.sections.append("cleanup")

    def load(self, reader: Reader, version: int) -> None:
        assert version == 2
        while line := reader.cstr8():
            self.lines.append(line)


class Blob(SaveVmHandler):
    """An old-style handler."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def save(self, writer: Writer) -> None:
        writer.u32(len(self.data))
        writer.write(self.data)

    def load(self, reader: Reader, version: int) -> None:
        self.data = reader.read(reader.u32())


def move(source: Side, target: Side) -> None:
    uri, arrival = target.listen()
    source.vm.start()
    source.vm.migrate(uri).wait(30)
    arrival.wait(30)


def test_live_and_old_style_handlers_travel() -> None:
    with pair() as (source, target):
        lines = [f"line {i}".encode() for i in range(5)]
        there, log = Log([]), Log(list(lines))
        blob = Blob(b"")
        source.vm.register(log, name="log")
        source.vm.register(Blob(b"old state"), name="blob")
        target.vm.register(there, name="log")
        target.vm.register(blob, name="blob")
        move(source, target)
        assert there.lines == [*lines, b"last words"]
        assert blob.data == b"old state"
        assert log.sections == ["setup", "iterate", "iterate", "iterate", "complete", "cleanup"]


def test_inactive_handler_stays_out() -> None:
    with pair() as (source, target):
        for side in (source, target):
            handler = Log([b"line"])
            handler.is_active = lambda: False  # type: ignore[method-assign]
            side.vm.register(handler, name="log")
        move(source, target)
        assert handler.lines == [b"line"]


def refuse(*_: Any) -> None:
    raise ValueError("register out of range")


def test_refusal_at_the_destination_names_device_and_the_source_runs_on() -> None:
    with pair() as (source, target):
        device = VMStateDescription("chip", fields=[uint8("mode")])
        strict = VMStateDescription("chip", fields=[uint8("mode")], post_load=refuse)
        source.vm.register(device, {"mode": 7})
        here = {"mode": 0}
        target.vm.register(strict, here)
        uri, arrival = target.listen()
        source.vm.start()
        migration = source.vm.migrate(uri)
        with pytest.raises(MigrationError, match="register out of range") as caught:
            arrival.wait(30)
        assert (caught.value.kind, caught.value.path) == ("device-state", "chip/0")
        assert caught.value.offset is not None
        with pytest.raises(MigrationError):
            migration.wait(30)
        assert here == {"mode": 0}
        assert source.vm.run_state == "running"
        assert target.vm.run_state == "inmigrate"


def test_refusal_at_the_source_names_the_field_and_it_runs_on() -> None:
    with pair() as (source, target):
        device = VMStateDescription("chip", fields=[uint8("mode")])
        source.vm.register(device, {"mode": 256})
        target.vm.register(device, {"mode": 0})
        uri, _ = target.listen()
        source.vm.start()
        with pytest.raises(MigrationError, match="chip/0/mode"):
            source.vm.migrate(uri).wait(30)
        assert source.vm.run_state == "running"


@pytest.mark.parametrize("method", ["is_active", "setup", "pending", "iterate", "complete"])
def test_a_live_handler_that_fails_is_named_and_the_source_runs_on(method: str) -> None:
    with pair() as (source, target):
        log = Log([b"line"])
        setattr(log, method, refuse)
        source.vm.register(log, name="log")
        target.vm.register(Log([]), name="log")
        uri, _ = target.listen()
        source.vm.start()
        with pytest.raises(MigrationError, match="log/0: register out of range"):
            source.vm.migrate(uri).wait(30)
        assert source.vm.run_state == "running"
