"""Figures of a migration: counters that can be foretold, and where the downtime went."""

import time

import numpy as np
import pytest

from qmig_e2k.downtime import describe, slowest
from qmig_e2k.savevm import SaveVmHandler
from qmig_e2k.testing import pair
from qmig_e2k.vmstate import VMStateDescription, uint32
from support import PAGE, wait_until

PAGES = 1024
SIZE = PAGES * PAGE
NORMAL = 300
SLOW_US = 30_000
SOURCE = ("stop", "sync", "pages", "switchover")


def filled(ram):
    """`NORMAL` pages with something in them, as many that were written with zeros, the others never touched."""
    memory = ram.numpy().reshape(PAGES, PAGE)
    memory[:NORMAL] = np.random.default_rng(1).integers(1, 256, (NORMAL, PAGE), dtype=np.uint8)
    memory[NORMAL : 2 * NORMAL] = 0


def downtime(side):
    return side.vm.machine.departure.info()["x-downtime"]


@pytest.mark.parametrize("uri", ["tcp", "file"])
def test_pages_and_bytes_of_a_still_machine(tmp_path, uri):
    with pair("none", SIZE) as (source, destination):
        filled(source.ram)
        if uri == "tcp":
            target, arrival = destination.listen()
            migration = source.vm.migrate(target)
            arrival.wait(20)
        else:
            migration = source.vm.migrate(f"file:{tmp_path}/x")
        migration.wait(20)
        info = migration.info()
    ram = info["ram"]
    known = {"total": SIZE, "normal": NORMAL, "normal-bytes": NORMAL * PAGE, "duplicate": PAGES - NORMAL}
    known |= dict.fromkeys(("remaining", "skipped", "postcopy-requests", "postcopy-bytes", "multifd-bytes"), 0)
    known |= {"dirty-pages-rate": 0, "dirty-sync-missed-zero-copy": 0, "page-size": PAGE}
    assert {name: ram[name] for name in known} == known
    assert ram["precopy-bytes"] + ram["downtime-bytes"] == ram["transferred"]
    assert NORMAL * PAGE < ram["transferred"] < NORMAL * (PAGE + 64) + (PAGES - NORMAL) * 64
    assert ram["dirty-sync-count"] >= 2, "setup and the end"
    assert 0 <= info["setup-time"] <= info["total-time"]
    assert 0 <= info["downtime"] <= info["total-time"]
    # bits and milliseconds; what is counted as flowing is what setup has left
    flowing = info["total-time"] - info["setup-time"]
    assert ram["mbps"] == pytest.approx(ram["transferred"] * 8 / max(flowing, 1) / 1000, rel=0.5, abs=1000)


def test_rates_of_a_guest_that_writes():
    """They are measured once a second, while the migration is kept from its end."""
    with pair("none", SIZE) as (source, destination):
        filled(source.ram)
        source.vm.start()
        source.vm.set_parameters(max_bandwidth=4 << 20, downtime_limit=1)
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)

        def rated():
            ram = migration.info().get("ram", {})
            return ram.get("dirty-pages-rate") and ram["pages-per-second"] and migration.info()

        info = wait_until(rated, what="measured rates")
        ram = info["ram"]
        # a page is dirty once in a round, and there are no more than these
        assert 0 < ram["dirty-pages-rate"] <= PAGES * 1000
        assert 0 < ram["pages-per-second"] * PAGE < (4 << 20) * 8
        assert 0 < ram["mbps"] < (4 << 20) * 8 * 3 / 1e6
        assert info["expected-downtime"] >= 0
        assert isinstance(ram["dirty-pages-rate"], int)
        source.vm.set_parameters(max_bandwidth=0, downtime_limit=20_000)
        migration.wait(20)
        arrival.wait(20)
        assert migration.info()["ram"]["dirty-pages-rate"] == 0
    # each migration counts anew
    with pair("none", SIZE) as (source, destination):
        source.vm.migrate("exec:cat > /dev/null").wait(20)
        source.vm.reset()
        filled(source.ram)
        source.vm.migrate("exec:cat > /dev/null").wait(20)
        ram = source.vm.machine.departure.info()["ram"]
        assert (ram["normal"], ram["duplicate"]) == (NORMAL, PAGES - NORMAL)


class Slow(SaveVmHandler):
    """A live device that takes its time when the machine is stopped, and when it is loaded."""

    def setup(self, writer):
        writer.u8(0)

    def complete(self, writer):
        time.sleep(SLOW_US / 1e6)
        writer.u8(1)

    def load(self, reader, version):
        reader.u8()


def lazily(*_):
    time.sleep(SLOW_US / 1e6)


SLUG = VMStateDescription("slug", fields=[uint32("value")], pre_save=lazily, post_load=lazily)


class Thing:
    value = 7


@pytest.mark.parametrize("postcopy", [False, True])
def test_where_the_downtime_went(postcopy):
    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.register(SLUG, Thing())
            side.vm.register(Slow(), name="slow")
            side.vm.set_capabilities(postcopy_ram=postcopy)
            plain = side.emulator.start
            side.emulator.start = lambda plain=plain: (lazily(), plain())
        stop, let_go = source.emulator.stop, source.emulator.inactivate_storage
        source.vm.start()
        source.emulator.stop = lambda: (lazily(), stop())
        source.emulator.inactivate_storage = lambda: (lazily(), let_go())
        if postcopy:
            source.vm.set_parameters(max_bandwidth=1 << 20)
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        if postcopy:
            migration.start_postcopy()
        migration.wait(20)
        arrival.wait(20)
        info, there = migration.info(), destination.vm.machine.control
        ours = info["x-downtime"]
        theirs = arrival.info()["x-downtime"]
        assert there.incoming_status == "completed"
    devices = {"timer/0", "globalstate/0", "tiny-counter/0", "slug/0"}
    assert ours.keys() == {*SOURCE, "devices"}
    assert ours["devices"].keys() == devices | {"slow/0"}
    assert ours["stop"] >= 2 * SLOW_US, "stopping, and letting go of the storage"
    assert ours["devices"]["slug/0"] >= SLOW_US
    assert ours["devices"]["slow/0"] >= SLOW_US
    # parts that follow each other, inside of a whole that is given in milliseconds
    assert sum(ours[name] for name in SOURCE) + sum(ours["devices"].values()) <= (info["downtime"] + 2) * 1000
    assert theirs.keys() == {"load", "start", "devices"}
    assert theirs["devices"].keys() == devices
    assert theirs["devices"]["slug/0"] >= SLOW_US
    assert sum(theirs["devices"].values()) <= theirs["load"]
    assert theirs["start"] >= SLOW_US


def test_another_migration_forgets_the_times_of_the_last():
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        source.vm.migrate("exec:cat > /dev/null").wait(20)
        assert "stop" in downtime(source)
        source.vm.start()
        target, arrival = destination.listen()
        source.vm.set_parameters(max_bandwidth=1 << 20)
        migration = source.vm.migrate(target)
        assert "x-downtime" not in migration.info()
        source.vm.set_parameters(max_bandwidth=0)
        migration.wait(20)
        arrival.wait(20)


def test_times_as_text():
    source = {"switchover": 4, "stop": 1, "pages": 3, "sync": 2, "devices": {"cpu/0": 20, "timer/0": 5}}
    assert describe(source) == "stop 1 us, devices 25 us, sync 2 us, pages 3 us, switchover 4 us"
    destination = {"start": 6, "load": 30, "devices": {"cpu/0": 21}}
    assert describe(destination) == "load 30 us, start 6 us"
    assert describe({**destination, **source}).endswith("switchover 4 us, load 30 us, start 6 us")
    assert describe({"stop": 0}) == "stop 0 us"
    assert slowest(source) == "cpu/0 20 us, timer/0 5 us"
    assert slowest(source, 1) == "cpu/0 20 us, 1 more"
    assert slowest({"stop": 1}) == ""
