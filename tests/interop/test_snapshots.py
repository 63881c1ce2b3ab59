"""Snapshots beside those of a real QEMU 7.2: the same events and texts; and QEMU reads the files."""

import re

import pytest

from support import assert_same_memory, mixed_ram

SIZE = 8 << 20
DISK = 16 << 20


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


def hmp(peer, line):
    return peer.command("human-monitor-command", command_line=line)


def without_number(found):
    return "N" * len(found.group())


def told_until(peer, status):
    """Events up to a job's `status`, by name or status; what a migration says of itself depends on its passes."""
    found = []
    while found[-1:] != [status]:
        event = peer.qmp.event(30)
        assert event is not None, found
        if event["event"] != "MIGRATION_PASS":
            found.append(event.get("data", {}).get("status", event["event"]))
    return found


@pytest.fixture
def disk(qemu, tmp_path):
    """A QEMU with a disk that takes snapshots: node `disk0`."""

    def start(*arguments, **options):
        peer, path = qemu(*arguments, **options), str(tmp_path / "disk0")

        def create(job_id, **what):
            peer.command("blockdev-create", job_id=job_id, options=what)
            told_until(peer, "concluded")
            peer.command("job-dismiss", id=job_id)
            told_until(peer, "null")

        create("file", driver="file", filename=path, size=0)
        peer.command("blockdev-add", driver="file", filename=path, node_name="file0")
        create("image", driver="qcow2", file="file0", size=DISK)
        peer.command("blockdev-add", driver="qcow2", file="file0", node_name="disk0")
        return peer

    return start


def test_everything_is_told_alike(disk, serve, tmp_path):
    peers = disk("-m", "4M"), serve("-m", "4M", "--snapshot-dir", str(tmp_path / "snapshots"))
    stories = []
    for peer in peers:
        peer.set_capabilities(events=True)
        peer.command("cont")
        story = []

        def job(name, tag, peer=peer, story=story, **more):
            peer.command(name, job_id="job", tag=tag, devices=["disk0"], **more)
            story.append(told_until(peer, "concluded"))
            (answer,) = peer.command("query-jobs")
            story.append({key: key == "error" or value for key, value in answer.items()})
            peer.command("job-dismiss", id="job")
            story.append(told_until(peer, "null"))
            story.append(peer.run_state())

        job("snapshot-save", "one", vmstate="disk0")
        story.append(peer.migration().keys() >= {"status", "ram", "total-time", "downtime", "setup-time"})
        job("snapshot-save", "one", vmstate="disk0")
        job("snapshot-delete", "one")
        lines = ("info snapshots", "savevm two", "savevm one two", "loadvm", "delvm", "info snapshots now", "delvm two")
        story += [hmp(peer, line) for line in lines]
        peer.command("stop")
        hmp(peer, "savevm x")
        hmp(peer, "loadvm x")
        story.append(peer.run_state())
        hmp(peer, "savevm a-longer-name-than-the-column")
        story.append(re.sub(r" +[\d.]+ .iB|\d", without_number, hmp(peer, "info snapshots")))
        stories.append(story)
    theirs, ours = stories
    assert ours == theirs


def test_qemu_takes_a_snapshot_as_a_migration(qemu, serve, image, content, tmp_path):
    source = serve("-m", "8M", "--snapshot-dir", str(tmp_path / "snapshots"), ram=image)
    assert hmp(source, "savevm x") == ""
    path = tmp_path / "snapshots" / "x.qmig"
    destination = qemu("-m", "8M", incoming=f"exec:cat {path}")
    destination.wait_arrived()
    assert_same_memory(destination.memory(SIZE), content)
