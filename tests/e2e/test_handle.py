"""The handles of both sides: what they say, how they are waited for, and what leaving their blocks does."""

import asyncio
import gc
from pathlib import Path

import pytest

from qmig_e2k import MigrationError, StreamError
from qmig_e2k.testing import pair
from support import wait_until

SIZE = 1 << 20
SLOW = 64 << 10
"""Bytes per second at which nothing ends by itself."""


@pytest.fixture
def machines():
    with pair("none", SIZE) as (source, destination):
        source.ram.numpy()[:] = 1
        source.vm.start()
        yield source, destination


def slowly(source, destination):
    source.vm.set_parameters(max_bandwidth=SLOW, downtime_limit=1)
    target, arrival = destination.listen()
    return source.vm.migrate(target), arrival


def test_both_sides_can_be_watched(machines):
    source, destination = machines
    migration, arrival = slowly(source, destination)
    seen = {"source": [], "destination": []}
    for here, there in zip(migration.progress(0.01), arrival.progress(0.01), strict=False):
        seen["source"].append(here["status"])
        seen["destination"].append(there.get("status", "none"))
        if len(seen["source"]) == 20:
            assert arrival.info()["socket-address"] == arrival.addresses
            source.vm.set_parameters(max_bandwidth=0, downtime_limit=20_000)
    migration.wait(20)
    arrival.wait(20)
    assert seen["source"][19] == seen["destination"][19] == "active"
    final = migration.info(), arrival.info()
    assert [info["status"] for info in final] == ["completed", "completed"]
    assert (list(migration.progress()), list(arrival.progress())) == ([final[0]], [final[1]])
    assert "socket-address" not in final[1]
    assert final[1].keys() == {"status", "x-downtime"}
    # what comes after is no more of their business
    source.vm.reset()
    target, second = source.listen()
    destination.vm.migrate(target).wait(20)
    second.wait(20)
    assert (migration.info(), arrival.info()) == final
    assert second.info()["status"] == second.status == "completed", "and not what its machine did before"


def test_leaving_a_block_waits(machines):
    source, destination = machines
    target, arrival = destination.listen()
    with arrival, source.vm.migrate(target) as migration:
        assert not arrival.done()
    assert migration.done()
    assert arrival.done()
    assert (migration.status, destination.vm.run_state) == ("completed", "running")


def test_leaving_a_block_by_an_exception_cancels(machines):
    source, destination = machines
    migration, arrival = slowly(source, destination)
    with pytest.raises(KeyError), migration:
        raise KeyError
    assert (migration.done(), migration.status, source.vm.run_state) == (True, "cancelled", "running")
    with pytest.raises(MigrationError) as caught:
        migration.wait(20)
    assert caught.value.kind == "cancelled"
    assert arrival.ended(20)
    _, arrival = destination.listen()
    with pytest.raises(KeyError), arrival:
        raise KeyError
    assert arrival.status == "failed"


def test_awaiting_in_a_loop_that_goes_on(machines):
    source, destination = machines

    async def move():
        target, arrival = destination.listen()
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async with arrival, source.vm.migrate(target) as migration:
            assert await migration is None
        ticking.cancel()
        assert (ticks > 0, arrival.done()) == (True, True)
        return migration

    assert asyncio.run(move()).status == "completed"


def test_giving_up_an_await_does_not_end_the_migration(machines, caplog):
    source, destination = machines

    async def move():
        migration, arrival = slowly(source, destination)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(migration, 0.05)
        assert not migration.done()
        with pytest.raises(KeyError):
            async with migration:
                raise KeyError
        assert migration.status == "cancelled"
        with pytest.raises(MigrationError, match="cancelled"):
            await migration
        with pytest.raises(MigrationError):
            await arrival

    asyncio.run(move())
    assert source.vm.run_state == "running"
    assert said_by_libraries(caplog) == []


def test_a_loop_that_ends_before_the_migration(machines, caplog):
    source, destination = machines

    async def glance():
        migration, arrival = slowly(source, destination)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(migration, 0.05)
        return migration, arrival

    migration, arrival = asyncio.run(glance())
    assert migration.cancel()
    assert migration.ended(20)
    assert arrival.ended(20)
    assert said_by_libraries(caplog) == []


def said_by_libraries(caplog):
    """What asyncio and its like had to complain about: an exception that nobody saw, a loop that is closed."""
    gc.collect()
    return [record.getMessage() for record in caplog.records if not record.name.startswith("qmig")]


@pytest.mark.parametrize("uri", ["file:/nowhere/x", "fd:99", "nothing:1"])
def test_what_is_refused_keeps_no_descriptors(machines, uri):
    """Without Python's collector, which may not run for hours."""

    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    def refused():
        with pytest.raises(MigrationError):
            source.vm.migrate(uri)

    source, _ = machines
    gc.collect()
    gc.disable()
    try:
        refused()
        before = count()
        for _ in range(5):
            refused()
        assert count() == before
    finally:
        gc.enable()


def test_who_waits_again_is_told_again(machines):
    source, destination = machines
    migration, _ = slowly(source, destination)
    migration.cancel()
    told = []
    for _ in range(2):
        with pytest.raises(MigrationError) as caught:
            migration.wait(20)
        told.append(caught.value)
    first, second = told
    assert (first.kind, first.args) == (second.kind, second.args) == ("cancelled", second.args)
    assert first is not second, "each with the frames of one who waited"


def test_what_is_raised_is_of_one_tree(machines):
    """One `except` is enough, and a stream that was refused has a place."""
    source, destination = machines
    destination.vm.machine.name = "another"
    target, arrival = destination.listen()
    migration = source.vm.migrate(target)
    with pytest.raises(StreamError) as there:
        arrival.wait(20)
    with pytest.raises(MigrationError) as here:
        migration.wait(20)
    assert (there.value.kind, there.value.path) == ("bad-configuration", "configuration")
    assert there.value.offset is not None
    assert not isinstance(here.value, StreamError)
    assert here.value.message in str(here.value)
    assert migration.info()["error-desc"] == str(here.value)
    assert arrival.info()["error-desc"] == str(there.value)
    wait_until(lambda: source.vm.run_state == "running", what="the source going on")
