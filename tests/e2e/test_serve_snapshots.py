"""Snapshots as a user of `qmig-e2k serve` has them: HMP, QMP jobs, the command line, and a guest that is verified."""

import re
import subprocess
import sys

import pytest

from qmig_e2k.monitor.client import QmpError
from support import REPOSITORY, wait_until

GUEST = ("-m", "8M", "-smp", "2", "--guest", "random,wss=4M,rate=50000")


@pytest.fixture
def machine(serve, tmp_path):
    """Starts machines that have the same snapshots."""
    return lambda *more: serve(*GUEST, "--snapshot-dir", str(tmp_path / "snapshots"), *more, machine="e2k")


def hmp(peer, line):
    return peer.command("human-monitor-command", command_line=line)


def run_a_little(peer):
    """Until the guest has written: how long its threads take to begin is not known."""
    ram = peer.memory(8 << 20)
    peer.command("cont")
    wait_until(lambda: peer.memory(8 << 20) != ram, what="a step of the guest")
    peer.command("stop")


def steps(peer):
    """Steps that its guest has made, all of them in RAM; it stands still."""

    def verified():
        try:
            return peer.command("x-verify")
        except QmpError as error:
            if "has not made a step" not in str(error):
                raise
            run_a_little(peer)
            return None

    answer = wait_until(verified, what="a step of the guest")
    assert answer["equal"] is True
    return answer["steps"]


def job(peer, name, job_id, **arguments):
    """Runs a job to its end; returns the answer of query-jobs about it, and what was told meanwhile."""
    while peer.qmp.event() is not None:
        pass
    peer.command(name, job_id=job_id, devices=["disk0"], **arguments)
    told = []
    while told[-1:] != ["concluded"]:
        event = peer.qmp.event(30)
        assert event is not None, told
        told.append(event["data"]["status"] if event["event"] == "JOB_STATUS_CHANGE" else event["event"])
    (answer,) = (found for found in peer.command("query-jobs") if found["id"] == job_id)
    peer.command("job-dismiss", id=job_id)
    assert peer.qmp.wait_event("JOB_STATUS_CHANGE")["data"] == {"id": job_id, "status": "null"}
    return answer, told


def test_a_guest_goes_back_over_hmp(machine):
    peer = machine()
    first = steps(peer)
    assert hmp(peer, "info snapshots") == "There is no snapshot available.\r\n"
    assert hmp(peer, "savevm first") == ""
    peer.command("cont")
    wait_until(lambda: peer.command("query-status")["running"])
    assert hmp(peer, "savevm running") == ""
    assert peer.run_state() == "running"
    peer.command("stop")
    assert steps(peer) >= first
    assert hmp(peer, "loadvm first") == ""
    assert peer.run_state() == "paused"
    assert steps(peer) == first
    assert hmp(peer, "savevm") == ""
    title, head, *rows = hmp(peer, "info snapshots").splitlines()
    assert title == "List of snapshots present on all disks:"
    assert head.split() == ["ID", "TAG", "VM", "SIZE", "DATE", "VM", "CLOCK", "ICOUNT"]
    assert [row.split()[1][:3] for row in rows] == ["fir", "run", "vm-"]
    assert hmp(peer, "delvm first") == ""
    assert hmp(peer, "loadvm first").startswith("Error: there is no snapshot 'first'")
    assert hmp(peer, "delvm first").startswith("Error: there is no snapshot 'first'")
    assert peer.run_state() == "paused"

    later = machine("-loadvm", "running")
    assert later.run_state() == "prelaunch"
    assert steps(later) > 0
    later.command("cont")
    assert hmp(later, "loadvm running") == ""
    assert later.run_state() == "running"
    later.command("stop")
    assert steps(later) > 0


@pytest.mark.parametrize("kind", ["none", "e2k-qemu"])
def test_guests_without_registers_of_the_machine_stay_where_they_are(serve, tmp_path, kind):
    """As the how-to says: only RAM goes back."""
    peer = serve("-m", "8M", *GUEST[4:], "--snapshot-dir", str(tmp_path / "snapshots"), machine=kind)
    first = steps(peer)
    assert hmp(peer, "savevm first") == ""

    run_a_little(peer)
    second = steps(peer)
    assert second > first
    assert hmp(peer, "loadvm first") == ""
    answer = peer.command("x-verify")
    assert (answer["steps"], answer["equal"]) == (second, False)


def test_jobs(machine):
    peer = machine()
    first = steps(peer)
    peer.command("cont")
    answer, told = job(peer, "snapshot-save", "save", tag="one", vmstate="disk0")
    assert answer == {
        "id": "save",
        "type": "snapshot-save",
        "status": "concluded",
        "current-progress": 1,
        "total-progress": 1,
    }
    assert told == ["created", "running", "STOP", "RESUME", "waiting", "pending", "concluded"]
    assert peer.migration()["status"] == "completed"

    answer, told = job(peer, "snapshot-save", "save", tag="one", vmstate="disk0")
    assert "'one' already exists" in answer["error"]
    assert told == ["created", "running", "aborting", "concluded"]
    answer, _ = job(peer, "snapshot-save", "save", tag="two", vmstate="disk1")
    assert "vmstate block device 'disk1' does not exist" in answer["error"]

    answer, told = job(peer, "snapshot-load", "load", tag="one", vmstate="disk0")
    assert "error" not in answer
    assert told == ["created", "running", "STOP", "RESUME", "waiting", "pending", "concluded"]
    peer.command("stop")
    assert steps(peer) >= first
    answer, told = job(peer, "snapshot-load", "load", tag="none", vmstate="disk0")
    assert "there is no snapshot 'none'" in answer["error"]

    answer, told = job(peer, "snapshot-delete", "delete", tag="one")
    assert "error" not in answer
    assert told == ["created", "running", "waiting", "pending", "concluded"]
    assert hmp(peer, "info snapshots") == "There is no snapshot available.\r\n"


@pytest.mark.parametrize(
    ("missing", "text"), [("job_id", "'job-id' is missing"), ("tag", "'tag' is missing"), ("vmstate", "'vmstate'")]
)
def test_arguments(machine, missing, text):
    peer = machine()
    arguments = {"job_id": "a", "tag": "one", "vmstate": "disk0", "devices": ["disk0"]}
    del arguments[missing]
    with pytest.raises(QmpError, match=text):
        peer.command("snapshot-save", **arguments)
    for wrong in ({"job_id": "1"}, {"devices": "disk0"}, {"tag": 1}, {"node": "x"}):
        with pytest.raises(QmpError):
            peer.command("snapshot-save", **{**arguments, missing: "x", **wrong})
    with pytest.raises(QmpError, match="Job not found"):
        peer.command("job-dismiss", id="a")
    assert peer.command("query-jobs") == []


def test_quit_waits_for_a_job(machine, tmp_path):
    peer = machine()
    peer.command("snapshot-save", job_id="a", tag="one", vmstate="x", devices=[])
    peer.command("quit")
    assert peer.process.wait(20) == 0
    assert peer.words() == ""
    assert not [path for path in (tmp_path / "snapshots").iterdir() if path.name.startswith(".")]


def test_the_how_to_is_true(tmp_path):
    page = (REPOSITORY / "docs/how-to/snapshots.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("first ")
    assert not list((tmp_path / "snapshots").iterdir())


def test_a_reset_keeps_what_was_loaded(machine):
    """The guest's registers belong to its RAM, also those that were loaded and have not run yet."""
    peer = machine()
    first = steps(peer)
    assert hmp(peer, "savevm first") == ""
    peer.command("cont")
    wait_until(lambda: peer.command("query-status")["running"])
    peer.command("stop")
    assert hmp(peer, "loadvm first") == ""
    peer.command("system_reset")
    assert peer.command("x-verify") == {"steps": first, "equal": True} | {"first-difference": None}
