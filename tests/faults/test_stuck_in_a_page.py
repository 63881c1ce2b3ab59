"""A Python program whose machine arrives by postcopy touches pages that do not come: the connection is down.

It can be seen and recovered from outside, whoever is stuck and whatever lock it holds, and then it goes on with the
right bytes.
"""

import hashlib
import subprocess
import sys
import textwrap
import threading

import pytest

from qmig_e2k.monitor.client import QmpClient, QmpError
from support import PAGE, mixed_ram, wait_until

SIZE = 16 << 20
LAST = SIZE - PAGE
"""The background comes there last, and the connection is cut long before."""

HOST = textwrap.dedent("""
    import atexit, hashlib, os, socket, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from qmig_e2k import Vm
    from qmig_e2k.migration import lifetime

    lifetime.FROZEN_S = 1.0

    def say(*words):
        print(*words, flush=True)

    with Vm("none") as vm:
        ram = vm.add_ram("ram", %(size)d)
        memory = ram.numpy()
        vm.set_capabilities(postcopy_ram=True)
        vm.serve_qmp(sys.argv[1])
        arrival = vm.incoming("tcp:127.0.0.1:0")
        say(arrival.addresses[0]["port"])
        for line in sys.stdin:
            command, *numbers = line.split()
            at = [int(number) for number in numbers]
            if command == "touch":  # with the interpreter's lock: no thread of Python goes on before the page is here
                say("touched", hashlib.sha256(memory[at[0] : at[1]].tobytes()).hexdigest())
            elif command in ("receive", "daemon"):  # the kernel touches it, and the lock is free meanwhile
                near, far = socket.socketpair()
                far.sendall(b"x" * (at[1] - at[0]))
                view = memoryview(memory)[at[0] : at[1]]
                def receive():
                    with near, far:
                        say("received", near.recv_into(view))
                if command == "daemon":
                    atexit.register(say, "an end as any other")
                threading.Thread(target=receive, daemon=command == "daemon").start()
            elif command == "pool":  # the same by a thread of an executor
                near, far = socket.socketpair()
                far.sendall(b"x" * (at[1] - at[0]))
                pool = ThreadPoolExecutor()
                pool.submit(near.recv_into, memoryview(memory)[at[0] : at[1]])
            elif command == "mute":
                near, far = os.pipe()
                os.close(near)
                os.dup2(far, 2)
            elif command == "prefault":  # detached: the lock is free meanwhile
                threading.Thread(target=lambda: say("prefaulted", ram.prefault(at[0], at[1] - at[0]))).start()
            elif command == "waiting":
                say("waiting", arrival.waiting)
            elif command == "alive":
                say("alive")
            elif command in ("end", "late"):
                break
            elif command == "wait":
                arrival.wait(30)
                say("complete", hashlib.sha256(memory).hexdigest())
    if command == "late":
        say("closed")
        say("touched", memory[at[0] : at[1]].tobytes())
""") % {"size": SIZE}


class Host:
    """The program, with the source of its machine, and the connection between them down."""

    def __init__(self, source, folder):
        self.folder = folder
        self.address = f"unix:{folder}/host"
        self.source = source
        command = [sys.executable, "-c", HOST, self.address]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)
        port = int(self.line())
        self.qmp = QmpClient(self.address, alive=self.alive, oob=True)
        source.set_capabilities(postcopy_ram=True)
        source.command("migrate-set-parameters", max_bandwidth=1 << 20, max_postcopy_bandwidth=64 << 10)
        source.command("migrate", uri=f"tcp:127.0.0.1:{port}")
        source.command("migrate-start-postcopy")
        self.wait_status("postcopy-active")
        wait_until(lambda: self.ask("query-status")["status"] == "running", what="the machine")
        self.ask("migrate-pause")
        for side in (source.migration, lambda: self.ask("query-migrate")):
            wait_until(lambda side=side: side()["status"] == "postcopy-paused", what="the pause")

    def alive(self):
        return self.process.poll() is None

    def ask(self, command, **arguments):
        """Out of band: whatever Python does, there is an answer."""
        return self.qmp.execute_oob(command, **arguments)

    def wait_status(self, status):
        wait_until(lambda: self.ask("query-migrate").get("status") == status, what=status)

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")

    def line(self):
        return self.process.stdout.readline().strip()

    def recover(self):
        uri = f"unix:{self.folder}/again"
        self.ask("migrate-recover", uri=uri)
        self.source.command("migrate", uri=uri, resume=True)
        self.wait_status("postcopy-active")

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.qmp.close()


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


@pytest.fixture
def host(serve, tmp_path, content):
    (tmp_path / "image").write_bytes(content)
    made = Host(serve("-m", "16M", ram=tmp_path / "image"), tmp_path)
    yield made
    made.close()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def finish(host, content):
    """The rest arrives, and all of it is right."""
    host.source.command("migrate-set-parameters", max_postcopy_bandwidth=0)
    host.tell("wait")
    assert host.line() == f"complete {sha(content)}"
    host.source.wait_migration("completed")
    assert host.ask("query-migrate")["status"] == "completed"


def test_with_the_interpreters_lock(host, content):
    """Everything that a recovery needs works, and what needs Python waits and is counted."""
    assert host.ask("query-migrate")["x-commands-waited"] == 0
    host.tell("touch", LAST, SIZE)
    answers = []
    recovered = threading.Event()

    def ordinary():
        with QmpClient(host.address, deadline=60) as client:
            while not recovered.is_set():  # those that come before the touch are answered
                client.execute("query-migrate-capabilities")
            answers.append(True)

    asking = [threading.Thread(target=ordinary) for _ in range(2)]
    for thread in asking:
        thread.start()
    wait_until(lambda: host.ask("query-migrate")["x-commands-waited"] >= 2, what="two commands that wait")
    assert host.ask("query-status")["status"] == "running"
    with pytest.raises(QmpError, match="postcopy-active"):
        host.ask("migrate-pause")
    assert not answers
    recovered.set()
    for turn in range(3):
        host.recover()
        if turn < 2:
            host.ask("migrate-pause")
            host.wait_status("postcopy-paused")
            wait_until(lambda: host.source.migration()["status"] == "postcopy-paused", what="the pause there")
    assert host.line() == f"touched {sha(content[LAST:])}"
    for thread in asking:
        thread.join(20)
    assert answers == [True, True]
    finish(host, content)
    assert host.ask("query-migrate")["x-commands-waited"] >= 2


def test_in_the_kernel(host, content):
    """`recv_into` the middle of a page: what the page holds around it is as it was at the source."""
    host.tell("receive", LAST + 100, LAST + 300)
    host.tell("alive")
    assert host.line() == "alive"
    host.recover()
    assert host.line() == "received 200"
    finish(host, content[: LAST + 100] + b"x" * 200 + content[LAST + 300 :])


def test_ahead_of_use(host, content):
    host.tell("prefault", LAST - PAGE, SIZE)
    host.tell("alive")
    assert host.line() == "alive"
    host.recover()
    assert host.line() == "prefaulted None"
    host.tell("touch", LAST - PAGE, SIZE)
    assert host.line() == f"touched {sha(content[LAST - PAGE :])}"
    finish(host, content)


def test_by_pmemsave(host, content, tmp_path):
    """An ordinary command of the monitor that reads missing memory waits for it, counted, and gets it."""
    saved = []

    def save():
        with QmpClient(host.address, deadline=60) as client:
            saved.append(client.execute("pmemsave", val=0, size=SIZE, filename=str(tmp_path / "dump")))

    saving = threading.Thread(target=save)
    saving.start()
    wait_until(lambda: host.ask("query-migrate")["x-commands-waited"] == 1, what="the command that waits")
    host.tell("alive")
    assert host.line() == "alive"
    host.recover()
    saving.join(30)
    assert saved == [{}]
    assert sha((tmp_path / "dump").read_bytes()) == sha(content)
    assert host.source.migration()["ram"]["postcopy-requests"] >= 100
    finish(host, content)


def test_its_end(host):
    """A signal ends it, though the thread that is stuck has the lock."""
    host.tell("touch", LAST, SIZE)
    host.process.terminate()
    assert host.process.wait(20) != 0


@pytest.mark.parametrize("how", ["receive", "pool", "mute"])
def test_the_end_of_its_program(host, how):
    """Who waits in the kernel finds no zeros when the machine is closed, and ends with the program."""
    if how == "mute":
        host.tell("mute")
    host.tell("pool" if how == "pool" else "receive", LAST, SIZE)

    def waits():
        host.tell("waiting")
        return host.line() == "waiting 1"

    wait_until(waits, what="a thread that waits")
    host.tell("end")
    assert host.process.wait(60) == 1
    assert host.process.stdout.read() == "", "nothing was received into a page of zeros"


def test_a_page_of_a_machine_that_was_closed(host):
    """Who touches it then stops the whole interpreter for ever: a thread that does not need it ends the process.

    A first thread waits with the interpreter's lock free, so that the memory is not let go.
    """
    host.tell("receive", LAST, SIZE)
    wait_until(lambda: (host.tell("waiting"), host.line())[1] == "waiting 1", what="a thread that waits")
    host.tell("late", LAST - PAGE, LAST)
    assert host.line() == "closed"
    assert host.process.wait(60) == 1
    assert host.process.stdout.read() == "", "no zeros were seen"
    assert "nothing moves beside threads that wait for 2 pages of a machine" in host.process.stderr.read()


def test_the_ordinary_end_of_its_program(host):
    """A daemon that waits does not keep it: it has its own status, and its last functions run."""
    host.tell("daemon", LAST, SIZE)
    wait_until(lambda: (host.tell("waiting"), host.line())[1] == "waiting 1", what="a thread that waits")
    host.tell("end")
    assert host.process.wait(60) == 0
    assert host.process.stdout.read() == "an end as any other\n"


def test_its_end_with_a_command_that_waits(host, tmp_path):
    """The worker of QMP is not waited for when the page that it waits for will never come."""
    answers = []

    def save():
        with QmpClient(host.address, deadline=60) as client, pytest.raises(ConnectionError):
            answers.append(client.execute("pmemsave", val=0, size=SIZE, filename=str(tmp_path / "dump")))

    saving = threading.Thread(target=save)
    saving.start()
    wait_until(lambda: host.ask("query-migrate")["x-commands-waited"] == 1, what="the command that waits")
    host.tell("end")
    assert host.process.wait(60) == 1
    saving.join(60)
    assert answers == []
