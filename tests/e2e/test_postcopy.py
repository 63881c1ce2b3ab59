"""Postcopy between two machines of one process.

Its vCPUs are Python threads that touch missing pages with the interpreter's lock, so nothing that brings a page may
need that lock. Where the connection is lost for a while the machine arrives paused: nothing of Python would run here.
"""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Thread
from threading import enumerate as threads
from uuid import uuid4

import pytest

from qmig_e2k import MigrationError, RamBlock
from qmig_e2k.testing import Proxy, pair
from qmig_e2k.vmstate import VMStateDescription, uint64
from support import PAGE, wait_until

SIZE = 8 << 20
PAGES = SIZE // PAGE
WITHOUT_END = 1 << 20
"""Bytes per second at which nothing converges: what is moved is moved by postcopy."""
TRICKLE = 64 << 10
"""Bytes per second of a background that needs minutes: what comes was asked for, without a guest next to nothing."""


@contextmanager
def ready(size=SIZE, **capabilities):
    """Source and destination, both allowed to do postcopy; the source runs and has written every page."""
    with pair(size=size) as (source, destination):
        for side in (source, destination):
            side.vm.set_capabilities(postcopy_ram=True, **capabilities)
        source.vm.set_parameters(max_bandwidth=WITHOUT_END)
        source.vm.start()
        wait_until(lambda: source.emulator.value > size // PAGE, what="a first round of the guest")
        yield source, destination


def switch(source, target):
    migration = source.vm.migrate(target)
    migration.start_postcopy()
    return migration


def lose_connection(source, destination):
    """Switch to a destination that stays paused, and pause long before it has all memory."""
    target, arrival = destination.listen()
    source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)
    destination.vm.stop()
    migration = switch(source, target)
    wait_until(lambda: destination.vm.run_state == "paused", what="the machine at the destination")
    migration.pause()
    return target, migration, arrival


def recovery(folder):
    """An address that nobody has used before."""
    return f"unix:{folder}/{uuid4().hex[:8]}"


def requests(migration):
    return migration.info().get("ram", {}).get("postcopy-requests", 0)


def check(source, destination, moved_at):
    """The destination goes on from where the source stopped, and every write of both lives is there."""
    assert source.vm.run_state == "postmigrate"
    assert source.emulator.log[-1] == "inactivate_storage"
    assert destination.vm.run_state == "running"
    wait_until(lambda: destination.emulator.value > moved_at + PAGES, what="a round of the guest at the destination")
    destination.vm.stop()
    destination.emulator.check()


@pytest.mark.parametrize("preempt", [False, True])
def test_a_python_machine(preempt):
    """All of it in one process with one interpreter lock: what a fault waits for cannot need it."""
    with ready(postcopy_preempt=preempt, postcopy_blocktime=True) as (source, destination):
        target, arrival = destination.listen()
        source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)
        migration = switch(source, target)
        wait_until(lambda: requests(migration) > 0, what="a request")
        source.vm.set_parameters(max_postcopy_bandwidth=0)
        statuses = [info["status"] for info in migration.progress(0.01)]
        arrival.wait(20)
        moved_at = source.emulator.value
        check(source, destination, moved_at)
        assert statuses[-1] == "completed"
        assert set(statuses) <= {"postcopy-active", "completed"}
        info = migration.info()
        assert info["ram"]["postcopy-bytes"] > SIZE // 2
        assert info["x-downtime"]["devices"]
        assert migration.done()
        there = json.loads(destination.vm.machine.control.query_migrate())
        assert there["status"] == arrival.status == "completed"
        assert there["x-fault-latency"]["total"]["count"] > 0
        assert there["postcopy-blocktime"] >= 0
        assert len(there["postcopy-vcpu-blocktime"]) >= 1
        assert source.vm.machine.control.outgoing_status == "completed"


def test_what_a_stopped_machine_may_do():
    """While the destination fetches the memory nobody waits at the source, and nothing starts the machine."""
    with ready() as (source, destination):
        target, migration, arrival = lose_connection(source, destination)
        wait_until(lambda: migration.status == "postcopy-paused", what="the pause")
        begun = time.monotonic()
        calls = (
            source.vm.start,
            source.vm.reset,
            lambda: source.vm.migrate(target),
            lambda: source.vm.incoming(target),
        )
        for refused in calls:
            with pytest.raises(MigrationError) as caught:
                refused()
            assert caught.value.kind == "invalid-state"
        with pytest.raises(MigrationError, match="while a migration runs"):
            source.vm.set_capabilities(postcopy_ram=False)
        source.vm.stop()
        assert not migration.cancel()
        assert time.monotonic() - begun < 5
        assert (source.vm.run_state, migration.status) == ("finish-migrate", "postcopy-paused")
        wait_until(lambda: arrival.status == "postcopy-paused", what="the pause there")
        assert not arrival.cancel()
        assert arrival.status == "postcopy-paused"


def test_a_block_that_raises_in_the_pause_is_left():
    """Nobody could end it, and the only one who could recover it has just given up."""
    with ready() as (source, destination):
        _, migration, _ = lose_connection(source, destination)
        wait_until(lambda: migration.status == "postcopy-paused", what="the pause")
        with pytest.raises(ZeroDivisionError), migration:
            raise ZeroDivisionError
        assert migration.status == "postcopy-paused"


def test_a_destination_that_lacks_memory_does_not_move_on():
    with ready() as (source, destination), pair(size=SIZE) as (_, third):
        target, arrival = destination.listen()
        third.vm.set_capabilities(postcopy_ram=True)
        further, _ = third.listen()
        source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)
        destination.vm.stop()
        migration = switch(source, target)
        wait_until(lambda: destination.vm.run_state == "paused", what="the machine at the destination")
        with pytest.raises(MigrationError, match=r"at its source .*postcopy-active.*has arrived") as caught:
            destination.vm.migrate(further)
        assert caught.value.kind == "invalid-state"
        shown = json.loads(destination.vm.machine.control.query_migrate())
        assert shown["status"] == "postcopy-active"
        assert "error-desc" not in shown
        source.vm.set_parameters(max_postcopy_bandwidth=0)
        migration.wait(20)
        arrival.wait(20)
        destination.vm.migrate(further).wait(20)
        assert (destination.vm.run_state, third.vm.run_state) == ("postmigrate", "paused")


def test_pause_and_recover_by_the_handles(tmp_path):
    with ready() as (source, destination):
        target, arrival = destination.listen()
        source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)
        destination.vm.stop()
        with pytest.raises(MigrationError, match="postcopy-paused"):
            arrival.recover("tcp:127.0.0.1:0")
        migration = switch(source, target)
        with pytest.raises(MigrationError, match="postcopy-paused"):
            migration.recover(target)
        # a channel that is lost before is the end of it
        wait_until(lambda: destination.vm.run_state == "paused", what="the machine at the destination")
        for turn in range(4):
            wait_until(lambda: migration.status == arrival.status == "postcopy-active", what="postcopy")
            (migration, arrival)[turn % 2].pause()
            for handle in (migration, arrival):
                wait_until(lambda handle=handle: handle.status == "postcopy-paused", what="the pause")
            assert migration.info()["error-desc"]
            if turn:  # who has recovered runs it; before, the pause may have overtaken the word
                with pytest.raises(MigrationError, match="has answered since"):
                    migration.give_up()
            if turn == 2:  # nobody listens there; it can be tried again
                migration.recover(nobody := recovery(tmp_path))
                wait_until(lambda nobody=nobody: nobody in migration.info()["error-desc"], what="a refusal")
                assert migration.status == "postcopy-paused"
            if turn == 1:
                arrival.recover("tcp:127.0.0.1:0")
                there = f"tcp:{arrival.addresses[0]['host']}:{arrival.addresses[0]['port']}"
            else:
                arrival.recover(there := recovery(tmp_path))
            migration.recover(there)
        wait_until(lambda: migration.status == "postcopy-active", what="postcopy again")
        source.vm.set_parameters(max_postcopy_bandwidth=0)
        migration.wait(30)
        arrival.wait(30)
        destination.vm.start()
        check(source, destination, source.emulator.value)
        with pytest.raises(MigrationError, match="postcopy-active"):
            migration.pause()


def test_a_source_that_missed_the_last_word(tmp_path):
    """The same switch twice, with nobody who asks for a page; the second time the way back ends a byte too early."""
    limit = None
    for again in (False, True):
        with ready() as (source, destination):
            target, arrival = destination.listen()
            destination.vm.stop()
            with Proxy(int(target.rpartition(":")[2]), cut_back=limit) as proxy:
                migration = switch(source, proxy.uri)
                arrival.wait(20)
                if again:
                    wait_until(lambda migration=migration: migration.status == "postcopy-paused", what="the pause")
                    assert arrival.status == "completed"
                    arrival.recover(there := recovery(tmp_path))
                    migration.recover(there)
                migration.wait(20)
                limit = proxy.returned - 1
            assert migration.status == arrival.status == "completed"
            destination.vm.start()
            check(source, destination, source.emulator.value)


@pytest.mark.parametrize("autostart", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_a_paused_machine(autostart, keep):
    """QEMU's rule: it runs there, whatever it did here, unless it shall not start. Ours, if asked for: as here."""
    with ready() as (source, destination):
        target, arrival = destination.listen()
        destination.vm.set_parameters(x_postcopy_keep_runstate=keep)
        if not autostart:
            destination.vm.stop()
        source.vm.stop()
        migration = switch(source, target)
        migration.wait(20)
        arrival.wait(20)
        runs = autostart and not keep
        assert destination.vm.run_state == ("running" if runs else "paused")
        assert ("start" in destination.emulator.log) == runs
        assert source.vm.run_state == "postmigrate"
        destination.vm.start()
        check(source, destination, source.emulator.value)


def test_a_running_machine_that_shall_not_start():
    with ready() as (source, destination):
        target, arrival = destination.listen()
        destination.vm.stop()
        migration = switch(source, target)
        migration.wait(20)
        arrival.wait(20)
        assert destination.vm.run_state == "paused"
        destination.emulator.check()


def test_precopy_that_ends_before_postcopy_is_asked_for():
    with ready() as (source, destination):
        target, arrival = destination.listen()
        source.vm.set_parameters(max_bandwidth=0)
        migration = source.vm.migrate(target)
        migration.wait(20)
        arrival.wait(20)
        assert "postcopy-requests" not in {k for k, v in migration.info()["ram"].items() if v}
        migration.start_postcopy()  # too late, and harmless
        check(source, destination, source.emulator.value)


def test_pausing_before_the_switch():
    with ready(pause_before_switchover=True) as (source, destination):
        target, arrival = destination.listen()
        migration = switch(source, target)
        wait_until(lambda: migration.status == "pre-switchover", what="the pause")
        assert (source.vm.run_state, destination.vm.run_state) == ("finish-migrate", "inmigrate")
        source.vm.resume_switchover()
        migration.wait(20)
        arrival.wait(20)
        check(source, destination, source.emulator.value)


def test_awaiting_both_sides():
    async def move(source, target, arrival):
        await asyncio.wait_for(asyncio.gather(switch(source, target), arrival), 20)

    with ready() as (source, destination):
        target, arrival = destination.listen()
        asyncio.run(move(source, target, arrival))
        check(source, destination, source.emulator.value)


class Curious:
    """A device whose load reads all of the machine's RAM, most of which is not there yet."""

    def __init__(self, ram):
        self.ram = ram
        self.seen = 0


def look(device, version):
    device.seen = int(device.ram.numpy()[::PAGE].astype(int).sum())


CURIOUS = VMStateDescription("curious", version_id=1, fields=[uint64("seen")], post_load=look)


def test_a_destination_that_is_closed_while_devices_load_gives_the_machine_back():
    """Before RUN the machine is nowhere else: its source takes it back, and is told so before the connection is cut."""
    entered, go_on = Event(), Event()

    def wait_there(*_):
        entered.set()
        assert go_on.wait(60)

    slow = VMStateDescription("slow", version_id=1, fields=[uint64("seen")], post_load=wait_there)
    with ready() as (source, destination), ThreadPoolExecutor() as pool:
        for side in (source, destination):
            side.vm.register(slow, Curious(side.ram))
        target, arrival = destination.listen()
        migration = switch(source, target)
        try:
            assert entered.wait(60)
            closing = pool.submit(destination.vm.close)
            runs_on(source, migration, "never ran it")
        finally:
            go_on.set()
        closing.result(60)
        with pytest.raises(MigrationError):
            arrival.wait(60)
        assert destination.vm.run_state == "inmigrate"
        assert "start" not in destination.emulator.log


def test_a_device_that_touches_missing_memory_while_it_is_loaded():
    with ready() as (source, destination):
        source.vm.stop()
        devices = [Curious(side.ram) for side in (source, destination)]
        for side, device in zip((source, destination), devices, strict=True):
            side.vm.register(CURIOUS, device)
        source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)  # the device is there before the memory
        target, arrival = destination.listen()
        migration = switch(source, target)
        wait_until(lambda: requests(migration) > 0, what="a request")
        source.vm.set_parameters(max_postcopy_bandwidth=0)
        migration.wait(20)
        arrival.wait(20)
        look(devices[0], 1)
        assert devices[1].seen == devices[0].seen > 0
        check(source, destination, source.emulator.value)


def refuse(device):
    raise ValueError("this device cannot be saved now")


def reject(device, version):
    raise ValueError("this device is not taken here")


def runs_on(source, migration, words):
    with pytest.raises(MigrationError, match=words):
        migration.wait(20)
    assert migration.status == "failed"
    assert source.vm.run_state == "running"
    assert source.emulator.log[-2:] == ["activate_storage", "start"]
    before = source.emulator.value
    wait_until(lambda: source.emulator.value > before, what="a step at the source")


def test_a_device_that_cannot_be_saved():
    broken = VMStateDescription("broken", version_id=1, fields=[uint64("seen")], pre_save=refuse)
    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.set_capabilities(postcopy_ram=True)
            side.vm.register(broken, Curious(side.ram))
        source.vm.set_parameters(max_bandwidth=WITHOUT_END)
        source.vm.start()
        target, arrival = destination.listen()
        runs_on(source, switch(source, target), "cannot be saved now")
        with pytest.raises(MigrationError):
            arrival.wait(20)
        assert destination.vm.run_state == "inmigrate"


@pytest.mark.parametrize("failure", ["load", "missing", "start"])
def test_a_destination_that_never_ran_the_machine_gives_it_back(failure):
    """After the hand-over only its word can: the machine goes on here, and can be moved again."""
    with ready() as (source, destination):
        extra = VMStateDescription("extra", version_id=1, fields=[uint64("seen")])
        if failure == "start":
            destination.emulator.failures.add("start")
        if failure == "missing":
            destination.vm.register(extra, Curious(destination.ram))
        if failure == "load":
            source.vm.register(extra, Curious(source.ram))
            destination.vm.register(replace(extra, post_load=reject), Curious(destination.ram))
        target, arrival = destination.listen()
        runs_on(source, switch(source, target), "never ran it")
        words = {"load": "not taken here", "missing": "no state of extra", "start": "did not start"}[failure]
        with pytest.raises(MigrationError, match=words):
            arrival.wait(20)
        assert destination.vm.run_state == ("internal-error" if failure == "start" else "inmigrate")
        assert arrival.status == "failed"
        if failure == "missing":  # the next attempt, with what was missing, arrives
            source.vm.register(extra, Curious(source.ram))
            target, arrival = destination.listen()
            switch(source, target).wait(20)
            arrival.wait(20)
            check(source, destination, source.emulator.value)


def test_cancel_before_the_switch_and_then_postcopy():
    with ready() as (source, destination):
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: migration.status == "active", what="precopy")
        assert migration.cancel()
        with pytest.raises(MigrationError, match="cancelled"):
            migration.wait(20)
        with pytest.raises(MigrationError):
            arrival.wait(20)
        before = source.emulator.value
        wait_until(lambda: source.emulator.value > before, what="a step at the source")
        target, arrival = destination.listen()
        switch(source, target).wait(20)
        arrival.wait(20)
        check(source, destination, source.emulator.value)


def test_closing_the_source_waits_for_the_memory():
    with ready() as (source, destination), ThreadPoolExecutor(1) as thread:
        target, arrival = destination.listen()
        source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)
        destination.vm.stop()
        migration = switch(source, target)
        wait_until(lambda: destination.vm.run_state == "paused", what="the machine at the destination")
        closing = thread.submit(source.vm.close)
        assert not wait([closing], 0.1).done
        source.vm.set_parameters(max_postcopy_bandwidth=0)
        closing.result(20)
        assert migration.status == "completed"
        arrival.wait(20)
        destination.vm.start()
        check(source, destination, source.emulator.value)


def test_closing_without_a_connection_gives_up():
    with ready() as (source, destination):
        _, migration, arrival = lose_connection(source, destination)
        for handle in (migration, arrival):
            wait_until(lambda handle=handle: handle.status == "postcopy-paused", what="the pause")
        source.vm.close()
        with pytest.raises(MigrationError, match="still needed its memory") as caught:
            migration.wait(0)
        assert caught.value.kind == "ownership-unknown"
        assert source.vm.run_state == "postmigrate"
        destination.vm.close()
        with pytest.raises(MigrationError):
            arrival.wait(0)
        assert arrival.status == "failed"


def test_memory_that_cannot_have_postcopy(tmp_path):
    """Asked for on a destination it is refused with the remedy; a source needs nothing of its host."""
    disks = [RamBlock("disk", 1 << 20, backing="file", path=str(tmp_path / name)) for name in "ab"]
    if disks[0].dirty_log != "explicit":
        pytest.skip(f"{tmp_path} is not on a disk")
    with pair() as sides:
        for side, disk in zip(sides, disks, strict=True):
            side.vm.add_ram("disk", buffer=disk)
        source, destination = sides
        source.vm.set_capabilities(postcopy_ram=True)
        _, arrival = destination.listen()
        with pytest.raises(MigrationError, match="tmpfs") as caught:
            destination.vm.set_capabilities(events=True, postcopy_ram=True)
        assert caught.value.kind == "not-permitted"
        assert destination.vm.machine.settings.capabilities.enabled == []
        arrival.cancel()
        with pytest.raises(MigrationError, match="tmpfs"):
            source.vm.incoming("tcp:127.0.0.1:0")
        source.vm.set_capabilities(postcopy_ram=False)
        assert source.listen()


@pytest.mark.parametrize("uri", ["exec:cat > /dev/null", "file:{}/stream"])
def test_a_channel_without_a_way_back(tmp_path, uri):
    with pair() as (source, _):
        source.vm.set_capabilities(postcopy_ram=True)
        source.vm.start()
        with pytest.raises(MigrationError, match="way back") as caught:
            source.vm.migrate(uri.format(tmp_path))
        assert caught.value.kind == "bad-uri"
        assert source.vm.run_state == "running"


def test_a_machine_that_is_given_up_while_its_guest_cannot_stop():
    """It says so at once, in one thread of its own, and nobody waits for its lock."""
    go_on = Event()
    with ready() as (source, destination):
        destination.emulator.start = lambda: None  # what waits here is a thread that needs nothing of Python
        destination.emulator.stop = lambda: go_on.wait(60)
        target, arrival = destination.listen()
        source.vm.set_parameters(max_postcopy_bandwidth=TRICKLE)
        migration = switch(source, target)
        wait_until(lambda: destination.vm.run_state == "running", what="the machine at the destination")
        migration.pause()
        wait_until(lambda: arrival.status == "postcopy-paused", what="the pause there")
        guest = Thread(target=destination.ram.prefault, args=(SIZE - PAGE, PAGE))
        guest.start()
        try:
            wait_until(lambda: arrival.waiting == 1, what="a page that does not come")
            destination.vm.close()
            assert destination.vm.run_state == "internal-error"
            for call in (destination.vm.stop, destination.vm.start, destination.vm.reset):
                with pytest.raises(MigrationError, match="given up") as caught:
                    call()
                assert caught.value.kind == "invalid-state"
            destination.vm.close()
            assert [thread.name for thread in threads()].count("stop") == 1
            assert guest.is_alive()
        finally:
            go_on.set()
            arrival._source.let_go()
            guest.join(60)
        wait_until(lambda: "stop" not in {thread.name for thread in threads()}, what="the end of the stop")
        destination.vm.stop()
        assert destination.vm.run_state == "internal-error"


def test_a_destination_that_was_not_heard_since_the_hand_over():
    """The way back ends behind the answer to the discards: nobody can know whether the machine arrived. It did not."""
    with ready() as (source, destination):
        target, _ = destination.listen()
        destination.vm.stop()
        with Proxy(int(target.rpartition(":")[2]), cut_back=PONGS) as proxy:
            migration = switch(source, proxy.uri)
            wait_until(lambda: migration.status == "postcopy-paused", what="the pause")
        assert "not said that it runs the machine" in migration.info()["error-desc"]
        destination.vm.close()
        migration.give_up()
        with pytest.raises(MigrationError, match="x-migrate-give-up") as caught:
            migration.wait(20)
        assert caught.value.kind == "ownership-unknown"
        assert source.vm.run_state == "postmigrate"
        with pytest.raises(MigrationError, match="postcopy-paused"):
            migration.give_up()
        source.vm.start()
        assert source.vm.run_state == "running"


PONGS = 16
"""Bytes of the two answers before the hand-over."""
