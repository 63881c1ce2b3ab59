"""A source that goes silent: the destination can be asked, told and freed all the while, and takes the next one."""

import socket
import struct
import time

import pytest

from qmig_e2k.monitor.client import QmpError
from support import mixed_ram, wait_until

HEADER = struct.pack(">II", 0x5145564D, 3)
CONFIGURATION = b"\x07" + struct.pack(">I", 4) + b"none"
PROMPT_S = 1.0


@pytest.fixture
def destination(serve):
    return serve("-m", "1M", incoming="defer")


def connect(peer):
    """A source of our own."""
    host, _, port = peer.listen().removeprefix("tcp:").rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def promptly(peer, command, **arguments):
    """The answer to `command`, which must not wait for anybody."""
    begun = time.monotonic()
    answer = peer.command(command, **arguments)
    assert time.monotonic() - begun < PROMPT_S, f"{command} waited"
    return answer


def ended(source):
    """Whether the other end has hung up; a reset will do."""
    source.settimeout(20)
    try:
        while source.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def check_cancelled(destination, source):
    """It has failed by our own word, and the source hears of it."""
    assert promptly(destination, "migrate_cancel") == {}
    assert ended(source)
    assert "cancelled" in destination.wait_migration("failed")["error-desc"]
    assert destination.run_state() == "inmigrate"
    assert promptly(destination, "migrate_cancel") == {}, "never an error"


def check_moves(serve, destination, tmp_path):
    """The next source is served."""
    memory = mixed_ram(1 << 20)
    (tmp_path / "ram").write_bytes(memory)
    source = serve("-m", "1M", ram=tmp_path / "ram")
    source.command("migrate", uri=destination.listen())
    source.wait_migration()
    destination.wait_arrived()
    assert destination.memory(1 << 20) == memory


@pytest.mark.parametrize("sent", [b"", HEADER[:5], HEADER + CONFIGURATION])
def test_cancel(serve, destination, tmp_path, sent):
    with connect(destination) as source:
        source.sendall(sent)
        wait_until(lambda: destination.migration().get("status") == "active", what="the connection")
        check_cancelled(destination, source)
    check_moves(serve, destination, tmp_path)


def test_cancel_does_not_end_listening(serve, destination, tmp_path):
    uri = destination.listen()
    assert promptly(destination, "migrate_cancel") == {}
    assert "status" not in destination.migration()
    source = serve("-m", "1M")
    source.command("migrate", uri=uri)
    source.wait_migration()


def test_in_the_middle_of_a_device(serve, destination, tmp_path):
    with connect(destination) as source:
        timer = b"\x04" + struct.pack(">I", 0) + b"\x05timer" + struct.pack(">II", 0, 2)
        source.sendall(HEADER + CONFIGURATION + timer + b"\0\0\0")
        wait_until(lambda: destination.migration().get("status") == "active", what="the connection")
        assert promptly(destination, "query-status")["status"] == "inmigrate"
        for command in ("stop", "cont"):
            assert promptly(destination, command) == {}
        for command, arguments in {"system_reset": {}, "migrate-incoming": {"uri": "tcp:127.0.0.1:0"}}.items():
            with pytest.raises(QmpError):
                promptly(destination, command, **arguments)
        check_cancelled(destination, source)
    check_moves(serve, destination, tmp_path)
