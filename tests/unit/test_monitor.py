"""The QMP transport: with the real client `qemu.qmp`, and while Python is stuck or leaves."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from qemu.qmp import EventListener, ExecInterruptedError, QMPClient
from qemu.qmp.qmp_client import ExecuteError

from qmig_e2k._core import Control, MigrationError, Monitor
from support import wait_until

PACKAGE = "qmig_e2k 0.1.0"


@pytest.fixture
def control():
    return Control()


@pytest.fixture
def monitor(control):
    made = Monitor(control, ["stop", "add", "claim", "quit"], PACKAGE)
    yield made
    made.close()


@pytest.fixture
def path(monitor, tmp_path):
    found = tmp_path / "qmp"
    assert monitor.listen(f"unix:{found}") == f"unix:{found}"
    return str(found)


@pytest.fixture
def worker(control, monitor):
    """What a machine's Python side does: answer commands until the monitor is closed."""

    def work():
        while (command := monitor.next_command()) is not None:
            arguments = json.loads(command.arguments)
            if command.name == "stop":
                control.emit("STOP")
                command.reply("{}")
            elif command.name == "add":
                command.reply(json.dumps(sum(arguments["terms"])))
            elif command.name == "claim":
                fd = command.take_fd(arguments["fdname"])
                if fd is None:
                    command.fail("no such descriptor", "DeviceNotFound")
                else:
                    os.write(fd, b"claimed")
                    os.close(fd)
                    command.reply("{}")

    thread = threading.Thread(target=work)
    thread.start()
    yield
    monitor.close()
    thread.join(20)
    assert not thread.is_alive()


def session(path, body):
    """Runs `body(client)` with a connected qemu.qmp client."""

    async def main():
        client = QMPClient("test")
        await client.connect(path)
        try:
            return await body(client)
        finally:
            await client.disconnect()

    return asyncio.run(main())


@pytest.mark.usefixtures("worker")
def test_qemu_qmp(path):
    async def body(client):
        assert client.greeting.QMP.version["package"] == PACKAGE
        assert await client.execute("query-status") == {"status": "prelaunch", "singlestep": False, "running": False}
        assert await client.execute("add", {"terms": [1, 2, 3]}) == 6
        # Many at once: each finds its own answer.
        jobs = [client.execute("add", {"terms": [n, n]}) for n in range(50)]
        assert await asyncio.gather(*jobs) == [2 * n for n in range(50)]
        with client.listener("STOP") as events:
            await client.execute("stop")
            event = await asyncio.wait_for(events.get(), 20)
        assert abs(event["timestamp"]["seconds"] - time.time()) < 60
        for request, kind in [
            (("nope", None), "CommandNotFound"),
            (("query-status", {"x": 1}), "GenericError"),
            (("migrate-pause", None), "GenericError"),
        ]:
            with pytest.raises(ExecuteError) as caught:
                await client.execute(*request)
            assert caught.value.error_class == kind
        # An error for a malformed request carries its id, so the client keeps the connection.
        reply = await client._raw({"execute": "query-status", "surprise": 1, "id": "x"}, assign_id=False)
        assert (reply["id"], reply["error"]["class"]) == ("x", "GenericError")
        assert await client.execute("query-migrate") == {}

    session(path, body)
    session(path, body)


@pytest.mark.usefixtures("worker")
def test_descriptors(path):
    ours, theirs = socket.socketpair()

    async def body(client):
        client.send_fd_scm(theirs.fileno())
        await client.execute("getfd", {"fdname": "channel"})
        theirs.close()
        await client.execute("claim", {"fdname": "channel"})
        with pytest.raises(ExecuteError) as caught:
            await client.execute("claim", {"fdname": "channel"})
        assert caught.value.error_class == "DeviceNotFound"

    with ours:
        ours.settimeout(20)
        session(path, body)
        assert ours.recv(100) == b"claimed"
        assert ours.recv(100) == b""


@pytest.mark.usefixtures("worker")
def test_events_reach_every_client(path, control):
    async def body(first):
        second = QMPClient("second")
        await second.connect(path)
        listeners = [EventListener(), EventListener()]
        for client, listener in zip((first, second), listeners, strict=True):
            client.register_listener(listener)
        for n in range(100):
            control.emit("N", json.dumps({"n": n}))
        for listener in listeners:
            got = [(await asyncio.wait_for(listener.get(), 20))["data"]["n"] for _ in range(100)]
            assert got == list(range(100))
        await second.disconnect()

    session(path, body)


def test_close_while_a_client_waits(path, monitor):
    async def body(client):
        job = asyncio.ensure_future(client.execute("stop"))
        command = await asyncio.to_thread(monitor.next_command, 20)
        assert command.name == "stop"
        monitor.close()
        with pytest.raises(ExecInterruptedError):
            await job
        command.reply("{}")
        assert monitor.next_command() is None

    with pytest.raises(EOFError):
        session(path, body)
    assert not Path(path).exists()


def test_command_misuse(path, monitor):
    raw = socket.socket(socket.AF_UNIX)
    with raw, raw.makefile("rb") as lines:
        raw.settimeout(20)
        raw.connect(path)
        raw.sendall(b'{"execute":"qmp_capabilities"}{"execute":"add","arguments":{"terms":[1.5]},"id":1}')
        lines.readline()
        lines.readline()
        command = monitor.next_command(20)
        assert (command.name, json.loads(command.arguments), command.client) == ("add", {"terms": [1.5]}, 1)
        with pytest.raises(ValueError, match="no JSON"):
            command.reply("{")
        command.fail("grün", "DeviceNotActive")
        with pytest.raises(MigrationError) as caught:
            command.reply("{}")
        assert caught.value.kind == "invalid-state"
        line = lines.readline()
        assert line.endswith(b"\r\n")
        assert b"gr\\u00FCn" in line
        assert json.loads(line) == {"error": {"class": "DeviceNotActive", "desc": "grün"}, "id": 1}
        raw.sendall(b'{"execute":"add","id":2}')
        monitor.next_command(20)  # lost at once
        assert json.loads(lines.readline())["error"]["class"] == "GenericError"


def test_listen_errors(path, monitor, tmp_path):
    for address in (f"unix:{path}", f"unix:{tmp_path}/none/qmp", "tcp:127.0.0.1", "vc:80x24"):
        with pytest.raises(MigrationError) as caught:
            monitor.listen(address)
        assert caught.value.kind == "listen"
        assert address in str(caught.value)
    assert monitor.next_command(0) is None
    with pytest.raises(ValueError, match="timeout"):
        monitor.next_command(-1)


def child(source, *arguments, **options):
    """A Python process that runs `source`."""
    command = [sys.executable, "-c", textwrap.dedent(source), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


# A client of its own process: says "ready", and at "go" asks without a pause until it has asked `count` times.
PROBE = """
    import json, socket, sys, time
    path, count = sys.argv[1], int(sys.argv[2])
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(path)
    lines = client.makefile("rb")
    def ask(name):
        begun = time.monotonic()
        client.sendall(json.dumps({"execute": name}).encode())
        while "event" in (answer := json.loads(lines.readline())): pass
        return time.monotonic() - begun, answer["return"]
    lines.readline()
    ask("qmp_capabilities")
    print("ready", flush=True)
    sys.stdin.readline()
    time.sleep(0.2)  # the holder is inside its call by now; `begun` below says whether it was
    begun = time.monotonic()
    status = [ask("query-status") for _ in range(count)]
    cancel = ask("migrate_cancel")
    after = ask("query-migrate")
    print(json.dumps({"begun": begun, "ended": time.monotonic(), "status": max(s[0] for s in status),
                      "states": sorted({s[1]["status"] for s in status}), "cancel": cancel[0], "after": after}))
"""


def test_answers_while_a_thread_holds_the_interpreter(path, control):
    import ctypes

    seconds = 5
    control.begin_outgoing()
    control.set_outgoing_status("setup", "active")
    probe = child(PROBE, path, "50")
    assert probe.stdout.readline() == "ready\n"
    probe.stdin.write("go\n")
    probe.stdin.flush()
    begun = time.monotonic()
    # PyDLL keeps the interpreter lock over the call: no Python thread of this process can run.
    ctypes.PyDLL(None).usleep(seconds * 1_000_000)
    ended = time.monotonic()
    report = json.loads(probe.communicate(timeout=20)[0])
    assert ended - begun >= seconds
    assert begun < report["begun"] < report["ended"] < ended
    assert report["states"] == ["prelaunch"]
    assert report["status"] < 0.1, report
    assert report["cancel"] < 0.1, report
    assert report["after"][1]["status"] == "cancelling"
    assert control.finish_outgoing() == "cancelled"
    assert control.owned()


# A server in its own process: says when it listens, and serves `quit` in the way that its last argument names.
SERVER = """
    import ctypes, sys
    from qmig_e2k._core import Control, Monitor
    monitor = Monitor(Control(), ["quit"], "p")
    monitor.handle_signals()
    monitor.listen("unix:" + sys.argv[1])
    print("ready", flush=True)
    if sys.argv[2] == "stuck":
        monitor.arm_exit(0.2)
        ctypes.PyDLL(None).usleep(60_000_000)
    command = monitor.next_command()
    assert command.name == "quit"
    print("quit from", command.client, flush=True)
    command.reply("{}")
    if sys.argv[2] == "hang":
        ctypes.PyDLL(None).usleep(60_000_000)
    monitor.close()
    sys.exit(3)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_quit(tmp_path, number):
    path = tmp_path / "qmp"
    server = child(SERVER, str(path), "well")
    assert server.stdout.readline() == "ready\n"
    server.send_signal(number)
    out, _ = server.communicate(timeout=20)
    assert (out, server.returncode) == ("quit from 0\n", 3)
    assert not path.exists()


def test_a_stuck_process_ends_all_the_same(tmp_path):
    path = tmp_path / "qmp"
    server = child(SERVER, str(path), "stuck")
    assert server.stdout.readline() == "ready\n"
    server.communicate(timeout=20)
    assert server.returncode == 0
    assert not path.exists()


def test_a_signal_ends_a_stuck_process_within_its_grace(tmp_path):
    path = tmp_path / "qmp"
    server = child(SERVER, str(path), "hang")
    assert server.stdout.readline() == "ready\n"
    begun = time.monotonic()
    server.send_signal(signal.SIGTERM)
    out, _ = server.communicate(timeout=20)
    assert (out, server.returncode) == ("quit from 0\n", 0)
    assert 4 < time.monotonic() - begun < 15
    assert not path.exists()


def test_a_killed_process_leaves_a_path_that_can_be_taken(tmp_path):
    path = tmp_path / "qmp"
    server = child(SERVER, str(path), "well")
    assert server.stdout.readline() == "ready\n"
    server.kill()
    server.communicate(timeout=20)
    wait_until(path.exists)
    monitor = Monitor(Control(), [], PACKAGE)
    assert monitor.listen(f"unix:{path}") == f"unix:{path}"
    monitor.close()
    assert not path.exists()
