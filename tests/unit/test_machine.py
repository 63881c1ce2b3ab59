"""Run states and storage of one machine with no migration around it."""

from types import SimpleNamespace

import pytest

from qmig_e2k import MigrationError, Vm
from qmig_e2k.migration.machine import Machine


class Emulator:
    def __init__(self):
        self.log = []
        self.failing = None

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call():
            self.log.append(name)
            if name == self.failing:
                raise RuntimeError(f"no {name}")

        return call


@pytest.fixture
def emulator():
    return Emulator()


@pytest.fixture
def vm(emulator):
    with Vm("e2k", emulator) as made:
        yield made


def events(subscription):
    found = []
    while (event := subscription.next(0)) is not None:
        found.append(event[0])
    return found


def test_start_and_stop(vm, emulator):
    seen = vm.machine.control.subscribe()
    assert vm.run_state == "prelaunch"
    vm.stop()
    assert vm.run_state == "prelaunch", "stopping what does not run changes nothing"
    vm.start()
    vm.start()
    assert vm.run_state == "running"
    assert vm.machine.clock.running
    vm.stop()
    vm.stop()
    assert vm.run_state == "paused"
    assert not vm.machine.clock.running
    assert emulator.log == ["start", "stop"]
    assert events(seen) == ["RESUME", "STOP"]


def test_an_emulator_that_runs_already(emulator):
    with Vm("none", emulator, running=True) as vm:
        assert vm.run_state == "running"
        vm.stop()
    assert emulator.log == ["stop"]


def test_no_emulator_at_all():
    with Vm("none") as vm:
        vm.start()
        vm.reset()
        vm.stop()
        assert vm.run_state == "paused"


def test_reset(vm, emulator):
    seen = vm.machine.control.subscribe()
    vm.reset()
    assert vm.run_state == "prelaunch"
    vm.start()
    vm.reset()
    assert vm.run_state == "running"
    vm.stop()
    vm.reset()
    assert vm.run_state == "prelaunch"
    assert emulator.log == ["reset", "start", "stop", "reset", "start", "stop", "reset"]
    assert events(seen) == ["RESET", "RESUME", "RESET", "STOP", "RESET"], "a reset is no STOP and no RESUME"


def test_a_failing_start_and_stop(vm, emulator):
    emulator.failing = "start"
    with pytest.raises(MigrationError, match="no start") as caught:
        vm.start()
    assert caught.value.kind == "invalid-state"
    assert vm.run_state == "internal-error"
    with pytest.raises(MigrationError, match="internal-error"):
        vm.start()
    vm.reset()
    emulator.failing = "stop"
    vm.start()
    with pytest.raises(MigrationError, match="no stop"):
        vm.stop()
    assert vm.run_state == "running"


def test_incoming_is_for_machines_that_have_not_run(vm):
    seen = vm.machine.control.subscribe()
    assert vm.incoming("defer") is None
    assert vm.run_state == "inmigrate"
    vm.start()
    assert vm.run_state == "inmigrate", "only said that it shall run"
    vm.reset()
    assert vm.run_state == "inmigrate"
    assert events(seen) == ["RESET"]
    with Vm("none") as other:
        other.start()
        with pytest.raises(MigrationError, match="has run"):
            other.incoming("defer")


def test_storage_belongs_to_one_side(emulator):
    machine = Machine("none", emulator=emulator)
    machine.expect_incoming()
    machine.autostart = False
    machine.arrive(None)
    assert machine.control.run_state == "paused"
    assert emulator.log == [], "storage is taken when the machine runs, not before"
    machine.cont()
    assert emulator.log == ["activate_storage", "start"]
    machine.inactivate_storage()
    machine.inactivate_storage()
    machine.activate_storage()
    machine.activate_storage()
    assert emulator.log[2:] == ["inactivate_storage", "activate_storage"]


def test_storage_that_cannot_be_taken_keeps_the_machine_from_running(emulator):
    machine = Machine("none", emulator=emulator)
    machine.expect_incoming()
    emulator.failing = "activate_storage"
    machine.arrive("running")
    assert machine.control.run_state == "paused"
    with pytest.raises(MigrationError, match="no activate_storage") as caught:
        machine.cont()
    assert caught.value.kind == "io"
    assert "start" not in emulator.log
    emulator.failing = None
    machine.cont()
    assert machine.control.run_state == "running"


@pytest.mark.parametrize("state", ["prelaunch", "paused", "shutdown", "guest-panicked", "postmigrate"])
def test_other_states_arrive_as_they_are(state):
    machine = Machine("none")
    machine.expect_incoming()
    machine.arrive(state)
    assert machine.control.run_state == state


def test_what_stops_a_migration_is_named(vm):
    assert vm.check() == ["no RAM is registered: use add_ram"]
    vm.add_ram("e2k.ram", 1 << 20)
    assert vm.check() == []
    vm.incoming("defer")
    assert "inmigrate" in vm.check()[0]


def test_ram_is_checked(vm):
    ram = vm.add_ram("e2k.ram", 1 << 20)
    for wrong in ({"size": 1 << 20}, {"buffer": bytearray(4096)}):
        with pytest.raises(MigrationError, match=r"e2k\.ram"):
            vm.add_ram("e2k.ram", **wrong)
    with pytest.raises(TypeError):
        vm.add_ram("two")
    with pytest.raises(MigrationError, match=r"e2k\.ram"):
        vm.add_ram("other", buffer=ram)
    assert ram.numpy().nbytes == 1 << 20


def test_machines_that_there_are_none_of():
    with pytest.raises(MigrationError, match="z80"):
        Vm("z80")
    with pytest.raises(MigrationError, match="9"):
        Vm("e2k", cpus=9)


def test_arguments_that_are_impossible(vm):
    for mistake, text in (
        (lambda: Vm(format="3"), "2.9, 7.2, 10.0"),
        (lambda: vm.add_ram("x", size=-1), "size -1"),
        (lambda: vm.add_ram("x", size=1 << 70), "below 2^63"),
        (lambda: vm.add_ram("x", size=4096, max_size=-4096), "max_size -4096"),
        (lambda: vm.add_ram("x", size=4096, address=-1), "address -1"),
    ):
        with pytest.raises(MigrationError) as caught:
            mistake()
        assert caught.value.kind == "invalid-argument"
        assert text in str(caught.value)


def test_the_clock_stands_still_if_the_emulator_does_not_start(vm, emulator):
    emulator.failing = "start"
    with pytest.raises(MigrationError, match="no start"):
        vm.start()
    assert vm.run_state == "internal-error"
    assert not vm.machine.clock.running


def test_an_emulator_that_cannot_be_reset(vm, emulator):
    seen = vm.machine.control.subscribe()
    emulator.failing = "reset"
    with pytest.raises(MigrationError, match="no reset"):
        vm.reset()
    assert vm.run_state == "prelaunch"
    vm.start()
    with pytest.raises(MigrationError, match="no reset"):
        vm.reset()
    assert (vm.run_state, vm.machine.clock.running) == ("internal-error", False)
    assert emulator.log == ["reset", "start", "stop", "reset"]
    assert events(seen) == ["RESUME", "STOP"]
    emulator.failing = None
    vm.reset()
    vm.start()
    assert vm.run_state == "running"


@pytest.mark.parametrize(("end", "listens"), [(None, True), ("failed", False), ("completed", False)])
def test_an_incoming_migration_is_over_when_its_end_is_reported(end, listens):
    """Its thread takes a moment more, and who has heard the end may change what only one that waits keeps."""
    machine = Machine("none")
    assert not machine.listens
    machine.arrival = SimpleNamespace(done=lambda: False)
    machine.control.begin_incoming()
    machine.control.set_incoming_status("none", "active")
    if end is not None:
        machine.control.set_incoming_status("active", end)
    assert machine.listens == listens
    if listens:
        with pytest.raises(MigrationError, match="before the destination listens"):
            machine.set_capabilities([("multifd", True)])
    else:
        machine.set_capabilities([("multifd", True)])
        machine.set_parameters({"tls-authz": "somebody"})
