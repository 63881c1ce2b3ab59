"""Two machines of ours with several channels between them: all settings agree, and no failure costs the machine."""

import numpy as np
import pytest

from qmig_e2k import MigrationError
from qmig_e2k.testing import Fault, Proxy, pair
from support import wait_until

SIZE = 8 << 20


def agree(*sides, **parameters):
    for side in sides:
        side.vm.set_capabilities(multifd=True)
        side.vm.set_parameters(**parameters)


def fill(ram):
    """Noise, zeros that were written, text, and memory that nobody touched."""
    memory = ram.numpy()
    memory[: SIZE // 4] = np.random.default_rng(1).integers(0, 256, SIZE // 4, dtype=np.uint8)
    memory[SIZE // 4 : SIZE // 2] = 0
    memory[SIZE // 2 : SIZE * 3 // 4] = np.resize(np.frombuffer(b"the same again and ", np.uint8), SIZE // 4)


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
@pytest.mark.parametrize(
    ("format_", "detection"), [("7.2", "multifd"), ("10.0", "multifd"), ("10.0", "legacy"), ("10.0", "none")]
)
def test_ram_arrives(format_, detection, compression):
    with pair("none", SIZE, format=format_) as (source, destination):
        fill(source.ram)
        agree(source, destination, multifd_compression=compression, zero_page_detection=detection, max_bandwidth=0)
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        migration.wait(60)
        arrival.wait(60)
        assert np.array_equal(source.ram.numpy(), destination.ram.numpy())
        ram = migration.info()["ram"]
    looked = SIZE // 4096 // (2 if detection != "none" else 4)
    assert ram["duplicate"] == looked
    assert ram["normal"] == SIZE // 4096 - looked
    assert ram["transferred"] > ram["multifd-bytes"] > SIZE // 4


@pytest.mark.parametrize("channels", [1, 5, 64])
def test_a_running_machine_moves(tmp_path, channels):
    with pair(size=SIZE) as (source, destination):
        agree(source, destination, multifd_channels=channels)
        source.vm.start()
        target, arrival = destination.listen(f"unix:{tmp_path}/channel")
        source.vm.migrate(target).wait(60)
        arrival.wait(60)
        assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")
        destination.vm.stop()
        destination.emulator.check()


@pytest.mark.parametrize("format_", ["7.2", "10.0"])
def test_cancelled_and_tried_again(format_):
    with pair("none", SIZE, format=format_) as (source, destination):
        fill(source.ram)
        agree(source, destination, max_bandwidth=1 << 20)
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: migration.info().get("ram", {}).get("multifd-bytes", 0) > 0, what="the first packet")
        migration.cancel()
        with pytest.raises(MigrationError):
            migration.wait(60)
        with pytest.raises(MigrationError):
            arrival.wait(60)
        assert (source.vm.run_state, migration.status) == ("running", "cancelled")

        source.vm.set_parameters(max_bandwidth=0)
        target, arrival = destination.listen()
        destination.vm.stop()  # there its memory stays as it came
        source.vm.migrate(target).wait(60)
        arrival.wait(60)
        assert np.array_equal(source.ram.numpy(), destination.ram.numpy())


@pytest.mark.parametrize("ours", [{"multifd_channels": 3}, {"multifd_compression": "zlib"}])
def test_sides_that_do_not_agree(ours):
    """Whichever of its channels the source finds closed first, and also if it finds none: what to mend is named."""
    (remedy,) = (name.replace("_", "-") for name in ours)
    with pair("none", SIZE) as (source, destination):
        fill(source.ram)
        agree(source, **ours)
        agree(destination)
        source.vm.start()
        target, arrival = destination.listen()
        with pytest.raises(MigrationError):
            source.vm.migrate(target).wait(60)
        with pytest.raises(MigrationError, match=remedy):
            arrival.wait(60)
        assert source.vm.run_state == "running"


@pytest.mark.parametrize("uri", ["exec:cat > /dev/null", "file:{}/stream"])
def test_where_there_is_one_channel_only(tmp_path, uri):
    with pair("none") as (source, _):
        agree(source)
        with pytest.raises(MigrationError, match="multifd needs further connections"):
            source.vm.migrate(uri.format(tmp_path))
        assert source.vm.run_state == "prelaunch"


def test_what_adds_channels_is_switched_before_a_destination_listens():
    with pair("none", SIZE) as (source, destination):
        target, arrival = destination.listen()
        for changes in ({"multifd": True}, {"postcopy_ram": True, "postcopy_preempt": True}):
            with pytest.raises(MigrationError, match="before the destination listens") as refused:
                destination.vm.set_capabilities(**changes)
            assert refused.value.kind == "invalid-state"
        destination.vm.set_capabilities(events=True, multifd=False)
        source.vm.migrate(target).wait(60)
        arrival.wait(60)
        destination.vm.set_capabilities(multifd=True)


@pytest.mark.parametrize("at", [30, 70])
def test_a_source_that_is_lost_before_all_channels_are_there(at):
    """The destination does not wait half a minute for the others: it takes the next attempt at once."""
    with pair("none", SIZE) as (source, destination):
        fill(source.ram)
        agree(source, destination, multifd_channels=3, max_bandwidth=0)
        source.vm.start()
        target, arrival = destination.listen()
        cut = Fault("cut", at, link=2, prompt=True)
        silent = Fault("stall", 0, link=3)
        with Proxy(int(target.rpartition(":")[2]), faults=[cut, silent]) as proxy:
            migration = source.vm.migrate(proxy.uri)
            for handle in (migration, arrival):
                with pytest.raises(MigrationError) as caught:
                    handle.wait(20)
                assert caught.value.kind in {"closed", "truncated"}
        target, arrival = destination.listen()
        source.vm.migrate(target).wait(60)
        arrival.wait(60)
