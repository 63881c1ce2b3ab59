"""multifd towards a real QEMU: all RAM arrives over several channels, and a destination that disagrees harms nobody."""

import random

import pytest

from qmig_e2k.monitor.client import QmpError
from support import PAGE, assert_same_memory, mixed_ram, wait_until, written

SIZE = 32 << 20


@pytest.fixture(scope="module")
def content():
    """Zero pages, alike ones, and noise that does not compress."""
    noise = random.Random(5)
    return mixed_ram(SIZE - (4 << 20)) + noise.randbytes(4 << 20)


def prepare(*sides, channels=2, compression="none", **more):
    for side in sides:
        side.set_capabilities(multifd=True)
        side.command("migrate-set-parameters", multifd_channels=channels, multifd_compression=compression, **more)


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_ram_arrives(qemu, serve, image, content, tmp_path, compression, channels):
    source, destination = serve("-m", "32M", ram=image), qemu("-m", "32M", incoming="defer")
    prepare(source, destination, channels=channels, compression=compression)
    source.command("migrate-set-parameters", max_bandwidth=0)

    uri = "tcp:127.0.0.1:0" if channels == 2 else f"unix:{tmp_path}/channel"
    source.command("migrate", uri=destination.listen(uri))
    source.wait_migration("completed")
    destination.wait_arrived()

    assert_same_memory(destination.memory(SIZE), content)
    ram = source.migration()["ram"]
    assert ram["normal"] + ram["duplicate"] >= SIZE // PAGE
    assert (4 << 20) < ram["multifd-bytes"] < ram["transferred"]
    if compression == "none":
        assert ram["multifd-bytes"] > ram["normal-bytes"]
    else:
        assert ram["multifd-bytes"] < ram["normal-bytes"]


@pytest.mark.parametrize(("compression", "bandwidth"), [("none", 48 << 20), ("zstd", 8 << 20)])
def test_while_the_guest_writes(qemu, serve, compression, bandwidth):
    source = serve("-m", "32M", "--guest", "random,wss=16M,rate=1000000")
    destination = qemu("-m", "32M", incoming="defer")  # stays paused: its RAM is what arrived
    prepare(source, destination, compression=compression)
    source.command("cont")
    wait_until(lambda: written(source.memory(16 << 20)), what="a write to every page of the working set")
    source.command("migrate-set-parameters", max_bandwidth=bandwidth, downtime_limit=1)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 3, what="the third round")
    assert source.run_state() == "running"
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=20000)
    source.wait_migration("completed")
    destination.wait_arrived()

    assert_same_memory(destination.memory(SIZE), source.memory(SIZE))
    assert source.command("x-verify")["equal"]


def test_the_machines_have_the_same_uuid(qemu, serve, image, content):
    uuid = "12345678-9abc-4def-8123-456789abcdef"
    source = serve("-m", "32M", "-uuid", uuid, ram=image)
    destination = qemu("-m", "32M", "-uuid", uuid, incoming="defer")
    prepare(source, destination)
    source.command("migrate", uri=destination.listen())
    source.wait_migration("completed")
    destination.wait_arrived()
    assert_same_memory(destination.memory(SIZE), content)


def test_a_destination_that_expects_another_compression(qemu, serve, image):
    source, destination = serve("-m", "32M", ram=image), qemu("-m", "32M", incoming="defer")
    prepare(source, compression="zlib")
    prepare(destination, compression="zstd")
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("failed")
    assert source.run_state() == "running"


@pytest.mark.parametrize("uri", ["exec:cat >/dev/null", "file:{folder}/stream"])
def test_where_there_is_one_channel_only(serve, tmp_path, uri):
    source = serve("-m", "1M")
    prepare(source)
    with pytest.raises(QmpError, match="multifd needs further connections"):
        source.command("migrate", uri=uri.format(folder=tmp_path))
    assert source.run_state() == "prelaunch"
