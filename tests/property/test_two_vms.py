"""Two machines under any order of commands, failures and recoveries: never both, nothing lost, memory equal."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from two_vms import TwoVms

# not shrunk: a run takes a second, and threads do not repeat themselves to the byte
SETTINGS = settings(
    deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False
)


def test_any_order_of_commands() -> None:
    run_state_machine_as_test(TwoVms, settings=settings(SETTINGS, max_examples=8, stateful_step_count=25))


@pytest.mark.long
def test_any_order_of_many_commands() -> None:
    TwoVms.seen.clear()
    run_state_machine_as_test(TwoVms, settings=settings(SETTINGS, max_examples=500, stateful_step_count=40))
    for what, count in sorted(TwoVms.seen.items()):
        print(f"{count:7} {what}")
    assert {"precopy: completed", "postcopy: completed", "precopy: cancelled", "recovery"} <= TwoVms.seen.keys()


def test_two_that_run_at_once_are_noticed() -> None:
    """The state machine is worth nothing if it cannot fail."""
    machine = TwoVms()
    try:
        machine.sides[1].vm.start()
        with pytest.raises(AssertionError, match="both sides ran"):
            machine.check()
    finally:
        machine.sides[1].vm.stop()
        machine.ledger.both = False
        machine.teardown()


def test_memory_that_is_not_whole_is_noticed() -> None:
    machine = TwoVms()
    machine.source.vm.stop()
    (ram,) = machine.source.vm.machine.blocks
    before = ram.read(4096, 8)
    ram.write(4096, bytes(byte ^ 1 for byte in before))
    with pytest.raises(AssertionError, match="is wrong at"):
        machine.verify()
    ram.write(4096, before)
    machine.teardown()
