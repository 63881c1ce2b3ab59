"""Every transition of both statuses (spec/control-plane 2.1, 2.2), each a compare-and-swap with one event."""

import json
from itertools import pairwise

import pytest

from qmig_e2k._core import Control

OUTGOING = """
    setup active        setup wait-unplug   setup completed
    wait-unplug active  active completed    active postcopy-active  active pre-switchover  active device
    pre-switchover device   pre-switchover postcopy-active   device completed   device postcopy-active
    postcopy-active completed   postcopy-active postcopy-paused   postcopy-paused postcopy-recover
    postcopy-recover postcopy-active   postcopy-recover postcopy-paused
""".split()
TABLE = list(zip(OUTGOING[::2], OUTGOING[1::2], strict=True))
FINAL = ("completed", "failed", "cancelled")
STATES = sorted({state for pair in TABLE for state in pair})
INCOMING = [
    ("none", "active"),
    ("active", "completed"),
    ("active", "postcopy-active"),
    ("postcopy-active", "completed"),
    ("postcopy-active", "postcopy-paused"),
    ("postcopy-paused", "postcopy-recover"),
    ("postcopy-recover", "postcopy-paused"),
    ("postcopy-recover", "postcopy-active"),
]


def path_to(state, table, start):
    """The shortest way to `state` by transitions of `table`."""
    ways = {start: [start]}
    while state not in ways:
        ways |= {new: [*ways[old], new] for old, new in table if old in ways and new not in ways}
    return ways[state]


def outgoing_in(state):
    """A Control whose outgoing status is `state`, and its events from here on."""
    control = Control()
    control.set_capabilities(["events"])
    control.begin_outgoing()
    way = path_to(state, TABLE, "setup")
    for old, new in pairwise(way):
        assert control.set_outgoing_status(old, new)
    return control, control.subscribe()


def told(events):
    found = []
    while (event := events.next(0)) is not None:
        assert event[0] == "MIGRATION"
        found.append(json.loads(event[1])["status"])
    return found


@pytest.mark.parametrize(("old", "new"), TABLE)
def test_outgoing(old, new):
    control, events = outgoing_in(old)
    for other in set(STATES) - {old}:
        assert not control.set_outgoing_status(other, new), "only who knows the present one may change it"
    assert told(events) == []
    assert control.set_outgoing_status(old, new)
    assert control.outgoing_status == json.loads(control.query_migrate())["status"] == new
    assert told(events) == [new]
    assert not control.set_outgoing_status(old, new)
    assert told(events) == []


@pytest.mark.parametrize("state", STATES)
def test_cancel_and_its_end_from_every_state(state):
    control, events = outgoing_in(state)
    possible = state not in FINAL
    assert control.cancel() == possible
    assert not control.cancel(), "once is enough"
    if possible:
        assert control.outgoing_status == "cancelling"
        assert not control.set_outgoing_status(state, "active"), "it is overtaken"
    assert control.finish_outgoing() == ("cancelled" if possible else state)
    assert control.finish_outgoing() == control.outgoing_status
    assert told(events) == (["cancelling", "cancelled"] if possible else [])


@pytest.mark.parametrize("state", STATES)
def test_failure_from_every_state(state):
    control, events = outgoing_in(state)
    control.fail_outgoing("why")
    control.fail_outgoing("later")
    possible = state not in FINAL
    for new in STATES:
        assert not (possible and control.set_outgoing_status(state, new)), "an error stops every other change"
    assert control.finish_outgoing() == ("failed" if possible else state)
    assert told(events) == (["failed"] if possible else [])
    assert json.loads(control.query_migrate()).get("error-desc") == ("why" if possible else None)


@pytest.mark.parametrize("state", FINAL)
def test_the_next_one_begins_anew(state):
    control, _ = outgoing_in("active")
    if state == "completed":
        assert control.set_outgoing_status("active", "completed")
    elif state == "failed":
        control.fail_outgoing("why")
    else:
        assert control.cancel()
    assert control.finish_outgoing() == state
    control.begin_outgoing()
    assert json.loads(control.query_migrate()) == {"status": "setup"}
    assert control.owned()


def incoming_in(state):
    control = Control()
    control.set_capabilities(["events"])
    control.begin_incoming()
    way = path_to(state, INCOMING, "none")
    for old, new in pairwise(way):
        assert control.set_incoming_status(old, new)
    return control, control.subscribe()


@pytest.mark.parametrize(("old", "new"), INCOMING)
def test_incoming(old, new):
    control, events = incoming_in(old)
    for other in {state for pair in INCOMING for state in pair} - {old}:
        assert not control.set_incoming_status(other, new)
    assert told(events) == []
    assert control.set_incoming_status(old, new)
    assert control.incoming_status == new
    assert told(events) == [new]


@pytest.mark.parametrize("state", sorted({state for pair in INCOMING for state in pair}))
def test_a_load_fails_from_every_state(state):
    control, events = incoming_in(state)
    control.fail_incoming("why")
    final = state == "completed"
    assert control.incoming_status == ("completed" if final else "failed")
    assert told(events) == ([] if final else ["failed"])
