"""`switchover-ack`: the machine is not stopped before the devices at the destination have what they want."""

from contextlib import contextmanager

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.savevm import SaveVmHandler
from qmig_e2k.testing import pair
from support import wait_until

SIZE = 1 << 20


class Card(SaveVmHandler):
    """A live device that gets along with `wanted` sections, and may be stopped only then."""

    def __init__(self, wanted=0):
        self.wanted = wanted
        self.loaded = self.sent = 0
        self.enough = False

    def setup(self, writer):
        writer.u8(0)

    def pending(self):
        return 0 if self.enough else 1

    def iterate(self, writer, budget):
        writer.u8(1)
        self.sent += 1
        return True

    def complete(self, writer):
        writer.u8(2)

    def load(self, reader, version):
        reader.u8()
        self.loaded += 1

    def ready(self):
        return self.loaded >= self.wanted


@contextmanager
def machines(*, there=True, wanted=0, **capabilities):
    """Source with a guest, destination whose card wants `wanted` sections; both sides want the acknowledgement.

    Args:
        there: the destination knows of it, too.
        wanted: sections before it says that it is ready.
        capabilities: more of them, on both sides.
    """
    with pair(size=SIZE) as (source, destination):
        cards = Card(), Card(wanted)
        for side, card in zip((source, destination), cards, strict=True):
            side.vm.register(card, name="card")
            if capabilities:
                side.vm.set_capabilities(**capabilities)
            if there or side is source:
                side.vm.set_capabilities(return_path=True, switchover_ack=True)
        source.vm.start()
        yield source, destination, cards


def rounds(migration):
    return migration.info().get("ram", {}).get("dirty-sync-count", 0)


def arrive(migration, arrival, source, destination):
    migration.wait(20)
    arrival.wait(20)
    assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")


@pytest.mark.parametrize("wanted", [0, 1, 10])
@pytest.mark.parametrize("channel", ["tcp:127.0.0.1:0", "unix:{}/socket"])
def test_the_machine_moves_when_all_are_ready(tmp_path, channel, wanted):
    with machines(wanted=wanted) as (source, destination, (here, there)):
        target, arrival = destination.listen(channel.format(tmp_path))
        migration = source.vm.migrate(target)
        arrive(migration, arrival, source, destination)
        assert there.ready()
        assert here.sent >= wanted - 2, "what is missing after START was sent while the machine ran"


def test_a_device_that_is_not_ready_keeps_the_machine_running():
    with machines(wanted=1 << 30) as (source, destination, (here, there)):
        here.enough = True  # and still it is waited for
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: rounds(migration) > 5, what="rounds that lead nowhere")
        assert (migration.status, source.vm.run_state) == ("active", "running")
        here.enough = False
        there.wanted = there.loaded + 2
        arrive(migration, arrival, source, destination)
        destination.vm.stop()
        destination.emulator.check()


def test_a_destination_that_never_says_it_is_waited_for_until_a_cancel():
    with machines(there=False) as (source, destination, _):
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: rounds(migration) > 5, what="rounds that lead nowhere")
        assert migration.cancel()
        with pytest.raises(MigrationError) as caught:
            migration.wait(20)
        assert caught.value.kind == "cancelled"
        with pytest.raises(MigrationError):
            arrival.wait(20)
        assert source.vm.run_state == "running"
        # the same two machines, and the word is not asked for
        source.vm.set_capabilities(switchover_ack=False)
        target, arrival = destination.listen()
        arrive(source.vm.migrate(target), arrival, source, destination)


def test_a_word_that_was_not_asked_for_does_no_harm():
    with machines() as (source, destination, _):
        source.vm.set_capabilities(switchover_ack=False)
        target, arrival = destination.listen()
        arrive(source.vm.migrate(target), arrival, source, destination)


def test_nobody_waits_where_nothing_runs():
    with machines(there=False) as (source, destination, _):
        source.vm.stop()
        target, arrival = destination.listen()
        source.vm.migrate(target).wait(20)
        arrival.wait(20)
        assert destination.vm.run_state == "paused"


def test_postcopy_waits_too():
    with machines(wanted=1 << 30, postcopy_ram=True) as (source, destination, (_, there)):
        source.vm.set_parameters(max_bandwidth=1 << 20)
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        migration.start_postcopy()
        wait_until(lambda: there.loaded > 5, what="sections that lead nowhere")
        assert (migration.status, source.vm.run_state) == ("active", "running")
        there.wanted = there.loaded + 1
        arrive(migration, arrival, source, destination)


@pytest.mark.parametrize("uri", ["file:{}/x", "exec:cat > {}/x"])
def test_a_channel_without_a_way_back_is_refused(tmp_path, uri):
    with machines() as (source, _, __):
        with pytest.raises(MigrationError, match=r"switchover-ack.*no way back") as caught:
            source.vm.migrate(uri.format(tmp_path))
        assert caught.value.kind == "bad-uri"
        assert source.vm.run_state == "running"
        assert not list(tmp_path.iterdir()), "nothing was opened"


def test_a_device_that_cannot_say_is_named():
    with machines() as (source, destination, (_, there)):
        there.ready = lambda: 1 / 0
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        with pytest.raises(MigrationError, match="card/0: ZeroDivisionError") as caught:
            arrival.wait(20)
        assert caught.value.kind == "device-state"
        with pytest.raises(MigrationError):
            migration.wait(20)
        assert source.vm.run_state == "running"


def test_it_needs_the_return_path():
    with machines() as (source, _, __), pytest.raises(MigrationError, match="needs 'return-path'"):
        source.vm.set_capabilities(return_path=False)
