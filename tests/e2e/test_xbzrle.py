"""A guest that writes a few bytes a page moves by differences, and nothing of what it wrote is lost."""

from contextlib import contextmanager

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.savevm import SaveVmHandler
from qmig_e2k.testing import pair
from support import PAGE, wait_until, written

SIZE = 4 << 20
PAGES = SIZE // PAGE


class Held(SaveVmHandler):
    """A live handler without a state: while it is held it says that much is to be sent, so no round is the last."""

    def __init__(self):
        self.held = True

    def setup(self, writer):
        pass

    def pending(self):
        return 1 << 40 if self.held else 0

    def load(self, reader, version):
        pass


class Busy:
    """A migration with XBZRLE of a guest that counts, 8 bytes a page; the source alone knows of it."""

    def __init__(self, source, destination):
        self.source, self.destination, self.hold = source, destination, Held()
        source.vm.register(self.hold, name="held")
        destination.vm.register(Held(), name="held")
        source.vm.set_capabilities(xbzrle=True)
        source.vm.start()
        target, self.arrival = destination.listen()
        self.migration = source.vm.migrate(target)
        self.counted("pages", 1)

    @property
    def cache(self):
        return self.migration.info().get("xbzrle-cache", {})

    def counted(self, member, least):
        """Waits until a counter of the cache has reached `least`."""
        wait_until(lambda: self.cache.get(member, 0) >= least, 30, f"{least} {member}")

    def end(self):
        """Lets it end, and looks at what arrived; returns query-migrate."""
        self.hold.held = False
        self.migration.wait(30)
        self.arrival.wait(30)
        assert self.destination.vm.run_state == "running"
        self.destination.vm.stop()
        assert self.destination.emulator.value >= self.source.emulator.value
        self.destination.emulator.check()
        return self.migration.info()


@contextmanager
def busy(**capabilities):
    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.set_capabilities(**capabilities)
        yield Busy(source, destination)


def test_a_busy_machine_moves_by_differences():
    with busy() as moving:
        moving.counted("pages", 10 * PAGES)
        info = moving.end()
    cache, ram = info["xbzrle-cache"], info["ram"]
    assert cache["cache-size"] == 64 << 20
    assert cache["cache-miss"] >= PAGES - 1
    assert cache["overflow"] == 0
    # word, encoding and length; then a number or two, and one to eight bytes
    assert cache["pages"] * (8 + 3 + 3) <= cache["bytes"] <= cache["pages"] * (8 + 3 + 16) + 64
    assert ram["transferred"] > ram["normal"] * PAGE + cache["bytes"]
    assert ram["dirty-sync-count"] > 10


def test_the_cache_changes_its_size_on_the_way():
    with busy() as moving:
        source = moving.source.vm
        with pytest.raises(MigrationError, match="power of two"):
            source.set_parameters(xbzrle_cache_size=12288)
        source.set_parameters(xbzrle_cache_size=SIZE // 8)
        # seven of eight pages find no room now, and are missing again and again
        moving.counted("cache-miss", moving.cache["cache-miss"] + 4 * PAGES)
        assert moving.cache["cache-size"] == SIZE // 8
        source.set_parameters(xbzrle_cache_size=2 * SIZE)
        moving.counted("pages", moving.cache["pages"] + 4 * PAGES)
        moving.end()


def test_then_by_postcopy():
    """What is sent after the switch are whole pages: nothing else is taken there."""
    with busy(postcopy_ram=True) as moving:
        moving.migration.start_postcopy()
        assert moving.end()["xbzrle-cache"]["pages"] > 0


def test_compressed_in_the_first_pass():
    """Both on: compression threads have the first pass, differences what comes after."""
    with busy(compress=True) as moving:
        compressed = moving.migration.info()["compression"]["pages"]
        moving.counted("pages", moving.cache["pages"] + 4 * PAGES)
        info = moving.end()
    assert 0 < compressed == info["compression"]["pages"] <= PAGES


def test_to_a_file_and_after_a_cancel(tmp_path):
    with pair(size=SIZE) as (source, destination):
        hold = Held()
        source.vm.register(hold, name="held")
        destination.vm.register(Held(), name="held")
        source.vm.set_capabilities(xbzrle=True)
        source.vm.start()
        for uri in (f"file:{tmp_path}/first", f"file:{tmp_path}/second"):
            migration = source.vm.migrate(uri)
            wait_until(lambda m=migration: m.info().get("xbzrle-cache", {}).get("pages", 0) > PAGES, 30, "differences")
            if uri.endswith("first"):
                migration.cancel()
                with pytest.raises(MigrationError, match="cancel"):
                    migration.wait(30)
        hold.held = False
        migration.wait(30)
        destination.vm.incoming(f"file:{tmp_path}/second").wait(30)
        destination.vm.stop()
        destination.emulator.check()


@pytest.mark.parametrize("xbzrle", [True, False])
def test_with_it_a_guest_is_outrun(serve, xbzrle):
    """The working set takes a quarter of a second at this bandwidth, in which the guest writes to all of it again."""
    machine = ["-m", "32M", "--guest", "random,wss=16M,rate=200000"]
    destination, source = serve(*machine, machine="e2k", incoming="defer"), serve(*machine, machine="e2k")
    source.set_capabilities(xbzrle=xbzrle)
    source.command("migrate-set-parameters", max_bandwidth=64 << 20, downtime_limit=100)
    for side in (source, destination):
        side.command("cont")
    wait_until(lambda: written(source.memory(16 << 20)), what="a write to every page of the working set")
    source.command("migrate", uri=destination.listen())
    if not xbzrle:
        wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 4, 30, "rounds")
        info = source.migration()
        assert info["status"] == "active"
        assert "xbzrle-cache" not in info
        return
    info = source.wait_migration("completed")
    destination.wait_arrived()
    destination.command("stop")
    assert destination.command("x-verify")["equal"]
    text = source.command("human-monitor-command", command_line="info migrate")
    assert f"xbzrle pages: {info['xbzrle-cache']['pages']} pages\r\n" in text
