"""Where nothing can go to or come from: the error names the URI and the cause, and the next attempt succeeds."""

import json
import socket

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.migration.stream import Saving
from qmig_e2k.testing import Proxy, pair
from support import PAGE, wait_until

SIZE = 4 << 20  # more than a pipe holds


@pytest.fixture
def sides():
    """A busy source, every page of which has been written, and a destination."""
    with pair(size=SIZE) as (source, destination):
        source.vm.start()
        wait_until(lambda: source.emulator.value > 2 * SIZE // 4096, what="a write to every page")
        yield source, destination


@pytest.fixture
def places(tmp_path):
    """What the URIs below leave open: a folder, a port that is taken, one where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"folder": tmp_path, "busy": server.getsockname()[1], "closed": closed}


def answer(vm):
    return json.loads(vm.machine.control.query_migrate())


def assert_moves(source, destination):
    """The same machine moves now, and not a write is lost."""
    uri, arrival = destination.listen()
    source.vm.migrate(uri).wait(20)
    arrival.wait(20)
    assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")
    destination.vm.stop()
    assert destination.emulator.value >= source.emulator.value
    destination.emulator.check()


def outgoing(vm, uri):
    vm.migrate(uri).wait(20)


def incoming(vm, uri):
    vm.incoming(uri).wait(20)


@pytest.mark.parametrize(
    ("uri", "kind", "cause"),
    [
        ("tcp:127.0.0.1:{closed}", "connect", "Connection refused"),
        ("unix:{folder}/nobody", "connect", "No such file"),
        ("unix:{folder}/" + 120 * "x", "bad-uri", "107|108"),
        ("file:{folder}/missing/stream", "connect", "No such file"),
        ("file:{folder}", "connect", "Is a directory"),
        ("file:/dev/full", "io", "No space left"),
        ("exec:exit 3", "closed", "ended with status 3"),
        ("exec:exec cat >/dev/full", "closed", "ended with status 1"),
        ("exec:kill -9 $$", "closed", "killed by signal 9"),
        ("fd:missing", "invalid-argument", "missing"),
        ("fd:9999", "invalid-argument", "9999"),
        ("tcp:127.0.0.1", "bad-uri", "port"),
        ("rdma:host:1", "unsupported", "rdma"),
        ("gopher:host", "bad-uri", "gopher"),
        ("", "bad-uri", None),
    ],
)
def test_nowhere_to_go(sides, places, uri, kind, cause):
    source, destination = sides
    uri = uri.format(**places)
    with pytest.raises(MigrationError, match=cause) as caught:
        outgoing(source.vm, uri)
    assert caught.value.kind == kind
    assert uri in str(caught.value)
    assert answer(source.vm)["status"] == "failed"
    assert answer(source.vm)["error-desc"] == str(caught.value)
    assert source.vm.run_state == "running"
    value = source.emulator.value
    wait_until(lambda: source.emulator.value > value, what="another write")
    assert_moves(source, destination)


@pytest.mark.parametrize(
    ("uri", "kind", "cause"),
    [
        ("tcp:127.0.0.1:{busy}", "listen", "Address.*in use"),
        ("tcp:192.0.2.1:0", "listen", "Cannot assign"),
        ("unix:{folder}/missing/socket", "listen", "No such file"),
        ("file:{folder}/missing", "listen", "No such file"),
        ("file:{folder}", "listen", "Is a directory"),
        ("file:/dev/null", "truncated", "ends"),
        ("exec:exit 3", "io", "status 3"),
        ("exec:no-such-command-here", "io", "status 127"),
        ("fd:missing", "invalid-argument", "missing"),
        ("tcp:127.0.0.1", "bad-uri", "port"),
        ("gopher:host", "bad-uri", "gopher"),
    ],
)
def test_nowhere_to_come_from(sides, places, uri, kind, cause):
    source, destination = sides
    with pytest.raises(MigrationError, match=cause) as caught:
        incoming(destination.vm, uri.format(**places))
    assert caught.value.kind == kind
    assert destination.vm.run_state == "inmigrate"
    assert answer(destination.vm) == {"status": "failed", "error-desc": str(caught.value)}
    assert_moves(source, destination)


def test_a_command_that_dies_early_is_noticed_in_time():
    """A machine that fits into a pipe has been written before anybody has read it."""
    with pair(size=16 * PAGE) as (source, destination):
        source.vm.start()
        with pytest.raises(MigrationError, match="status 3 before it had read everything") as caught:
            source.vm.migrate("exec:head -c 100 >/dev/null; exit 3").wait(20)
        assert caught.value.kind == "closed"
        assert source.vm.run_state == "running"
        assert_moves(source, destination)


def test_a_command_that_fails_after_the_end(sides):
    """A command that has read all of it may have handed the machine on: nobody knows whether it runs there."""
    source, _ = sides
    with pytest.raises(MigrationError, match="ended with status 3") as caught:
        source.vm.migrate("exec:cat >/dev/null; exit 3").wait(20)
    assert caught.value.kind == "ownership-unknown"
    assert "ownership is unknown" in answer(source.vm)["error-desc"]
    assert source.vm.run_state == "postmigrate"


def test_the_last_bytes_are_lost():
    """The cut falls behind the commit: neither side runs, and the source says that it does not know."""
    with pair(size=SIZE) as (source, destination):
        uri, arrival = destination.listen()
        with Proxy(int(uri.rpartition(":")[2])) as proxy:
            source.vm.migrate(proxy.uri).wait(20)
            arrival.wait(20)
    whole = proxy.forwarded  # counted to the last byte once its threads have ended
    with pair(size=SIZE) as (source, destination):
        # only the end marker and the description come after the commit
        tail = len(Saving(source.vm.machine.registry, source.vm.machine.configuration()).devices()[1])
        uri, arrival = destination.listen()
        with Proxy(int(uri.rpartition(":")[2]), cut_forward=whole - tail) as proxy:
            with pytest.raises(MigrationError) as caught:
                source.vm.migrate(proxy.uri).wait(20)
            with pytest.raises(MigrationError):
                arrival.wait(20)
    assert caught.value.kind == "ownership-unknown"
    assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "inmigrate")
