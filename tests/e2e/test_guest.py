"""What the demo is for: one byte flipped, one write lost or one write doubled anywhere, and it says so and exits 1."""

import io
import mmap
import re
import socket
import tempfile
import threading

import numpy as np
import pytest

from qmig_e2k import Vm, cli, demo
from qmig_e2k._core import ModelGuest
from qmig_e2k.e2k import build
from support import PAGE, wait_until

SIZE = 32 << 20
WORKING_SET = 8 << 20
GUEST = "random,threads=2,wss=8M,rate=20000"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A guest that has less to write needs less of a start."""
    monkeypatch.setattr(demo, "HEAD_START_S", 0.2)
    monkeypatch.setattr(demo, "PAUSE_S", 0.1)


@pytest.fixture
def run():
    """Runs the demo; returns its exit status and what it printed."""

    def run(**options):
        out = io.StringIO()
        status = demo.run(ram=f"{SIZE >> 20}M", guest=GUEST, out=out, **options)
        return status, out.getvalue()

    return run


def test_a_machine_that_arrives_whole(run):
    status, text = run()
    assert status == 0, text
    assert re.search(r"^verified: [1-9]\d+ steps replayed, RAM equal$", text.splitlines()[-1])
    assert len(re.findall(r"^ +[\d.]+ s +round +\d+: ", text, re.MULTILINE)) >= 2
    assert len(re.findall(r"^moved in [\d.]+ s: downtime [\d.]+ ms, ", text, re.MULTILINE)) == 2
    assert re.search(r"^\d+ pages asked for; it is running", text, re.MULTILINE)


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_of_the_command(monkeypatch, status):
    monkeypatch.setattr(demo, "run", lambda: status)
    assert cli.main(["demo"]) == status


def memory_of(path):
    """The destination's RAM, shared with it."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), SIZE), np.uint64)


def flip(qmp, memory):
    """One bit of the last byte that the guest can reach."""
    memory[WORKING_SET // 8 - 1] ^= np.uint64(1 << 56)


def lose(qmp, memory):
    """A slot that the guest writes gets back what it held before."""
    before = memory.copy()
    qmp.execute("cont")
    changed = wait_until(lambda: np.flatnonzero(memory != before).tolist(), what="a write")[0]
    qmp.execute("stop")
    memory[changed] = before[changed]


def double(qmp, memory):
    """A write that the guest is about to do has been done already when it does it."""
    with tempfile.TemporaryDirectory() as folder:
        stream = f"file:{folder}/stream"
        qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": False}])
        qmp.execute("migrate", uri=stream)
        wait_until(lambda: qmp.execute("query-migrate")["status"] == "completed", what="a copy of the machine")
        at, value = next_write(stream)
    memory[at] = value
    qmp.execute("cont")
    wait_until(lambda: memory[at] != value, what="the same write again")
    qmp.execute("stop")


def next_write(stream):
    """Index and value of a write that the guest of a stored machine does soon."""
    hardware = build("e2k", SIZE, cpus=2)
    with Vm(hardware, cpus=2) as vm:
        blocks = [vm.add_ram(spec.name, spec.size) for spec in hardware.blocks]
        vm.incoming(stream).wait(20)
        guest = ModelGuest(blocks[0], "idle", threads=2)
        for vcpu, registers in enumerate(hardware.guest_state()):
            guest.set_registers(vcpu, registers)
        memory = blocks[0].numpy().view(np.uint64)
        before = memory.copy()
        steps = guest.steps()
        guest.start()
        wait_until(lambda: guest.steps() > steps, what="a step")
        guest.stop()
        at = np.flatnonzero(memory != before)[0]
        return at, memory[at].copy()


@pytest.mark.parametrize("change", [flip, lose, double])
def test_a_machine_that_does_not(run, change):
    def tamper(qmp, path):
        assert qmp.execute("x-verify")["equal"]
        change(qmp, memory_of(path))
        verdict = qmp.execute("x-verify")
        assert not verdict["equal"]
        assert verdict["first-difference"] < WORKING_SET

    status, text = run(tamper=tamper)
    assert status == 1
    assert re.search(r"^NOT EQUAL after [1-9]\d+ steps: first difference at 0x[0-9a-f]+$", text.splitlines()[-1]), text


class Garbler(threading.Thread):
    """Relays one connection and flips one bit of a byte on its way to `port`."""

    def __init__(self, port, at):
        super().__init__()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self._port, self._at = port, at

    def run(self):
        with (
            self._server,
            self._server.accept()[0] as source,
            socket.create_connection(("127.0.0.1", self._port)) as to,
        ):
            back = threading.Thread(target=self._relay, args=(to, source, -1))
            back.start()
            self._relay(source, to, self._at)
            back.join()

    @staticmethod
    def _relay(source, to, at):
        while data := bytearray(source.recv(1 << 16)):
            if 0 <= at < len(data):
                data[at] ^= 1
            at -= len(data)
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


def test_a_bit_that_flips_on_the_way(serve):
    options = ("-m", "32M", "--guest", GUEST, "-smp", "2")
    source, destination = serve(*options, machine="e2k"), serve(*options, machine="e2k", incoming="defer")
    source.command("cont")
    wait_until(lambda: any(source.memory(PAGE)), what="a write to the first page")
    source.command("stop")
    # the tenth page record, well inside its 4104 bytes
    relay = Garbler(int(destination.listen().rpartition(":")[2]), 10 * 4104 + 1000)
    relay.start()
    source.command("migrate", uri=relay.uri)
    source.wait_migration("completed")
    destination.wait_arrived()
    relay.join()
    assert source.command("x-verify")["equal"]
    assert not destination.command("x-verify")["equal"]


def test_a_guest_goes_on_after_a_reset(serve):
    """A reset does not clear RAM, so what the guest knows of it stays as well."""
    machine = serve("-m", "32M", "--guest", GUEST, "-smp", "2", machine="e2k")
    machine.command("cont")
    wait_until(lambda: any(machine.memory(PAGE)), what="a write to the first page")
    machine.command("system_reset")
    assert machine.run_state() == "running"
    before = machine.memory(WORKING_SET)
    wait_until(lambda: machine.memory(WORKING_SET) != before, what="a further write")
    machine.command("stop")
    assert machine.command("x-verify")["equal"]
