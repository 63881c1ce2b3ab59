"""`qmig-e2k serve` as its users see it: processes, QMP by a real client, signals, exit status."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from qmig_e2k.monitor.client import QmpClient, QmpError
from support import wait_until

COMMAND = [sys.executable, "-m", "qmig_e2k"]


def refused(peer, command, error_class="GenericError", **arguments):
    with pytest.raises(QmpError) as caught:
        peer.command(command, **arguments)
    assert caught.value.error_class == error_class
    return str(caught.value)


def move(source, destination, uri="tcp:127.0.0.1:0"):
    source.command("migrate", uri=destination.listen(uri))
    info = source.wait_migration()
    destination.wait_arrived()
    return info


def verify(peer):
    """Stop the guest once it has made a step, and have all its steps replayed; returns their number."""

    def stepped():
        peer.command("stop")
        try:
            return peer.command("x-verify")
        except QmpError as error:
            if "has not made a step" not in str(error):
                raise
            peer.command("cont")
            return None

    answer = wait_until(stepped, what="a step of the guest")
    assert answer["equal"] is True
    assert answer["first-difference"] is None
    return answer["steps"]


@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "tcp:[::1]:0", "unix:{}/migrate"])
def test_a_busy_machine_moves(serve, tmp_path, uri):
    guest = ["-m", "32M", "-smp", "2", "--guest", "random,wss=8M,rate=200000"]
    destination = serve(*guest, machine="e2k", incoming="defer")
    source = serve(*guest, "--seed", "7", machine="e2k")
    destination.command("cont")
    source.command("cont")
    move(source, destination, uri.format(tmp_path))
    assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")
    before = verify(destination)
    destination.command("cont")
    wait_until(lambda: destination.command("query-status")["running"], what="running")
    source.command("system_reset")
    assert source.run_state() == "prelaunch"
    assert verify(destination) >= before > 0


@pytest.mark.parametrize("model", ["e8c", "e16c"])
def test_a_busy_machine_with_4_cpus_moves_on_and_on(serve, model):
    guest = ["-m", "64M", "-smp", "4", "-cpu", model, "--guest", "random,wss=16M,rate=200000"]
    peers = [serve(*guest, "--seed", "3", machine="e2k")]
    peers += [serve(*guest, machine="e2k", incoming="defer") for _ in range(2)]
    steps = 0
    for peer in peers:
        peer.command("cont")
    for source, destination in pairwise(peers):
        move(source, destination)
        assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")
        after = verify(destination)
        assert after > steps
        steps = after
        destination.command("cont")


def test_a_busy_machine_whose_memory_is_a_file(serve, tmp_path):
    """On a disk the kernel sees no writes: the model guest reports its own."""
    guest = ["-m", "16M", "--guest", "random,rate=200000"]
    source = serve(*guest, "--mem-path", str(tmp_path / "a"), machine="e2k")
    destination = serve(*guest, "--mem-path", str(tmp_path / "b"), machine="e2k", incoming="defer")
    destination.command("cont")
    source.command("cont")
    move(source, destination)
    assert verify(destination) > 0
    assert (tmp_path / "a").read_bytes() != bytes(16 << 20)


def test_all_pages_of_none_arrive(serve, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 20))
    source = serve("-m", "4M", ram=image)
    destination = serve("-m", "4M", incoming="defer")
    move(source, destination)
    assert destination.memory(4 << 20) == image.read_bytes() + bytes(3 << 20)


@pytest.mark.parametrize("backing", [["--mem", "memfd"], ["--mem-path", "{}"]])
def test_other_backings(serve, tmp_path, backing):
    options = [word.format(tmp_path / "memory") for word in backing]
    image = tmp_path / "image"
    image.write_bytes(os.urandom(65536))
    source = serve("-m", "4M", *options, ram=image)
    destination = serve("-m", "4M", incoming="defer")
    move(source, destination)
    assert destination.memory(65536) == image.read_bytes()


def test_an_inherited_descriptor(serve, tmp_path):
    source = serve("-m", "4M")
    source.command("migrate", uri=f"file:{tmp_path}/stream")
    source.wait_migration()
    qmp = tmp_path / "qmp"
    with (tmp_path / "stream").open("rb") as stream:
        number = stream.fileno()
        command = [*COMMAND, "serve", "-M", "none", "-m", "4M", "--qmp", f"unix:{qmp}", "--incoming", f"fd:{number}"]
        process = subprocess.Popen(command, pass_fds=[number])
    with QmpClient(f"unix:{qmp}", alive=lambda: process.poll() is None) as client:
        wait_until(lambda: client.execute("query-migrate").get("status") == "completed", what="arriving")
        assert client.execute("query-status")["status"] == "prelaunch"
        client.execute("quit")
    assert process.wait(20) == 0


def test_descriptors_of_a_client(serve):
    source, destination = serve("-m", "4M"), serve("-m", "4M", incoming="defer")
    here, there = socket.socketpair()
    clients = [connect(source), connect(destination)]
    for client, end in zip(clients, (here, there), strict=True):
        request = json.dumps({"execute": "getfd", "arguments": {"fdname": "wire"}}).encode()
        socket.send_fds(client, [request], [end.fileno()])
        end.close()
        assert answer(client) == {"return": {}}
    other = connect(source)
    ask(other, "migrate", uri="fd:wire")
    assert "wire" in answer(other)["error"]["desc"], "names are private to the connection"
    ask(clients[1], "migrate-incoming", uri="fd:wire")
    assert answer(clients[1]) == {"return": {}}
    ask(clients[0], "migrate", uri="fd:wire")
    assert answer(clients[0]) == {"return": {}}
    source.wait_migration()
    destination.wait_arrived()
    for client in (*clients, other):
        client.close()


def connect(peer):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(peer.folder / "qmp"))
    assert "QMP" in answer(client)
    ask(client, "qmp_capabilities")
    assert answer(client) == {"return": {}}
    return client


def ask(client, command, **arguments):
    client.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())


def answer(client):
    text = b""
    while not text.endswith(b"\r\n"):
        text += client.recv(1)
    message = json.loads(text)
    return message if "event" not in message else answer(client)


def test_a_real_client(serve):
    source, destination = serve("-m", "4M", "-name", "here"), serve("-m", "4M", incoming="defer")

    async def run():
        clients = QMPClient("source"), QMPClient("destination")
        for client, peer in zip(clients, (source, destination), strict=True):
            await client.connect(str(peer.folder / "qmp"))
        here, there = clients
        assert await here.execute("query-name") == {"name": "here"}
        for client in clients:
            await client.execute(
                "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
            )
        with there.listener(names=("MIGRATION",)) as arrived:
            await there.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
            address = (await there.execute("query-migrate"))["socket-address"][0]
            await here.execute("migrate", {"uri": f"tcp:127.0.0.1:{address['port']}"})
            async for event in arrived:
                if event["data"]["status"] == "completed":
                    break
        with pytest.raises(ExecuteError, match="teleport"):
            await here.execute(
                "migrate-set-capabilities", {"capabilities": [{"capability": "teleport", "state": True}]}
            )
        for client in clients:
            await client.disconnect()

    asyncio.run(asyncio.wait_for(run(), 40))
    source.wait_migration()
    assert destination.run_state() == "prelaunch"


def test_two_clients_at_once(serve):
    peer = serve("-m", "4M")
    with QmpClient(f"unix:{peer.folder}/qmp") as other:
        other.execute("cont")
        assert peer.run_state() == "running"
        assert peer.qmp.wait_event("RESUME")
        assert other.wait_event("RESUME")
        peer.command("stop")
        assert other.execute("query-status")["status"] == "paused"


def test_pause_before_switchover(serve):
    source, destination = serve("-m", "4M", machine="e2k"), serve("-m", "4M", machine="e2k", incoming="defer")
    source.set_capabilities(pause_before_switchover=True)
    source.command("cont")
    assert "pre-switchover" in refused(source, "migrate-continue", state="pre-switchover")
    refused(source, "migrate-continue", state="pre-lunch")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("pre-switchover")
    assert source.run_state() == "finish-migrate"
    refused(source, "cont")
    refused(source, "system_reset")
    source.command("stop")
    source.command("migrate-continue", state="pre-switchover")
    source.wait_migration()
    destination.wait_arrived()


def test_cancel_and_again(serve):
    source, destination = serve("-m", "64M", "--guest", "seq,rate=1000"), serve("-m", "64M", incoming="defer")
    source.command("cont")
    source.command("x-block-prefault", block="ram", offset=0, length=64 << 20)
    source.command("migrate-set-parameters", max_bandwidth=1 << 20, downtime_limit=1)
    for _ in range(3):
        source.command("migrate", uri=destination.listen())
        source.wait_migration("active")
        source.command("migrate_cancel")
        source.wait_migration("cancelled")
        assert source.run_state() == "running"
        wait_until(lambda: destination.migration().get("status") == "failed", what="the destination noticing")
        assert destination.run_state() == "inmigrate"
    source.command("migrate_cancel")
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=300)
    move(source, destination)


def test_refusals(serve):
    peer = serve("-m", "4M")
    assert "either 'uri' or 'channels'" in refused(peer, "migrate")
    assert "'uri' expects a string" in refused(peer, "migrate", uri=5)
    assert "'url' is unexpected" in refused(peer, "migrate", uri="tcp:x:1", url="")
    assert "'blk'" in refused(peer, "migrate", uri="tcp:x:1", blk=True)
    assert "'inc'" in refused(peer, "migrate", uri="tcp:x:1", inc=True)
    assert "postcopy-paused" in refused(peer, "migrate", uri="tcp:x:1", resume=True)
    assert "rdma" in refused(peer, "migrate", uri="rdma:x:1")
    assert "tcp:127.0.0.1:99999" in refused(peer, "migrate", uri="tcp:127.0.0.1:99999")
    assert peer.migration()["status"] == "failed"
    assert "--incoming" in refused(peer, "migrate-incoming", uri="tcp:127.0.0.1:0")
    assert "downtime-limit" in refused(peer, "migrate-set-parameters", downtime_limit=2_000_001)
    assert "downtime-limit" in refused(peer, "migrate-set-parameters", downtime_limit=-1)
    assert "max-bandwidth" in refused(peer, "migrate-set-parameters", max_bandwidth=True)
    assert "'dir' is missing" in refused(peer, "object-add", qom_type="tls-creds-x509", id="tls0")
    assert "'tls0' not found" in refused(peer, "object-del", id="tls0")
    assert "'foo' is unexpected" in refused(peer, "migrate-set-parameters", foo=1)
    assert "x-colo" in refused(peer, "migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}])
    refused(peer, "migrate-set-capabilities", capabilities=[{"capability": "events"}])
    assert "postcopy-ram" in refused(peer, "migrate-start-postcopy")
    assert "postcopy-active" in refused(peer, "migrate-pause")
    assert "postcopy-paused" in refused(peer, "migrate-recover", uri="tcp:x:1")
    assert "network" in refused(peer, "announce-self")
    refused(peer, "closefd", fdname="nothing")
    refused(peer, "teleport", "CommandNotFound")
    refused(peer, "pmemsave", val=0, size=1, filename=str(peer.folder / "absent" / "x"))
    assert "0x400000" in refused(peer, "pmemsave", val=(4 << 20) - 1, size=2, filename=str(peer.folder / "x"))
    assert not (peer.folder / "x").exists()
    assert "other" in refused(peer, "x-block-prefault", block="other", offset=0, length=1)
    refused(peer, "x-block-prefault", block="ram", offset=4 << 20, length=1)
    assert peer.command("query-migrate-parameters")["downtime-limit"] == 300


def test_blockers(serve):
    peer = serve("-m", "4M")
    number = peer.command("x-add-blocker", reason="a passed-through card")["id"]
    assert peer.migration()["blocked-reasons"] == ["a passed-through card"]
    assert "a passed-through card" in refused(peer, "migrate", uri="tcp:127.0.0.1:1")
    peer.command("x-del-blocker", id=number)
    assert "blocked-reasons" not in peer.migration()
    refused(peer, "x-del-blocker", id=number)
    assert "--only-migratable" in refused(serve("-m", "4M", "--only-migratable"), "x-add-blocker", reason="no")


def test_verify_only_while_stopped(serve):
    peer = serve("-m", "4M", "--guest", "random")
    peer.command("cont")
    refused(peer, "x-verify")
    verify(peer)


def test_globals_and_queries(serve):
    options = ("migration.events=on", "migration.max-bandwidth=1G", "migration.x-downtime-limit=20")
    peer = serve("-m", "4M", *(word for option in options for word in ("-global", option)))
    parameters = peer.command("query-migrate-parameters")
    assert (parameters["max-bandwidth"], parameters["downtime-limit"]) == (1 << 30, 20)
    on = [entry["capability"] for entry in peer.command("query-migrate-capabilities") if entry["state"]]
    assert on == ["events"]
    assert peer.command("query-name") == {}
    names = {entry["name"] for entry in peer.command("query-commands")}
    wanted = """getfd closefd x-verify qmp_capabilities query-version query-commands query-name query-status stop cont
        quit
        system_reset migrate migrate-incoming migrate_cancel query-migrate migrate-set-capabilities migrate-continue
        query-migrate-capabilities migrate-set-parameters query-migrate-parameters pmemsave human-monitor-command"""
    assert names >= set(wanted.split())


def test_events_of_a_reset_and_the_end(serve):
    peer = serve("-m", "4M")
    peer.command("system_reset")
    assert peer.qmp.wait_event("RESET")["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
    peer.command("quit")
    assert peer.qmp.wait_event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert peer.process.wait(10) == 0


def test_quit_during_a_postcopy_says_what_is_lost(serve):
    source, destination = serve("-m", "16M"), serve("-m", "16M", incoming="defer")
    source.command("x-block-prefault", block="ram", offset=0, length=16 << 20)
    for peer in (source, destination):
        peer.set_capabilities(postcopy_ram=True)
    slow = {"max_bandwidth": 1 << 16, "max_postcopy_bandwidth": 1 << 16, "downtime_limit": 0}
    source.command("migrate-set-parameters", **slow)
    source.command("migrate", uri=destination.listen())
    source.command("migrate-start-postcopy")
    source.wait_migration("postcopy-active")
    source.command("quit")
    wait_until(lambda: re.search(r"still needs [1-9]\d+ bytes of memory from here", source.words()), what="a warning")
    assert "within 5 s is lost" in source.words()


def test_quit_during_a_migration(serve):
    source, destination = serve("-m", "64M"), serve("-m", "64M", incoming="defer")
    source.command("x-block-prefault", block="ram", offset=0, length=64 << 20)
    source.command("migrate-set-parameters", max_bandwidth=1 << 10, downtime_limit=0)
    source.command("migrate", uri=destination.listen())
    source.wait_migration("active")
    source.command("quit")
    assert source.process.wait(10) == 0
    wait_until(lambda: destination.migration().get("status") == "failed", what="the destination noticing")
    assert destination.run_state() == "inmigrate"
    destination.command("quit")
    assert destination.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("incoming", [None, "tcp:127.0.0.1:0"])
def test_signals_end_it_with_status_0(serve, number, incoming):
    peer = serve("-m", "4M", "--guest", "random", machine="e2k", incoming=incoming)
    peer.command("cont")
    peer.process.send_signal(number)
    assert peer.process.wait(10) == 0
    assert not (peer.folder / "qmp").exists()


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=40, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["serve", "-M", "pc"], 2, "pc"),
        (["serve", "-M", "e2k,tag=on"], 2, "tag=on"),
        (["serve", "-cpu", "z80"], 2, "z80"),
        (["serve", "-cpu", ""], 2, "CPU model '' is none of e2c+, e2s, e8c"),
        (["serve", "-smp", "9"], 2, "9"),
        (["serve", "-m", "1X"], 2, "1X"),
        (["serve", "-m", "4097B"], 2, "4097"),
        (["serve", "--guest", "busy"], 2, "busy"),
        (["serve", "--format", "3.0"], 2, "3.0"),
        (["serve", "-uuid", "x"], 2, "-uuid"),
        (["serve", "-global", "migration.x-colo=on"], 1, "x-colo"),
        (["serve", "-global", "migration.nothing=on"], 2, "nothing"),
        (["serve", "-bios", "/nonexistent/bios"], 1, "/nonexistent/bios"),
        (["serve", "-M", "none", "-bios", "/dev/null"], 2, "-bios"),
        (["serve", "-M", "none,tags=on"], 2, "tags"),
        (["serve", "--incoming", "fd:999"], 2, "fd:999"),
        (["serve", "--incoming", "fd:1"], 2, "fd:1"),
        (["serve", "--incoming", "tcp:192.0.2.1:1"], 1, "tcp:192.0.2.1:1"),
        (["serve", "--incoming", "rdma:host:1"], 1, "rdma"),
        (["serve", "--incoming", "carrier-pigeon:1"], 2, "carrier-pigeon:1"),
        (["serve", "--incoming", "tcp:127.0.0.1:99999"], 2, "99999"),
        (["serve", "--qmp", "qmp.sock"], 2, "qmp.sock"),
        (["serve", "--qmp", "tcp:127.0.0.1"], 2, "tcp:127.0.0.1"),
        (["serve", "--qmp", "unix:/nonexistent/qmp"], 1, "/nonexistent/qmp"),
        (["serve", "-loadvm", "x"], 2, "-loadvm x: say where it is with --snapshot-dir"),
        (["serve", "-loadvm", "x", "--snapshot-dir", ".", "--incoming", "defer"], 2, "exclude each other"),
        (["serve", "-loadvm", "nonesuch", "--snapshot-dir", "."], 1, "there is no snapshot 'nonesuch'"),
        (["serve", "--snapshot-dir", "/dev/null"], 1, "/dev/null"),
        (["serve", "--mem", "memfd", "--mem-path", "x"], 2, "--mem-path"),
        (["analyze", "/nonexistent", "--json"], 1, "/nonexistent"),
        (["analyze"], 2, "name a stream"),
        (["teleport"], 2, "teleport"),
        ([], 2, "COMMAND"),
    ],
)
def test_exit_status_and_one_line(arguments, status, named):
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("incoming", ["tcp:127.0.0.1:0", "defer", None])
def test_quit_has_nothing_to_say(serve, incoming):
    peer = serve("-m", "4M", incoming=incoming)
    peer.command("quit")
    assert peer.process.wait(20) == 0
    assert peer.words() == ""


def test_a_taken_address(tmp_path, serve):
    peer = serve("-m", "4M")
    done = run("serve", "-m", "4M", "--qmp", f"unix:{peer.folder}/qmp")
    assert done.returncode == 1
    assert str(peer.folder / "qmp") in done.stderr


def test_a_file_longer_than_ram(tmp_path):
    long = tmp_path / "long"
    long.write_bytes(bytes(8 << 20))
    done = run("serve", "-M", "none", "-m", "4M", "--mem-path", str(long))
    assert done.returncode == 1
    assert str(long) in done.stderr
    assert long.stat().st_size == 8 << 20


def test_memory_where_the_guest_sees_it(serve, tmp_path):
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"firmware" * 512)
    peer = serve("-m", "3G", "-bios", str(firmware), machine="e2k")
    assert peer.memory(4096, 0x1_0000_0000) == firmware.read_bytes()
    assert peer.memory(4096, (2 << 30) - 4096) == peer.memory(4096, 0x4_0000_0000) == bytes(4096)
    assert peer.memory(4096, 0x4_0000_0000 + (1 << 30) - 4096) == bytes(4096)
    for outside in (2 << 30, 0x4_0000_0000 + (1 << 30), 0x1_0000_0000 + (16 << 20)):
        assert f"{outside:#x}" in refused(peer, "pmemsave", val=outside - 1, size=2, filename=str(tmp_path / "x"))


STUCK = """
import sys
from qmig_e2k._core import Control, Monitor
monitor = Monitor(Control(), ["quit"], "stuck")
monitor.handle_signals()
monitor.listen("unix:" + sys.argv[1])
while True: pass
"""


def test_quit_ends_even_a_process_whose_python_is_stuck(tmp_path):
    path = tmp_path / "qmp"
    with subprocess.Popen([sys.executable, "-c", STUCK, str(path)]) as process:
        with QmpClient(f"unix:{path}", alive=lambda: process.poll() is None) as client, pytest.raises(ConnectionError):
            client.execute("quit")
        assert process.wait(20) == 0
    assert not path.exists()


def test_quit_ends_a_process_that_is_stuck_in_another_command(tmp_path):
    path = tmp_path / "qmp"
    script = STUCK.replace('["quit"]', '["quit", "x-slow"]')
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command) as process, socket.socket(socket.AF_UNIX) as client:
        QmpClient(f"unix:{path}", alive=lambda: process.poll() is None).close()
        client.connect(str(path))
        commands = ("qmp_capabilities", "x-slow", "quit")
        client.sendall(b"".join(b'{"execute": "%s"}\n' % command.encode() for command in commands))
        assert process.wait(20) == 0
    assert not path.exists()


STUCK_AT_EXIT = """
import sys, threading
from qmig_e2k._core import Control, Monitor
monitor = Monitor(Control(), ["quit"], "stuck")
monitor.handle_signals()
monitor.listen("unix:" + sys.argv[1])
threading.Thread(target=threading.Event().wait).start()
monitor.next_command().reply("{}")
monitor.close()
"""


def test_quit_ends_a_process_that_waits_for_a_thread(tmp_path):
    path = tmp_path / "qmp"
    with subprocess.Popen([sys.executable, "-c", STUCK_AT_EXIT, str(path)]) as process:
        with QmpClient(f"unix:{path}", alive=lambda: process.poll() is None) as client:
            client.execute("quit")
        assert process.wait(20) == 0


THREADS_FIRST = """
import os, sys, threading
os.environ["OPENBLAS_NUM_THREADS"] = "4"
import numpy
numpy.ones((500, 500)) @ numpy.ones((500, 500))
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_quit_whichever_threads_were_there_before(tmp_path, number):
    path = tmp_path / "qmp"
    main = "from qmig_e2k.cli import main\nsys.exit(main(['serve', '-m', '4M', '--qmp', 'unix:' + sys.argv[1]]))"
    with subprocess.Popen([sys.executable, "-c", THREADS_FIRST + main, str(path)]) as process:
        with QmpClient(f"unix:{path}", alive=lambda: process.poll() is None) as client:
            process.send_signal(number)
            assert client.wait_event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"
        assert process.wait(20) == 0
    assert not path.exists()


def test_a_signal_ends_a_stuck_process_whichever_threads_were_there_before(tmp_path):
    path = tmp_path / "qmp"
    with subprocess.Popen([sys.executable, "-c", THREADS_FIRST + STUCK, str(path)]) as process:
        QmpClient(f"unix:{path}", alive=lambda: process.poll() is None).close()
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - begun < 15
    assert not path.exists()


def test_doctor():
    done = run("doctor", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["schema"].startswith("qmig_e2k/doctor/")
    assert {"cpu", "cores", "kernel", "thp", "versions"} <= report["host"].keys()
    assert {"userfaultfd", "wp-async", "pagemap-scan"} <= {check["name"] for check in report["checks"]}
    for check in report["checks"]:
        assert check.keys() == {"name", "ok", "detail", "remedy"}
        assert check["ok"] or check["remedy"], "what does not work has a remedy"
    assert "userfaultfd" in run("doctor").stdout


def test_a_program_that_only_listens_ends_when_it_ends(tmp_path):
    script = """
from qmig_e2k import Vm
vm = Vm("none"); vm.add_ram("ram", 1 << 20); vm.incoming("tcp:127.0.0.1:0"); vm.serve_qmp("unix:qmp")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path(tmp_path / "qmp").exists()
