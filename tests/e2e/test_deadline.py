"""`x-deadline`: the total time of a migration, and what happens when it is over."""

import socket

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.testing.pair import pair

SLOW = {"max_bandwidth": 1 << 20, "downtime_limit": 0}
SIZE = 8 << 20


def fill(side):
    side.ram.numpy()[:] = 1


def test_cancelled_in_time_and_said_so():
    with pair("none", SIZE) as (source, destination):
        fill(source)
        source.vm.set_parameters(**SLOW, x_deadline=200)
        uri, arrival = destination.listen()
        migration = source.vm.migrate(uri)
        with pytest.raises(MigrationError, match="longer than the 200 ms of `x-deadline`") as caught:
            migration.wait(20)
        assert (caught.value.kind, migration.status) == ("cancelled", "cancelled")
        assert arrival.ended(20)
        # the next one has its own time
        source.vm.set_parameters(max_bandwidth=0, x_deadline=60_000)
        uri, arrival = destination.listen()
        source.vm.migrate(uri).wait(20)
        arrival.wait(20)


def test_a_connection_that_does_not_come_about_counts_too():
    with socket.socket() as full, pair("none") as (source, _):
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        source.vm.set_parameters(x_deadline=200)
        migration = source.vm.migrate(f"tcp:127.0.0.1:{full.getsockname()[1]}")
        with pytest.raises(MigrationError, match="x-deadline"):
            migration.wait(20)
        assert migration.status == "cancelled"
        for each in waiting:
            each.close()


def test_a_peer_that_does_not_read_counts_too():
    with pair("none", SIZE) as (source, _):
        fill(source)
        source.vm.set_parameters(max_bandwidth=0, x_deadline=200)
        with pytest.raises(MigrationError, match="x-deadline"):
            source.vm.migrate("exec:sleep 30").wait(20)


def test_forced_the_machine_arrives_whatever_is_left():
    with pair(size=SIZE) as (source, destination):
        source.vm.set_parameters(**SLOW, x_deadline_action="force")
        source.vm.start()
        uri, arrival = destination.listen()
        migration = source.vm.migrate(uri)
        # also one that is set on the way
        source.vm.set_parameters(x_deadline=200)
        migration.wait(20)
        arrival.wait(20)
        assert (migration.status, destination.vm.run_state) == ("completed", "running")
        destination.vm.stop()
        destination.emulator.check()


def test_postcopy_instead():
    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.set_capabilities(postcopy_ram=True)
        source.vm.set_parameters(**SLOW, x_deadline=200, x_deadline_action="postcopy")
        source.vm.start()
        uri, arrival = destination.listen()
        migration = source.vm.migrate(uri)
        migration.wait(20)
        arrival.wait(20)
        assert migration.info()["ram"]["postcopy-bytes"] > 0
        destination.vm.stop()
        destination.emulator.check()


def test_no_postcopy_to_switch_to():
    with pair("none", SIZE) as (source, _):
        source.vm.set_parameters(x_deadline=60_000, x_deadline_action="postcopy")
        with pytest.raises(MigrationError, match="switch the capability 'postcopy-ram' on, or choose another action"):
            source.vm.migrate("exec:cat > /dev/null")
        assert source.vm.machine.control.outgoing_status == "none"
        fill(source)
        source.vm.set_parameters(max_bandwidth=4096, x_deadline=0)
        migration = source.vm.migrate("exec:cat > /dev/null")
        with pytest.raises(MigrationError, match="postcopy-ram"):
            source.vm.set_parameters(x_deadline=60_000)
        assert source.vm.machine.settings.parameters["x-deadline"] == 0
        assert migration.cancel()
        assert migration.ended(20)
