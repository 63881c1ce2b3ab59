"""Jobs: their path, their names, their order, and their end with the machine."""

import json
import threading

import pytest

from qmig_e2k import MigrationError
from qmig_e2k._core import Control
from qmig_e2k.migration.jobs import Jobs
from support import wait_until


@pytest.fixture
def jobs():
    made = Jobs(Control())
    yield made
    made.close(lambda: None)


@pytest.fixture
def events():
    """A control and what it has told."""
    control = Control()
    subscription = control.subscribe()

    def path(job):
        found = []
        while (event := subscription.next(0)) is not None:
            name, data, _ = event
            assert name == "JOB_STATUS_CHANGE"
            told = json.loads(data)
            if told["id"] == job:
                found.append(told["status"])
        return found

    yield control, path
    subscription.close()


def fails(error):
    def work():
        raise error

    return work


def ended(jobs):
    return wait_until(lambda: all(job["status"] == "concluded" for job in jobs.query()) and jobs.query())


def test_the_path_of_a_job(events):
    control, path = events
    jobs = Jobs(control)
    jobs.start("a", "snapshot-save", lambda: None)
    assert ended(jobs) == [
        {"id": "a", "type": "snapshot-save", "status": "concluded", "current-progress": 1, "total-progress": 1}
    ]
    jobs.dismiss("a")
    assert path("a") == ["created", "running", "waiting", "pending", "concluded", "null"]
    assert jobs.query() == []
    jobs.close(lambda: None)


@pytest.mark.parametrize(
    ("error", "text"),
    [(MigrationError("no room"), "no room"), (ValueError("a mistake"), "ValueError: a mistake")],
)
def test_the_path_of_one_that_fails(events, error, text):
    control, path = events
    jobs = Jobs(control)
    jobs.start("a", "snapshot-load", fails(error))
    (job,) = ended(jobs)
    assert (job["error"], job["type"]) == (text, "snapshot-load")
    assert path("a") == ["created", "running", "aborting", "concluded"]
    jobs.close(lambda: None)


@pytest.mark.parametrize("name", ["", "1x", "-", "a b", "a/b", "ä", "a\n"])
def test_names_that_are_none(jobs, name):
    with pytest.raises(MigrationError, match="Invalid job ID"):
        jobs.start(name, "snapshot-save", lambda: None)
    assert jobs.query() == []


def test_one_after_the_other_and_each_name_once(jobs):
    first, order = threading.Event(), []
    jobs.start("a", "snapshot-save", lambda: (first.wait(60), order.append("a")))
    jobs.start("b_-2", "snapshot-save", lambda: order.append("b"))
    with pytest.raises(MigrationError, match="Job ID 'a' already in use"):
        jobs.start("a", "snapshot-save", lambda: None)
    with pytest.raises(MigrationError, match="Job 'b_-2' in state 'running' cannot accept command verb 'dismiss'"):
        jobs.dismiss("b_-2")
    assert [job["id"] for job in jobs.query()] == ["b_-2", "a"], "the newest first"
    first.set()
    ended(jobs)
    assert order == ["a", "b"]
    with pytest.raises(MigrationError, match="Job not found"):
        jobs.dismiss("c")
    jobs.dismiss("a")
    jobs.start("a", "snapshot-save", lambda: None)


def test_the_machine_is_closed(events):
    control, path = events
    jobs = Jobs(control)
    cancelled, ran = threading.Event(), []
    jobs.start("a", "snapshot-save", lambda: cancelled.wait(60))
    jobs.start("b", "snapshot-save", lambda: ran.append("b"))
    jobs.close(cancelled.set)
    assert ran == []
    assert path("b") == ["created", "running", "aborting", "concluded"]
    with pytest.raises(MigrationError, match="the machine is closed"):
        jobs.start("c", "snapshot-save", lambda: None)


def test_one_that_waits_for_its_turn_is_cancelled(events):
    control, path = events
    jobs = Jobs(control)
    go_on = threading.Event()
    done = []
    jobs.start("a", "snapshot-load", lambda: go_on.wait(60))
    wait_until(lambda: jobs._jobs["a"].begun)
    with pytest.raises(MigrationError, match="Job 'a' cannot be cancelled: snapshot-load is not given up half-way"):
        jobs.cancel("a")
    jobs.start("b", "snapshot-load", lambda: done.append("b"))
    jobs.cancel("b")
    jobs.cancel("b")
    go_on.set()
    second, first = ended(jobs)
    assert ("error" in first, second["error"], done) == (False, "the job was cancelled", [])
    assert path("b") == ["created", "running", "aborting", "concluded"]
    for name, text in (("b", "state 'concluded' cannot accept command verb 'cancel'"), ("c", "Job not found")):
        with pytest.raises(MigrationError, match=text):
            jobs.cancel(name)
    jobs.close(lambda: None)
