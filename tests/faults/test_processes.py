"""Failures between real processes, as a client of QMP sees them."""

import lzma
import socket
import subprocess
import sys

import pytest

from qmig_e2k.monitor.client import QmpError
from support import STREAMS, assert_same_memory, wait_until, written

SIZE = 32 << 20
BUSY = ("-m", "32M", "--guest", "random,wss=8M,rate=200000")


def under_way(peer):
    """Waits until memory is being sent."""
    wait_until(lambda: peer.migration().get("ram", {}).get("transferred", 0) > 1 << 20, what="the first MiB")


def assert_failed(peer, run_state):
    """Status failed, with a reason; the process answers; returns the reason."""
    answer = peer.wait_migration("failed")
    assert peer.run_state() == run_state
    return answer["error-desc"]


def assert_moves(source, destination):
    """The machine moves now; its guest stays stopped there, so both must hold the same."""
    source.command("migrate-set-parameters", max_bandwidth=0)
    uri = destination.listen()
    source.command("migrate", uri=uri)
    source.wait_migration("completed")
    destination.wait_arrived()
    assert (source.run_state(), destination.run_state()) == ("postmigrate", "paused")
    assert_same_memory(destination.memory(SIZE), source.memory(SIZE))


@pytest.fixture
def source(serve):
    """A busy machine that sends 4 MiB a second."""
    made = serve(*BUSY)
    made.command("cont")
    made.command("migrate-set-parameters", max_bandwidth=4 << 20)
    wait_until(lambda: written(made.memory(8 << 20)), what="a write to every page of the working set")
    return made


def test_the_destination_is_killed(serve, source):
    destination, other = serve("-m", "32M", incoming="defer"), serve("-m", "32M", incoming="defer")
    source.command("migrate", uri=destination.listen())
    under_way(source)
    destination.process.kill()
    assert "closed" in assert_failed(source, "running")
    assert_moves(source, other)


def test_the_source_is_killed(serve, source):
    destination, other = serve("-m", "32M", incoming="defer"), serve("-m", "32M")
    source.command("migrate", uri=destination.listen())
    under_way(source)
    source.process.kill()
    assert "the stream ends" in assert_failed(destination, "inmigrate")
    other.command("cont")
    assert_moves(other, destination)


def test_a_refused_machine_and_then_the_right_one(serve, source):
    destination = serve("-m", "32M", incoming="defer")
    wrong = serve("-m", "16M", machine="e2k")
    wrong.command("migrate", uri=destination.listen())
    assert "e2k-1.0" in assert_failed(destination, "inmigrate")
    assert assert_failed(wrong, "prelaunch")
    assert_moves(source, destination)


def test_refused_files_and_then_a_machine(serve, tmp_path):
    stream = lzma.decompress((STREAMS / "qemu7-none-plain.stream.xz").read_bytes())
    destination = serve("-m", "16M", incoming="defer")
    for name, content, words in [
        ("empty", b"", "the stream ends"),
        ("text", b"Dear Sir or Madam", "0x44656172"),
        ("old", stream[:4] + b"\0\0\0\2", "version 2"),
        ("cut", stream[:-2000], "the stream ends"),
        ("strange", stream.replace(b"\5timer", b"\5tamer"), "tamer/0"),
        ("longer", stream.replace(b"\3ram\0\0\0\0\1", b"\3ram\0\0\0\0\2", 1), "0x2000000"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        destination.command("migrate-incoming", uri=f"file:{path}")
        assert words in assert_failed(destination, "inmigrate")
    (tmp_path / "good").write_bytes(stream)
    destination.command("migrate-incoming", uri=f"file:{tmp_path}/good")
    destination.wait_migration("completed")
    assert destination.run_state() == "prelaunch"


def test_refused_commands_and_then_a_machine(serve, source):
    destination = serve("-m", "32M", incoming="defer")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QmpError, match=f"127.0.0.1:{port}.*in use"):
            destination.command("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
    with pytest.raises(QmpError, match="nonsense"):
        source.command("migrate", uri="nonsense:1")
    with pytest.raises(QmpError, match=r"/missing/stream: .*No such file"):
        source.command("migrate", uri=f"file:{source.folder}/missing/stream")
    source.command("migrate", uri=f"tcp:127.0.0.1:{port}")
    assert "refused" in assert_failed(source, "running")
    source.command("migrate", uri="file:/dev/full")
    assert "No space left" in assert_failed(source, "running")
    source.command("migrate", uri="exec:exit 3")
    assert "status 3" in assert_failed(source, "running")
    assert_moves(source, destination)


@pytest.mark.parametrize("option", ["--incoming", "--qmp"])
def test_an_address_in_use_at_the_start(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "qmig_e2k", "serve", "-M", "none", "-m", "1M", option, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert address in line
    assert "in use" in line
