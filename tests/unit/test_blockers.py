"""What keeps a machine from migrating, and who may say so when."""

import json

import pytest

from qmig_e2k import MigrationError, Vm, e2k
from qmig_e2k.migration.settings import Settings
from qmig_e2k.vmstate import VMStateDescription

STONE = VMStateDescription("stone", unmigratable=True)


@pytest.fixture
def vm():
    with Vm("none") as vm:
        yield vm


def reported(vm):
    return json.loads(vm.machine.control.query_migrate()).get("blocked-reasons", [])


def refused(kind, call, *arguments):
    with pytest.raises(MigrationError) as caught:
        call(*arguments)
    assert caught.value.kind == kind
    return str(caught.value)


def test_all_are_reported_and_the_newest_is_named_first(vm):
    numbers = [vm.add_blocker(reason) for reason in ("one", "two", "two")]
    assert len(set(numbers)) == 3, "the same reason twice is two blockers"
    vm.register(STONE, object())
    assert reported(vm) == ["two", "two", "one", "device stone cannot be migrated"]
    vm.del_blocker(numbers[2])
    vm.add_blocker("three")
    assert reported(vm)[:2] == ["three", "two"]
    assert "three" in refused("blocked", vm.migrate, "exec:cat > /dev/null")


@pytest.mark.parametrize("reason", ["", "  \n", "two\nlines", 5])
def test_a_reason_is_needed(vm, reason):
    assert "needs a reason" in refused("invalid-argument", vm.add_blocker, reason)
    assert reported(vm) == []


def test_none_is_added_while_a_snapshot_is_saved(vm):
    control = vm.machine.control
    control.set_run_state("running")
    control.set_run_state("save-vm")
    assert "a snapshot is being saved" in refused("invalid-state", vm.add_blocker, "too late")
    assert reported(vm) == []
    control.set_run_state("running")
    vm.del_blocker(vm.add_blocker("in time"))


def test_a_destination_may_be_blocked_for_later(vm):
    assert vm.incoming("defer") is None
    number = vm.add_blocker("until the card is out")
    assert reported(vm) == ["until the card is out"]
    vm.del_blocker(number)


@pytest.mark.parametrize("source", ["option", "global"])
def test_only_migratable(source):
    settings = Settings(only_migratable=source == "option")
    if source == "global":
        settings.apply_global("migration.only-migratable=on")
    with Vm("none", settings=settings) as vm:
        assert "no reason is good enough" in refused("not-permitted", vm.add_blocker, "no reason is good enough")
        assert "stone" in refused("not-permitted", vm.register, STONE, object())
        assert (reported(vm), vm.check()) == ([], ["no RAM is registered: use add_ram"])
        assert vm.machine.registry.unmigratable() == []


def test_devices_of_the_machine_type_count_too():
    def built():
        hardware = e2k.build("e2k", 1 << 20)
        hardware.devices.append(e2k.Device(STONE, object()))
        return hardware

    with Vm(built()) as vm:
        assert reported(vm) == ["device stone cannot be migrated"]
    assert "stone" in refused("not-permitted", lambda: Vm(built(), settings=Settings(only_migratable=True)))
