"""A process whose Python is stuck with the interpreter lock held: it can be watched, and its migration cancelled."""

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time

from qmig_e2k.monitor.client import QmpClient
from support import wait_until

STUCK_S = 5
LATENCY_S = 0.2

HOST = textwrap.dedent("""
    import ctypes, json, sys
    from qmig_e2k import MigrationError, Vm

    qmp, target, seconds = sys.argv[1:]
    with Vm("none") as vm:
        ram = vm.add_ram("ram", 64 << 20)
        ram.numpy()[::4096] = 1
        vm.start()
        vm.serve_qmp(qmp)
        vm.set_parameters(max_bandwidth=4 << 20)
        migration = vm.migrate(target)
        while not migration.info().get("ram", {}).get("transferred"):
            pass
        print("stuck", flush=True)
        ctypes.PyDLL(None).usleep(int(seconds) * 1_000_000)  # called with the lock held
        print("free", flush=True)
        try:
            migration.wait(10)
        except MigrationError as error:
            print(json.dumps([error.kind, vm.run_state]), flush=True)
""")


def test_seen_and_cancelled(tmp_path):
    address = f"unix:{tmp_path}/qmp"
    received = 0

    def drain():
        nonlocal received
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 16):
                received += len(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = threading.Thread(target=drain)
        sink.start()
        target = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-c", HOST, address, target, str(STUCK_S)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
            assert host.stdout
            with QmpClient(address, alive=lambda: host.poll() is None) as qmp:
                assert host.stdout.readline() == "stuck\n"
                begun = time.monotonic()

                def ask(name):
                    sent = time.monotonic()
                    value = qmp.execute(name)
                    assert time.monotonic() - sent < LATENCY_S, name
                    return value

                before, at = ask("query-migrate")["ram"]["transferred"], received
                assert ask("query-status")["status"] == "running"
                # the RAM loop needs no Python either
                wait_until(lambda: ask("query-migrate")["ram"]["transferred"] > before + (1 << 20), 2, "more pages")
                assert received > at
                assert ask("query-migrate")["status"] == "active"
                assert ask("migrate_cancel") == {}
                sink.join(1)
                assert not sink.is_alive(), "the channel is cut at once"
                assert ask("query-migrate")["status"] in ("cancelling", "cancelled")
                assert ask("query-status")["status"] == "running"
                assert time.monotonic() - begun < STUCK_S, "all of that while Python was stuck"

                assert host.stdout.readline() == "free\n"
                assert json.loads(host.stdout.readline()) == ["cancelled", "running"]


WAITING = textwrap.dedent("""
    import ctypes, json, sys
    from qmig_e2k import MigrationError, Vm

    qmp, seconds = sys.argv[1:]
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20)
        vm.serve_qmp(qmp)
        arrival = vm.incoming("tcp:127.0.0.1:0")
        print(arrival.addresses[0]["port"], flush=True)
        while vm.machine.control.incoming_status != "active":
            pass
        print("stuck", flush=True)
        ctypes.PyDLL(None).usleep(int(seconds) * 1_000_000)  # called with the lock held
        print("free", flush=True)
        try:
            arrival.wait(10)
        except MigrationError as error:
            print(json.dumps([error.kind, vm.run_state]), flush=True)
""")


def test_a_silent_source_is_sent_away(tmp_path):
    address = f"unix:{tmp_path}/qmp"
    command = [sys.executable, "-c", WAITING, address, str(STUCK_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout
        port = int(host.stdout.readline())
        with (
            socket.create_connection(("127.0.0.1", port), 20) as source,
            QmpClient(address, alive=lambda: host.poll() is None) as qmp,
        ):
            assert host.stdout.readline() == "stuck\n"
            begun = time.monotonic()
            assert qmp.execute("query-migrate")["status"] == "active"
            assert qmp.execute("migrate_cancel") == {}
            assert source.recv(1) == b""
            assert time.monotonic() - begun < LATENCY_S
            assert host.stdout.readline() == "free\n"
            assert json.loads(host.stdout.readline()) == ["cancelled", "inmigrate"]
