"""Two machines in one process: every way there is to move one to the other, and what both say of it."""

import asyncio
import mmap
import os
import socket
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

from qmig_e2k import MigrationError, StreamError, Vm
from qmig_e2k.savevm import SaveVmHandler
from qmig_e2k.testing import pair
from qmig_e2k.vmstate import VMStateDescription, uint32
from support import wait_until

SIZE = 4 << 20


def move(source, destination, uri="tcp:127.0.0.1:0"):
    target, arrival = destination.listen(uri)
    migration = source.vm.migrate(target)
    migration.wait(20)
    arrival.wait(20)
    return migration


def some_steps(side):
    before = side.emulator.value
    wait_until(lambda: side.emulator.value > before + 1000, what="the guest counting")


def check_moved(source, destination):
    """The guest ran through the move: nothing lost, and it runs there and not here."""
    assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")
    here = source.emulator.value
    some_steps(destination)
    assert source.emulator.value == here
    assert destination.emulator.value > here
    destination.vm.stop()
    destination.emulator.check()


@pytest.mark.parametrize("format_", ["2.9", "7.2", "10.0"])
def test_tcp_in_every_format(format_):
    with pair(size=SIZE, format=format_) as (source, destination):
        source.vm.start()
        some_steps(source)
        migration = move(source, destination)
        info = migration.info()
        check_moved(source, destination)
    assert info["status"] == migration.status == "completed"
    assert info["ram"]["total"] == SIZE
    assert info["ram"]["dirty-sync-count"] >= 2
    assert info["x-downtime"]["devices"].keys() == {"timer/0", "globalstate/0", "tiny-counter/0"}
    assert {"stop", "sync", "pages", "switchover"} <= info["x-downtime"].keys()


def test_unix(tmp_path):
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        move(source, destination, f"unix:{tmp_path}/socket")
        check_moved(source, destination)


def test_fd():
    here, there = socket.socketpair()
    with pair(size=SIZE) as (source, destination):
        arrival = destination.vm.incoming("fd:there", fd=there.detach())
        source.vm.start()
        source.vm.migrate("fd:here", fd=here.detach()).wait(20)
        arrival.wait(20)
        check_moved(source, destination)


@pytest.mark.parametrize(
    ("out", "back"),
    [("file:{0}/x", "file:{0}/x"), ("exec:cat > {0}/x", "exec:cat {0}/x"), ("file:{0}/x,offset=4096",) * 2],
)
def test_by_way_of_a_file(tmp_path, out, back):
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        some_steps(source)
        source.vm.migrate(out.format(tmp_path)).wait(20)
        destination.vm.incoming(back.format(tmp_path)).wait(20)
        check_moved(source, destination)


def test_none_has_only_ram():
    with pair("none", SIZE) as (source, destination):
        pattern = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)
        source.ram.numpy()[:] = pattern
        move(source, destination)
        assert np.array_equal(destination.ram.numpy(), pattern)
        assert destination.vm.run_state == "prelaunch", "a machine that never ran arrives as it was"


def test_there_and_back_again():
    with pair(size=SIZE) as (first, second):
        first.vm.start()
        for source, destination in [(first, second), (second, first), (first, second)]:
            if destination.vm.run_state != "prelaunch":
                destination.vm.reset()
            move(source, destination)
            some_steps(destination)
        second.vm.stop()
        second.emulator.check()


@pytest.mark.parametrize(("autostart", "expected"), [(True, "running"), (False, "paused")])
def test_whether_it_runs_is_the_destinations_word(autostart, expected):
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        target, arrival = destination.listen()
        destination.vm.stop()
        if autostart:
            destination.vm.start()
        assert destination.vm.run_state == "inmigrate"
        source.vm.migrate(target).wait(20)
        arrival.wait(20)
        assert destination.vm.run_state == expected
        assert ("start" in destination.emulator.log) == autostart
        assert ("activate_storage" in destination.emulator.log) == autostart, "storage is taken when the machine runs"


def test_a_paused_machine_arrives_paused():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        source.vm.stop()
        move(source, destination)
        assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "paused")
        assert "start" not in destination.emulator.log


def test_events_of_both_sides():
    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.set_capabilities(events=True)
        source.vm.start()
        seen = [side.vm.machine.control.subscribe() for side in (source, destination)]
        move(source, destination)
        names = [[], []]
        for names_of, events in zip(names, seen, strict=True):
            while (event := events.next(0)) is not None:
                names_of.append(event[0] if event[0] != "MIGRATION" else event[1])
    passes = names[0].count("MIGRATION_PASS")
    assert passes >= 2
    assert [name for name in names[0] if name != "MIGRATION_PASS"] == [
        '{"status":"setup"}',
        '{"status":"active"}',
        "STOP",
        '{"status":"completed"}',
    ]
    assert names[0].index("MIGRATION_PASS") < names[0].index('{"status":"active"}'), "the first sync belongs to setup"
    assert names[1] == ['{"status":"setup"}', '{"status":"active"}', "RESUME", '{"status":"completed"}']


def test_pause_before_switchover():
    with pair(size=SIZE) as (source, destination):
        source.vm.set_capabilities(pause_before_switchover=True)
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: migration.status == "pre-switchover", what="pre-switchover")
        assert source.vm.run_state == "finish-migrate"
        assert "inactivate_storage" not in source.emulator.log, "the pause is there to quiesce storage first"
        source.vm.stop()
        with pytest.raises(MigrationError, match="switches over"):
            source.vm.start()
        with pytest.raises(MigrationError, match="switches over"):
            source.vm.reset()
        with pytest.raises(MigrationError, match="device"):
            source.vm.resume_switchover("device")
        source.vm.resume_switchover()
        migration.wait(20)
        arrival.wait(20)
        check_moved(source, destination)
        with pytest.raises(MigrationError, match="completed"):
            source.vm.resume_switchover()


class Log(SaveVmHandler):
    """A live handler: a growing list of numbers, sent as it grows."""

    version_id = 3

    def __init__(self, values=()):
        self.values = list(values)
        self.sent = 0
        self.calls = []

    def setup(self, writer):
        self.calls.append("setup")
        writer.u32(0)

    def pending(self):
        return (len(self.values) - self.sent) * 4

    def iterate(self, writer, budget):
        self.calls.append("iterate")
        count = min(len(self.values) - self.sent, max(budget // 4, 1))
        self._put(writer, count)
        return self.sent == len(self.values)

    def complete(self, writer):
        self.calls.append("complete")
        self._put(writer, len(self.values) - self.sent)

    def cleanup(self):
        self.calls.append("cleanup")

    def load(self, reader, version):
        assert version == self.version_id
        self.calls.append("load")
        self.values += [reader.u32() for _ in range(reader.u32())]

    def _put(self, writer, count):
        writer.u32(count)
        for value in self.values[self.sent : self.sent + count]:
            writer.u32(value)
        self.sent += count


class Old(SaveVmHandler):
    """An old-style handler: one FULL section."""

    text = b""

    def save(self, writer):
        writer.cstr8(self.text)

    def load(self, reader, version):
        self.text = reader.cstr8()


def test_handlers_written_in_python():
    with pair(size=SIZE) as (source, destination):
        logs = Log(range(500_000)), Log()
        olds = Old(), Old()
        olds[0].text = b"hello"
        for side, log, old in zip((source, destination), logs, olds, strict=True):
            side.vm.register(log, name="log")
            side.vm.register(old, name="old", instance_id=7)
        source.vm.set_parameters(downtime_limit=0)  # nothing is left for the switchover that can go before
        move(source, destination)
        assert logs[1].values == logs[0].values
        assert olds[1].text == b"hello"
        assert logs[0].calls[0] == "setup"
        assert logs[0].calls[-2:] == ["complete", "cleanup"]
        assert "iterate" in logs[0].calls


def test_memory_of_the_callers_own():
    with Vm("e2k") as source, Vm("e2k") as destination:
        maps = [mmap.mmap(-1, SIZE) for _ in range(2)]
        for vm, memory in zip((source, destination), maps, strict=True):
            vm.add_ram("e2k.ram", buffer=memory)
        maps[0][4096:4101] = b"hello"
        arrival = destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{arrival.addresses[0]['port']}").wait(20)
        arrival.wait(20)
        assert maps[1][4096:4101] == b"hello"


def test_the_handle_can_be_awaited_and_watched():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()

        async def run():
            target, arrival = destination.listen()
            await source.vm.migrate(target)
            await arrival

        asyncio.run(run())
        destination.vm.stop()
        source.vm.reset()
        source.vm.set_parameters(max_bandwidth=10 << 20)
        target, _ = source.listen()
        with destination.vm.migrate(target) as migration:
            with pytest.raises(MigrationError, match="within 0 seconds") as caught:
                migration.wait(0)
            assert caught.value.kind == "timeout"
            seen = [info["status"] for info in migration.progress(0.01)]
            assert seen[-1] == "completed"
        assert migration.done()
        assert not migration.cancel()
        with pytest.raises(MigrationError, match="switch the capability `postcopy-ram` on"):
            migration.start_postcopy()
        for refused in (migration.pause, lambda: migration.recover("tcp:x:1")):
            with pytest.raises(MigrationError, match="postcopy-") as caught:
                refused()
            assert caught.value.kind == "invalid-state"


def test_uuid_is_compared_if_asked_for():
    names = [uuid.UUID(int=1), uuid.UUID(int=2)]
    with pair(size=SIZE) as (source, destination):
        for side, name in zip((source, destination), names, strict=True):
            side.vm.machine.uuid = name
        source.vm.set_capabilities(validate_uuid=True)
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        with pytest.raises(StreamError, match="UUID") as caught:
            arrival.wait(20)
        assert caught.value.kind == "bad-configuration"
        with pytest.raises(MigrationError):
            migration.wait(20)
        destination.vm.machine.uuid = names[0]
        move(source, destination)
        check_moved(source, destination)


def test_bandwidth_limit_holds_and_can_be_changed_on_the_fly():
    with pair("none", 16 << 20) as (source, destination):
        source.ram.numpy()[:] = 1
        source.vm.set_parameters(max_bandwidth=20 << 20, downtime_limit=1)
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: migration.info().get("ram", {}).get("mbps", 0) > 0, what="a measured window")
        assert migration.info()["ram"]["mbps"] < 20 * 8.388608 * 1.3
        source.vm.set_parameters(max_bandwidth=0)
        migration.wait(20)
        arrival.wait(20)
        assert migration.info()["total-time"] < 700


def test_two_devices_of_one_kind_keep_apart():
    state = VMStateDescription("uart", fields=[uint32("level")])
    with pair(size=SIZE) as (source, destination):
        devices = [[type("Uart", (), {"level": 0})() for _ in range(2)] for _ in range(2)]
        for side, pair_ in zip((source, destination), devices, strict=True):
            for k, device in enumerate(pair_):
                side.vm.register(state, device, instance_id=k)
        devices[0][0].level, devices[0][1].level = 11, 22
        move(source, destination)
        assert [device.level for device in devices[1]] == [11, 22]


def test_nothing_is_left_over():
    """Descriptors and threads after many migrations are those from before."""

    def count():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    others = threading.active_count()  # a test before may have left one that ends with the process
    with pair(size=1 << 20) as (first, second):
        first.vm.start()
        sides = [first, second]
        before = None
        for number in range(12):
            source, destination = sides
            if destination.vm.run_state != "prelaunch":
                destination.vm.reset()
            move(source, destination)
            sides.reverse()
            if number == 1:
                wait_until(lambda: threading.active_count() <= others + 3, what="threads ending")
                before = count()
        wait_until(lambda: count() <= before, what=f"descriptors and threads going back to {before}")


def test_the_command_that_brought_a_machine_may_end(tmp_path):
    stream, go_on, done = (tmp_path / name for name in ("stream", "go-on", "done"))
    os.mkfifo(go_on)
    fifo = os.open(go_on, os.O_RDWR)
    try:
        with pair(size=1 << 20) as (source, destination):
            source.vm.start()
            source.vm.migrate(f"file:{stream}").wait(20)
            arrival = destination.vm.incoming(f"exec:cat {stream}; read x < {go_on}; echo whole > {done}")
            wait_until(lambda: arrival.status == "completed", what="the machine")
            os.write(fifo, b"on\n")
            arrival.wait(20)
            wait_until(lambda: done.exists() and done.read_text() == "whole\n", what="the end of the command")
    finally:
        os.close(fifo)
