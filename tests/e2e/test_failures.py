"""What goes wrong: before the commit the source runs on as if nothing had been tried, after it nothing runs twice.

Addresses, files and commands that fail, and streams that are refused, are in tests/faults.
"""

import pytest

from qmig_e2k import MigrationError, StreamError
from qmig_e2k.testing import Proxy, pair
from qmig_e2k.vmstate import VMStateDescription, uint32
from support import wait_until

SIZE = 8 << 20
PONG = 8
"""Bytes of a PONG on the return path; the second one answers the fence."""


def port_of(arrival):
    return arrival.addresses[0]["port"]


def runs(side):
    before = side.emulator.value
    wait_until(lambda: side.emulator.value > before + 1000, what="the guest counting")


def check_runs_on(source, *, stopped):
    """The source has its machine and everything that belongs to it."""
    assert source.vm.run_state == "running"
    runs(source)
    calls = [call for call in source.emulator.log if call != "reset"]
    expected = ["start"]
    if stopped:
        expected += ["stop", "inactivate_storage", "activate_storage", "start"]
    assert calls == expected
    source.vm.stop()
    source.emulator.check()
    source.vm.start()


def check_moves(source, destination):
    """A further attempt succeeds."""
    source.vm.set_parameters(max_bandwidth=0)  # the guest writes faster than the default limit sends
    target, arrival = destination.listen()
    source.vm.migrate(target).wait(20)
    arrival.wait(20)
    runs(destination)
    destination.vm.stop()
    destination.emulator.check()


def failed(migration):
    with pytest.raises(MigrationError) as caught:
        migration.wait(40)
    info = migration.info()
    assert info["status"] == "failed"
    assert info["error-desc"]
    return caught.value


@pytest.mark.parametrize("cut", [0, 5, 60, 100_000, SIZE])
def test_cut_while_memory_is_sent(cut):
    with pair(size=SIZE) as (source, destination):
        source.ram.numpy()[8::4096] = 1  # no page is zero, so all of them are sent, however slow the guest is
        source.vm.start()
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_forward=cut) as proxy:
            failed(source.vm.migrate(proxy.uri))
        with pytest.raises(MigrationError):
            arrival.wait(20)
        assert destination.vm.run_state == "inmigrate"
        check_runs_on(source, stopped="stop" in source.emulator.log)
        check_moves(source, destination)


def test_cut_before_the_fence_is_answered():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_back=PONG) as proxy:
            error = failed(source.vm.migrate(proxy.uri))
            assert error.kind != "ownership-unknown"
        with pytest.raises(MigrationError):
            arrival.wait(20)
        check_runs_on(source, stopped=True)
        check_moves(source, destination)


def test_cut_after_the_commit_leaves_it_stopped_here():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_back=2 * PONG) as proxy:
            migration = source.vm.migrate(proxy.uri)
            error = failed(migration)
        assert error.kind == "ownership-unknown"
        assert "ownership is unknown" in str(error)
        assert source.vm.run_state == "postmigrate"
        assert source.emulator.log[-1] == "inactivate_storage", "never started again, storage not taken back"
        assert not migration.cancel()
        arrival.wait(20)
        runs(destination)
        destination.vm.stop()
        destination.emulator.check()


def test_a_paused_source_is_paused_again():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        source.vm.stop()
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_back=PONG) as proxy:
            failed(source.vm.migrate(proxy.uri))
        assert source.vm.run_state == "paused"
        assert source.emulator.log == ["start", "stop", "inactivate_storage", "activate_storage"]
        arrival.ended(20)


def cancelled(migration):
    assert migration.cancel()
    with pytest.raises(MigrationError) as caught:
        migration.wait(20)
    assert caught.value.kind == "cancelled"
    assert migration.status == "cancelled"


def test_cancel_while_connecting():
    # a listener whose backlog is full lets connect hang
    import socket

    with pair(size=SIZE) as (source, _), socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            source.vm.start()
            migration = source.vm.migrate(f"tcp:127.0.0.1:{full.getsockname()[1]}")
            assert migration.status == "setup"
            cancelled(migration)
        check_runs_on(source, stopped=False)


@pytest.mark.parametrize("after", [0, 1 << 20])
def test_cancel_while_memory_is_sent(after):
    with pair(size=8 * SIZE) as (source, destination):
        source.vm.start()
        source.ram.numpy()[8::4096] = 1
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_forward=after, stall=True) as proxy:
            migration = source.vm.migrate(proxy.uri)
            assert proxy.reached.wait(20)
            cancelled(migration)
        arrival.ended(20)
        check_runs_on(source, stopped=False)
        check_moves(source, destination)


def pause_before_switchover(source, destination):
    """The migration of a machine that runs, in `pre-switchover`, and its arrival."""
    source.vm.set_capabilities(pause_before_switchover=True)
    source.vm.start()
    target, arrival = destination.listen()
    migration = source.vm.migrate(target)
    wait_until(lambda: migration.status == "pre-switchover", what="pre-switchover")
    return migration, arrival


def test_cancel_during_the_pause_before_switchover():
    with pair(size=SIZE) as (source, destination):
        migration, arrival = pause_before_switchover(source, destination)
        cancelled(migration)
        arrival.ended(20)
        assert source.vm.run_state == "running"
        runs(source)
        source.vm.set_capabilities(pause_before_switchover=False)
        check_moves(source, destination)


def test_a_stop_in_the_pause_before_switchover_outlives_a_cancel():
    with pair(size=SIZE) as (source, destination):
        migration, arrival = pause_before_switchover(source, destination)
        source.vm.stop()
        cancelled(migration)
        arrival.ended(20)
        assert source.vm.run_state == "paused"


def test_cancel_while_the_destination_is_asked():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_back=PONG, stall=True) as proxy:
            migration = source.vm.migrate(proxy.uri)
            assert proxy.reached.wait(20)
            cancelled(migration)
            with pytest.raises(MigrationError):
                arrival.wait(20)
        check_runs_on(source, stopped=True)
        check_moves(source, destination)


def test_cancel_after_the_commit_comes_too_late():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        _, arrival = destination.listen()
        with Proxy(port_of(arrival), cut_back=2 * PONG, stall=True) as proxy:
            migration = source.vm.migrate(proxy.uri)
            assert proxy.reached.wait(20)
            arrival.wait(20)
            assert not migration.cancel()
            proxy.release()
            migration.wait(20)
        assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")


@pytest.mark.parametrize("call", ["stop", "inactivate_storage"])
def test_an_emulator_that_refuses_at_the_source(call):
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        source.emulator.failures.add(call)
        target, arrival = destination.listen()
        error = failed(source.vm.migrate(target))
        assert f"{call} fails, as asked" in str(error)
        arrival.ended(20)
        source.emulator.failures.clear()
        assert source.vm.run_state == "running"
        runs(source)
        check_moves(source, destination)


def test_an_emulator_that_does_not_start_at_the_destination():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        destination.emulator.failures.add("start")
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        with pytest.raises(MigrationError, match="start fails, as asked"):
            arrival.wait(20)
        assert destination.vm.run_state == "internal-error"
        assert failed(migration).kind == "ownership-unknown"
        assert source.vm.run_state == "postmigrate"


def test_a_device_that_cannot_be_saved():
    class Broken:
        pass

    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.register(VMStateDescription("broken", fields=[uint32("absent")]), Broken())
        source.vm.start()
        target, arrival = destination.listen()
        error = failed(source.vm.migrate(target))
        assert "broken" in str(error)
        assert "absent" in str(error)
        arrival.ended(20)
        check_runs_on(source, stopped=True)


EXTRA = VMStateDescription("extra", fields=[uint32("level")])


class Extra:
    level = 5


def test_a_device_that_only_the_source_has():
    with pair(size=SIZE) as (source, destination):
        source.vm.register(EXTRA, Extra())
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        with pytest.raises(StreamError, match="extra") as caught:
            arrival.wait(20)
        assert caught.value.kind == "unknown-section"
        assert caught.value.offset > 0
        failed(migration)
        check_runs_on(source, stopped=True)


def test_a_device_that_only_the_destination_has():
    with pair(size=SIZE) as (source, destination):
        entry = destination.vm.register(EXTRA, Extra())
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        with pytest.raises(StreamError, match="extra/0") as caught:
            arrival.wait(20)
        assert caught.value.kind == "missing-section"
        assert failed(migration).kind != "ownership-unknown", "found at the fence, when the source still had it"
        check_runs_on(source, stopped=True)
        destination.vm.machine.registry.unregister(entry)
        check_moves(source, destination)


@pytest.mark.parametrize("ram", ["e2k.ram", "other"])
def test_other_memory(ram):
    from qmig_e2k import Vm

    with pair(size=SIZE) as (source, _), Vm("e2k") as destination:
        destination.add_ram(ram, SIZE if ram == "other" else 2 * SIZE)
        source.vm.start()
        arrival = destination.incoming("tcp:127.0.0.1:0")
        migration = source.vm.migrate(f"tcp:127.0.0.1:{port_of(arrival)}")
        with pytest.raises(StreamError) as caught:
            arrival.wait(20)
        assert caught.value.kind == {"e2k.ram": "block-mismatch", "other": "unknown-block"}[ram]
        failed(migration)
        check_runs_on(source, stopped="stop" in source.emulator.log)


def test_another_machine_type():
    from qmig_e2k import Vm

    with pair(size=SIZE) as (source, _), Vm("none") as destination:
        destination.add_ram("ram", SIZE)
        source.vm.start()
        arrival = destination.incoming("tcp:127.0.0.1:0")
        migration = source.vm.migrate(f"tcp:127.0.0.1:{port_of(arrival)}")
        with pytest.raises(StreamError, match="none") as caught:
            arrival.wait(20)
        assert caught.value.kind == "bad-configuration"
        failed(migration)


def test_garbage_and_then_a_machine():
    import socket

    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        destination.vm.incoming("defer")
        assert destination.vm.run_state == "inmigrate"
        for garbage in (b"", b"GET / HTTP/1.0\r\n\r\n", b"QEVM\0\0\0\2", b"QEVM\0\0\0\3\xff"):
            _, arrival = destination.listen()
            with socket.create_connection(("127.0.0.1", port_of(arrival))) as peer:
                peer.sendall(garbage)
            with pytest.raises(StreamError):
                arrival.wait(20)
            assert destination.vm.run_state == "inmigrate"
            assert destination.vm.machine.control.incoming_status == "failed"
        check_moves(source, destination)


def test_one_at_a_time_and_not_by_machines_that_cannot():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        source.vm.set_parameters(max_bandwidth=1 << 20)
        source.ram.numpy()[8::4096] = 1
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        for refused, words in [
            (lambda: source.vm.migrate(target), "in progress"),
            (lambda: source.vm.set_capabilities(events=True), "while a migration runs"),
            (lambda: source.vm.add_blocker("no"), "in progress"),
            (lambda: source.vm.incoming("tcp:127.0.0.1:0"), "has run"),
            (lambda: destination.vm.migrate(target), "incoming"),
            (lambda: destination.vm.incoming("tcp:127.0.0.1:0"), "under way"),
        ]:
            with pytest.raises(MigrationError, match=words) as caught:
                refused()
            assert caught.value.kind == "invalid-state"
        source.vm.set_parameters(max_bandwidth=0)
        migration.wait(20)
        arrival.wait(20)
        with pytest.raises(MigrationError, match="handed over"):
            source.vm.migrate(target)


def test_blockers():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        first = source.vm.add_blocker("the first reason")
        second = source.vm.add_blocker("the second reason")
        assert [line for line in source.vm.check() if "blocked" in line] == [
            "migration is blocked: the second reason",
            "migration is blocked: the first reason",
        ]
        with pytest.raises(MigrationError, match="the second reason") as caught:
            source.vm.migrate("tcp:127.0.0.1:1")
        assert caught.value.kind == "blocked"
        source.vm.del_blocker(second)
        source.vm.del_blocker(first)
        with pytest.raises(MigrationError, match=str(first)):
            source.vm.del_blocker(first)
        entry = source.vm.register(VMStateDescription("stone", unmigratable=True), object())
        with pytest.raises(MigrationError, match="stone"):
            source.vm.migrate("tcp:127.0.0.1:1")
        source.vm.machine.registry.unregister(entry)
        assert source.vm.check() == []
        check_moves(source, destination)


def test_closing_ends_everything():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        source.vm.set_parameters(max_bandwidth=1 << 20)
        source.ram.numpy()[8::4096] = 1
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: migration.status == "active", what="active")
        source.vm.close()
        assert migration.status == "cancelled"
        assert source.vm.run_state == "running"
        destination.vm.close()
        assert arrival.done()


def test_the_same_address_can_be_taken_again_at_once(tmp_path):
    import socket

    with pair(size=SIZE) as (_, destination):
        uri = f"unix:{tmp_path}/socket"
        for _ in range(20):
            arrival = destination.vm.incoming(uri)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(uri.removeprefix("unix:"))
            wait_until(lambda: destination.vm.machine.control.incoming_status == "failed", what="the failure")
        with pytest.raises(StreamError):
            arrival.wait(20)


def test_a_descriptor_that_was_handed_over_is_closed_when_refused():
    import os

    def blocked(vm, fd):
        number = vm.add_blocker("no")
        try:
            vm.migrate("fd:x", fd=fd)
        finally:
            vm.del_blocker(number)

    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        for refused, kind in (
            (lambda fd: source.vm.migrate("tcp:127.0.0.1:1", fd=fd), "invalid-argument"),
            (lambda fd: source.vm.migrate("file:/dev/null", fd=fd), "invalid-argument"),
            (lambda fd: destination.vm.incoming("defer", fd=fd), "invalid-argument"),
            (lambda fd: destination.vm.incoming("tcp:127.0.0.1:0", fd=fd), "invalid-argument"),
            (lambda fd: blocked(source.vm, fd), "blocked"),
            (lambda fd: source.vm.incoming("fd:x", fd=fd), "invalid-state"),
            (lambda fd: destination.vm.incoming("teleport:x", fd=fd), "bad-uri"),
        ):
            here, there = os.pipe()
            with pytest.raises(MigrationError) as caught:
                refused(here)
            assert caught.value.kind == kind
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(here)
            os.close(there)


def test_mistakes_in_handlers_end_the_migration_and_nothing_else():
    from qmig_e2k.savevm import SaveVmHandler

    class Mistaken(SaveVmHandler):
        broken = "load"

        def setup(self, writer):
            self.check("setup")

        def complete(self, writer):
            self.check("complete")

        def cleanup(self):
            self.check("cleanup")

        def load(self, reader, version):
            self.check("load")

        def check(self, name):
            if self.broken == name:
                raise ZeroDivisionError(f"in {name}")

    with pair(size=SIZE) as (source, destination):
        handlers = Mistaken(), Mistaken()
        for side, handler in zip((source, destination), handlers, strict=True):
            side.vm.register(handler, name="mistaken")
        source.vm.start()
        handlers[1].broken = ""
        for broken in ("setup", "complete"):
            handlers[0].broken = broken
            target, arrival = destination.listen()
            assert f"ZeroDivisionError: in {broken}" in str(failed(source.vm.migrate(target)))
            arrival.ended(20)
        handlers[0].broken, handlers[1].broken = "cleanup", "load"
        target, arrival = destination.listen()
        failed(source.vm.migrate(target))
        with pytest.raises(StreamError, match="ZeroDivisionError: in load"):
            arrival.wait(20)
        assert source.vm.run_state == "running"
        handlers[1].broken = ""
        check_moves(source, destination)
