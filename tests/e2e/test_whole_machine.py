"""Whole e2k machines on the move: every CPU, device and option in a state of its own; what their rules refuse."""

from contextlib import contextmanager

import pytest

from devices import machine_state
from qmig_e2k import MigrationError, StreamError, Vm
from qmig_e2k.e2k import MODELS, OPTIONS, build
from qmig_e2k.testing import filled

SIZE = 1 << 20


class Side:
    """One machine without an emulator: what its registers hold is all there is."""

    def __init__(self, options=OPTIONS, **facts):
        self.hardware = build("e2k", SIZE, kernel_size=4096, options=options, **facts)
        self.vm = Vm(self.hardware, cpus=len(self.hardware.cpus))
        for block in self.hardware.blocks:
            self.vm.add_ram(block.name, block.size)

    @property
    def state(self):
        return machine_state(self.hardware)

    def device(self, name):
        return next(device.obj for device in self.hardware.devices if device.description.name == name)


@contextmanager
def two(**facts):
    source, destination = Side(**facts), Side(**facts)
    with source.vm, destination.vm:
        yield source, destination


def move(source, destination):
    """Raises what the destination says, if it refuses."""
    arrival = destination.vm.incoming("tcp:127.0.0.1:0")
    migration = source.vm.migrate(f"tcp:127.0.0.1:{arrival.addresses[0]['port']}")
    try:
        arrival.wait(20)
    except MigrationError:
        with pytest.raises(MigrationError):
            migration.wait(20)
        raise
    migration.wait(20)


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_all_of_8_cpus_and_every_device_arrives(model, tags):
    with two(model=model, cpus=8, tags=tags) as (source, destination):
        filled(source.hardware, seed=7)
        filled(destination.hardware, seed=8)  # nothing of what was there before may stay
        source.vm.start()
        before = source.state
        assert destination.state != before
        move(source, destination)
        assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")
        assert source.state == before
        assert destination.state == before


def test_a_machine_that_does_not_fit_together_stays_where_it_is():
    with two(cpus=2) as (source, destination):
        filled(source.hardware)
        source.vm.start()
        source.device("PCIBUS").irq_count[1] += 1
        with pytest.raises(StreamError) as caught:
            move(source, destination)
        assert caught.value.path == "PCIBUS/0/irq_count"
        assert caught.value.message == "pci: irq count mismatch"
        assert (source.vm.run_state, destination.vm.run_state) == ("running", "inmigrate")
        source.device("PCIBUS").irq_count[1] -= 1
        move(source, destination)
        assert destination.state == source.state
        assert destination.vm.run_state == "running"


def test_a_check_of_one_device_too():
    with two(cpus=1, model="e16c") as (source, destination):
        source.vm.start()
        source.device("e2k-lt").counter_control = 8
        with pytest.raises(StreamError, match="lt: reserved bits in counter_control"):
            move(source, destination)
        assert (source.vm.run_state, destination.vm.run_state) == ("running", "inmigrate")
        source.device("e2k-lt").counter_control = 7
        move(source, destination)
        assert destination.device("e2k-lt").counter_control == 7


@pytest.mark.parametrize(("here", "there"), [(OPTIONS, ()), ((), OPTIONS), (("rtc",), ("gpio",))])
def test_machines_with_other_options_are_refused(here, there):
    source, destination = Side(here), Side(there)
    with source.vm, destination.vm:
        source.vm.start()
        with pytest.raises(StreamError, match="differ in their devices"):
            move(source, destination)
        assert (source.vm.run_state, destination.vm.run_state) == ("running", "inmigrate")
