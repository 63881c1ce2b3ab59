"""The control room from Python: statuses, ownership, events, answers."""

import json
import threading
import time

import pytest

from qmig_e2k._core import Control, MigrationError


def statuses(events):
    found = []
    while (event := events.next(0)) is not None:
        name, data, _ = event
        found.append(json.loads(data)["status"] if name == "MIGRATION" else name)
    return found


def test_completed():
    control = Control("vm")
    control.set_capabilities(["events"])
    events = control.subscribe()
    control.begin_outgoing()
    assert control.set_outgoing_status("setup", "active")
    assert not control.set_outgoing_status("setup", "active")
    control.mark_stopped()
    control.note_time("stop", 5)
    control.note_device_time("cpu", 7)
    control.emit("STOP")
    assert control.owned()
    # Nothing was committed, so finish alone may not complete; savevm says so itself.
    assert control.set_outgoing_status("active", "completed")
    assert control.finish_outgoing() == "completed"
    answer = json.loads(control.query_migrate())
    assert answer["x-downtime"] == {"stop": 5, "devices": {"cpu": 7}}
    assert answer["x-commands-waited"] == 0
    assert statuses(events) == ["setup", "active", "STOP", "completed"]


def test_failed_and_again():
    control = Control()
    control.begin_outgoing()
    control.fail_outgoing("cpu: no")
    control.fail_outgoing("later")
    assert not control.cancel()
    with pytest.raises(MigrationError) as caught:
        control.begin_outgoing()
    assert caught.value.kind == "invalid-state"
    assert control.finish_outgoing() == "failed"
    assert control.outgoing_error() == "cpu: no"
    assert json.loads(control.query_migrate()) == {"status": "failed", "error-desc": "cpu: no"}
    control.begin_outgoing()
    assert control.outgoing_error() is None


def test_cancel():
    control = Control()
    assert not control.cancel()
    control.begin_outgoing()
    assert control.cancel()
    assert control.outgoing_status == "cancelling"
    control.fail_outgoing("the channel was shut")
    assert control.finish_outgoing() == "cancelled"
    assert control.owned()
    assert json.loads(control.query_migrate()) == {"status": "cancelled"}


def test_incoming():
    control = Control()
    events = control.subscribe()
    control.begin_incoming()
    assert control.incoming_status == "none"
    control.set_socket_addresses('[{"type": "unix", "path": "/x"}]')
    assert json.loads(control.query_migrate()) == {"socket-address": [{"type": "unix", "path": "/x"}]}
    assert control.set_incoming_status("none", "active")
    with pytest.raises(MigrationError):
        control.begin_incoming()
    control.fail_incoming("cut")
    assert json.loads(control.query_migrate()) == {"status": "failed", "error-desc": "cut"}
    control.begin_incoming()
    assert statuses(events) == ["setup", "setup"]


def test_run_state():
    control = Control()
    assert control.run_state == "prelaunch"
    control.set_run_state("running")
    assert json.loads(control.query_status()) == {"status": "running", "singlestep": False, "running": True}
    with pytest.raises(MigrationError) as caught:
        control.set_run_state("postmigrate")
    assert caught.value.kind == "invalid-state"


def test_events():
    control = Control()
    events = control.subscribe()
    before = time.time()
    control.emit("X", '{"a": 1}')
    name, data, when = events.next(0)
    assert (name, json.loads(data)) == ("X", {"a": 1})
    assert before - 0.1 <= when <= time.time() + 0.1
    assert events.next(0.01) is None
    for i in range(4098):
        control.emit("N", json.dumps({"i": i}))
    assert events.lost == 2
    while events.next(0):
        pass
    waiter = threading.Thread(target=events.next)
    waiter.start()
    events.close()
    waiter.join(5)
    assert not waiter.is_alive()


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.set_run_state("nope"),
        lambda c: c.set_outgoing_status("nope", "active"),
        lambda c: c.set_incoming_status("none", "nope"),
        lambda c: c.note_time("nope", 1),
        lambda c: c.emit("X", "{"),
        lambda c: c.set_socket_addresses("{"),
        lambda c: c.subscribe().next(-1.0),
        lambda c: c.subscribe().next(float("nan")),
    ],
)
def test_bad_arguments(call):
    control = Control()
    control.begin_outgoing()
    with pytest.raises(ValueError, match=r"is no|bad"):
        call(control)


def test_bad_parameters():
    with pytest.raises(MigrationError) as caught:
        Control().set_parameters('{"max-bandwidth": -1}')
    assert caught.value.kind == "invalid-argument"


def test_no_outgoing():
    control = Control()
    assert control.outgoing_status == "none"
    for call in (control.mark_stopped, control.finish_outgoing, lambda: control.fail_outgoing("x")):
        with pytest.raises(MigrationError) as caught:
            call()
        assert caught.value.kind == "invalid-state"
