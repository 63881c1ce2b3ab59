"""Auto-converge: a machine that writes faster than is sent is slowed down, as little and as long as needed."""

import json
import threading

import pytest

from qmig_e2k import MigrationError, Vm
from qmig_e2k._core import Block
from qmig_e2k.testing.emulator import TinyEmulator
from support import PAGE, wait_until

SIZE = 1 << 20


class Writer:
    """Writes every page again and again, unless at least 90 percent of its time are taken."""

    def __init__(self, ram):
        self._words = ram.numpy().view("u8")[:: PAGE // 8]
        self._ended = threading.Event()
        self._quiet = threading.Event()
        self._thread = None
        self.calls = []
        self.shown = []
        self.refuses = False
        self.control = None

    def start(self):
        self._ended.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self):
        self.calls.append("stop")
        self._ended.set()
        self._quiet.set()
        if self._thread is not None:
            self._thread.join()

    def throttle(self, percent):
        self.calls.append(percent)
        self.shown.append(json.loads(self.control.query_migrate()).get("cpu-throttle-percentage"))
        if self.refuses and percent:
            raise RuntimeError("no brakes")
        if percent >= 90:
            self._quiet.set()

    def _run(self):
        value = 0
        while not self._ended.is_set() and not self._quiet.is_set():
            value += 1
            self._words[:] = value
        self._ended.wait()


@pytest.fixture
def side():
    ram = Block("ram", SIZE)
    emulator = Writer(ram)
    with Vm("none", emulator) as vm:
        vm.add_ram("ram", buffer=ram)
        emulator.control = vm.machine.control
        # a round takes a quarter of a second, and what is dirty never fits: only a machine that writes nothing arrives
        vm.set_parameters(downtime_limit=0, max_bandwidth=4 * SIZE, throttle_trigger_threshold=1)
        vm.set_capabilities(auto_converge=True)
        vm.start()
        yield vm, emulator
        emulator.stop()


def test_slowed_down_until_it_fits(side):
    vm, emulator = side
    vm.set_parameters(cpu_throttle_initial=94)
    migration = vm.migrate("exec:cat > /dev/null")
    migration.wait(40)
    assert emulator.calls == [94, "stop", 0]
    assert emulator.shown == [94, None]
    assert "cpu-throttle-percentage" not in migration.info()


@pytest.mark.parametrize("refuses", [False, True])
def test_a_machine_that_stays_gets_its_time_back(side, refuses):
    vm, emulator = side
    emulator.refuses = refuses
    migration = vm.migrate("exec:cat > /dev/null")
    wait_until(lambda: emulator.calls, what="the throttle")
    if not refuses:
        assert migration.cancel()
    with pytest.raises(MigrationError, match="could not be throttled: no brakes" if refuses else "cancelled"):
        migration.wait(20)
    assert emulator.calls == [20, 0]
    assert vm.run_state == "running"


def test_an_emulator_without_the_hook_is_told_of_at_once():
    ram = Block("ram", SIZE)
    with Vm("none", TinyEmulator(ram)) as vm:
        vm.add_ram("ram", buffer=ram)
        with pytest.raises(MigrationError, match=r"no throttle\(percent\)"):
            vm.set_capabilities(auto_converge=True)
        vm.machine.settings.apply_global("migration.auto-converge=on")
        assert any("no throttle(percent)" in obstacle for obstacle in vm.check())
        with pytest.raises(MigrationError, match=r"no throttle\(percent\)"):
            vm.migrate("exec:cat > /dev/null")


def test_the_model_guest_arrives_though_it_writes_without_pause(serve):
    guest = ("-m", "32M", "--guest", "random,threads=1,wss=16M", "--seed", "5")
    source, destination = serve(*guest, machine="e2k"), serve("-m", "32M", incoming="defer", machine="e2k")
    for side in (source, destination):
        side.set_capabilities(auto_converge=True, events=True)
    source.command("migrate-set-parameters", max_bandwidth=16 << 20, downtime_limit=100, cpu_throttle_initial=99)
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("completed")
    destination.wait_arrived()
    destination.command("stop")
    verdict = destination.command("x-verify")
    assert verdict["equal"], verdict
    assert verdict["steps"] > 0
