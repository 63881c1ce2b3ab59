"""What happens at the same time as a migration, and at the end: other calls, `close`, a program that forgets."""

import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.monitor.client import QmpClient
from qmig_e2k.testing import pair
from qmig_e2k.vmstate import VMStateDescription, uint32
from support import PAGE, wait_until

SIZE = 8 << 20


class SlowStop:
    """Holds a machine in its emulator's stop(), where a switchover has begun but nobody can see it yet."""

    def __init__(self, side):
        self._stop = side.emulator.stop
        self.entered, self.go_on = threading.Event(), threading.Event()
        side.emulator.stop = self

    def __call__(self):
        self.entered.set()
        try:
            assert self.go_on.wait(20)
        finally:
            self._stop()


def test_cont_that_waited_for_the_switchover_does_not_run_it_twice():
    with pair(size=SIZE) as (source, destination), ThreadPoolExecutor() as pool:
        source.vm.start()
        stop = SlowStop(source)
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        assert stop.entered.wait(20)
        cont = pool.submit(source.vm.start)
        assert not wait([cont], 0.1).done
        stop.go_on.set()
        migration.wait(20)
        arrival.wait(20)
        with pytest.raises(MigrationError, match="handed over"):
            cont.result(20)
        assert source.vm.run_state == "postmigrate"
        assert source.emulator.log[-1] == "inactivate_storage"
        source.vm.start()  # knowing that it went away, its administrator may do so
        assert source.vm.run_state == "running"


def test_a_destination_that_cannot_be_migrated_refuses():
    with pair(size=SIZE) as (source, destination):
        glued = VMStateDescription("glued", fields=[uint32("value")], unmigratable=True)
        destination.vm.register(glued, SimpleNamespace(value=0))
        source.vm.start()
        target, arrival = destination.listen()
        with pytest.raises(MigrationError):
            source.vm.migrate(target).wait(20)
        with pytest.raises(MigrationError, match="device glued cannot be migrated"):
            arrival.wait(20)
        assert source.vm.run_state == "running"
        assert "reset" not in destination.emulator.log


def test_nothing_is_added_to_a_machine_that_moves():
    with pair(size=SIZE) as (source, destination):
        source.vm.set_parameters(max_bandwidth=100_000)
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: destination.vm.machine.control.incoming_status == "active", what="the source")
        for side in (source, destination):
            with pytest.raises(MigrationError, match="under way"):
                side.vm.add_ram("late", PAGE)
            with pytest.raises(MigrationError, match="under way"):
                side.vm.register(VMStateDescription("late", fields=[uint32("value")]), SimpleNamespace(value=0))
        migration.cancel()
        assert migration.ended(20)
        assert arrival.ended(20)
        source.vm.add_ram("late", PAGE)


def test_closing_ends_what_qmp_began():
    with pair(size=SIZE) as (source, destination):
        source.vm.set_parameters(max_bandwidth=100_000)
        source.vm.start()
        target, _ = destination.listen()
        with QmpClient(source.vm.serve_qmp("tcp:127.0.0.1:0")) as client:
            client.execute("migrate", uri=target)
            source.vm.close()
        assert "migration" not in {thread.name for thread in threading.enumerate()}


def test_closing_while_a_command_waits_for_a_switchover_that_hangs():
    with pair(size=SIZE) as (source, _), nobody() as uri, ThreadPoolExecutor() as pool:
        source.vm.start()
        stop = SlowStop(source)
        client = QmpClient(source.vm.serve_qmp("tcp:127.0.0.1:0"))
        source.vm.set_parameters(max_bandwidth=0)
        migration = source.vm.migrate(uri)
        assert stop.entered.wait(20)
        command = pool.submit(client.execute, "stop")
        assert not wait([command], 0.1).done
        stop.go_on.set()
        assert not wait([command], 0.1).done
        pool.submit(source.vm.close).result(20)
        assert migration.done()
        assert command.exception(20) is None or isinstance(command.exception(), ConnectionError)
        client.close()


@contextmanager
def nobody():
    """An address where everything is taken and nothing answered, by a process: a thread would wait for the vCPU's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", SWALLOW, str(server.fileno())]
        with subprocess.Popen(command, pass_fds=[server.fileno()]) as process:
            try:
                yield f"tcp:127.0.0.1:{server.getsockname()[1]}"
            finally:
                process.kill()


SWALLOW = """
import socket, sys
channel, _ = socket.socket(fileno=int(sys.argv[1])).accept()
while channel.recv(1 << 20):
    pass
"""


FORGETFUL = """
import gc
from qmig_e2k import Vm

def begin():
    vm = Vm("none")
    vm.add_ram("ram", 1 << 20)
    {}

begin()
gc.collect()
"""


@pytest.mark.parametrize("what", ['vm.incoming("tcp:127.0.0.1:0")', 'vm.serve_qmp("tcp:127.0.0.1:0")'])
def test_a_program_that_forgets_its_machine_ends(what):
    subprocess.run([sys.executable, "-c", FORGETFUL.format(what)], check=True, timeout=30, stderr=subprocess.DEVNULL)
