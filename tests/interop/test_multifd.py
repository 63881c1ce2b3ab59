"""Pages that a real QEMU sends on several channels, and such streams as they were recorded: every byte arrives."""

import contextlib
import hashlib
import json
import lzma
import socket
import threading

import pytest

from support import STREAMS, assert_same_memory, mixed_ram

SIZE = 64 << 20
METHODS = ["none", "zlib", "zstd"]
UUID = "0f0e0d0c-0b0a-0908-0706-050403020100"


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


def agree(*sides, channels=2, method="none"):
    """Several channels on all sides."""
    for side in sides:
        side.set_capabilities(multifd=True)
        side.command("migrate-set-parameters", multifd_channels=channels, multifd_compression=method)


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_running_machine_arrives(qemu, serve, image, content, tmp_path, channels, method):
    source, destination = qemu("-uuid", UUID, ram=image), serve("-uuid", UUID, incoming="defer")
    agree(source, destination, channels=channels, method=method)
    for side in (source, destination):
        side.command("cont")
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.set_capabilities(return_path=channels == 2)

    uri = destination.listen("tcp:127.0.0.1:0" if channels == 2 else f"unix:{tmp_path}/channel")
    source.command("migrate", uri=uri)
    source.wait_migration("completed")
    destination.wait_arrived()

    assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")
    assert_same_memory(destination.memory(SIZE), content)
    assert source.migration()["ram"]["multifd-bytes"] > 0


@pytest.mark.parametrize(
    ("uuid", "settings", "words"),
    [
        ((), {"method": "zlib"}, "multifd-compression none there, which is zlib here"),
        ((), {"channels": 1}, "give both sides the same multifd-channels"),
        (("-uuid", UUID), {}, "the source's machine has UUID 0f0e0d0c"),
    ],
)
def test_a_source_that_disagrees_keeps_its_machine(qemu, serve, image, uuid, settings, words):
    source, destination = qemu(*uuid, ram=image), serve(incoming="defer")
    agree(source)
    agree(destination, **settings)
    source.set_capabilities(return_path=True)
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    assert words in destination.wait_migration("failed")["error-desc"]
    source.wait_migration("failed")
    assert (source.run_state(), destination.run_state()) == ("running", "inmigrate")


def test_several_channels_only_there(qemu, serve, image, content):
    """QEMU with multifd, ours without: refused, and where both have it, it goes well."""
    source, destination = qemu(ram=image), serve(incoming="defer")
    agree(source)
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    assert "switch multifd on on both sides" in destination.wait_migration("failed")["error-desc"]
    source.wait_migration("failed")
    assert source.run_state() == "running"

    # Another source: QEMU 7.2 may never let go of one whose channels were turned away ("duplicate yank instance").
    source = qemu(ram=image)
    agree(source, destination)
    source.command("migrate", uri=destination.listen())
    source.wait_migration("completed")
    destination.wait_arrived()
    assert_same_memory(destination.memory(SIZE), content)


GOLDEN = {"qemu7-none-multifd-zlib": "zlib", "qemu10-none-multifd-zstd": "zstd", "qemu10-none-multifd": "none"}


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_streams_load(serve, tmp_path, name):
    facts = json.loads((STREAMS / f"{name}.json").read_text())
    streams = [lzma.decompress((STREAMS / file).read_bytes()) for file in facts["files"]]
    peer = serve("-m", f"{facts['ram_bytes'] >> 20}M", incoming="defer")
    agree(peer, channels=len(streams) - 1, method=GOLDEN[name])
    peer.listen(f"unix:{tmp_path}/channel")
    with contextlib.ExitStack() as stack:
        for stream in reversed(streams):
            channel = stack.enter_context(socket.socket(socket.AF_UNIX))
            channel.settimeout(30)
            channel.connect(f"{tmp_path}/channel")
            sender = threading.Thread(target=channel.sendall, args=(stream,))
            sender.start()
            stack.callback(sender.join)
        peer.wait_migration("completed")
    assert hashlib.sha256(peer.memory(facts["ram_bytes"])).hexdigest() == facts["ram_sha256"]
