"""`Vm.notify`: everything is told, in order, whatever the function does, and up to the machine's end."""

import threading

import pytest

from qmig_e2k.testing import pair
from support import wait_until


@pytest.fixture
def side():
    with pair("none") as (made, _):
        yield made


def names(told):
    return [name for name, _ in told]


def test_all_is_told_until_it_is_closed(side):
    told = []
    with side.vm.notify(lambda name, data: told.append((name, data))):
        side.vm.start()
        side.vm.stop()
        side.vm.reset()
    assert told == [("RESUME", {}), ("STOP", {}), ("RESET", {"guest": False, "reason": "host-qmp-system-reset"})]
    side.vm.start()
    assert len(told) == 3
    assert side.vm.machine.notifiers == set()


def test_one_that_fails_is_told_of_the_next(side, caplog):
    told = []

    def call(name, _data):
        told.append(name)
        raise ValueError("not today")

    with side.vm.notify(call):
        side.vm.start()
        side.vm.stop()
    assert told == ["RESUME", "STOP"]
    assert "a notifier failed with event RESUME" in caplog.text


def test_nobody_waits_for_one_that_waits(side):
    go_on = threading.Event()
    told = []
    notifier = side.vm.notify(lambda name, data: (go_on.wait(60), told.append((name, data))))
    side.vm.start()
    side.vm.stop()
    assert told == []
    go_on.set()
    notifier.close()
    notifier.close()
    assert names(told) == ["RESUME", "STOP"]


def test_it_may_call_the_machine_and_close_itself(side):
    told = []

    def call(name, _data):
        told.append(name)
        side.vm.stop()
        notifier.close()

    notifier = side.vm.notify(call)
    side.vm.start()
    wait_until(lambda: side.vm.run_state == "paused")
    wait_until(lambda: not notifier._thread.is_alive())
    assert told == ["RESUME", "STOP"], "what had happened before it was closed"


def test_the_end_of_the_machine_is_told():
    """A migration that `close` cancels ends as `cancelled`, and that is heard."""
    told = []
    with pair("none") as (source, destination):
        source.ram.numpy()[:] = 1
        source.vm.set_capabilities(events=True)
        source.vm.set_parameters(max_bandwidth=4096, downtime_limit=0)
        source.vm.start()
        address, _ = destination.listen()
        source.vm.notify(lambda name, data: told.append(data.get("status", name)))
        source.vm.migrate(address)
        wait_until(lambda: "active" in told)
        source.vm.close()
        assert told[-1] == "cancelled"
