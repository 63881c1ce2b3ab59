"""Snapshots of machines in this process: what is kept, what comes back, what is refused, and what a failure leaves."""

import os
import threading
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from qmig_e2k import MigrationError, StreamError, Vm
from qmig_e2k.analyze import analyze
from qmig_e2k.migration.snapshots import savevm
from qmig_e2k.monitor import snapshots as snapshot_jobs
from qmig_e2k.savevm import SaveVmHandler
from qmig_e2k.testing import pair
from qmig_e2k.vmstate import VMStateDescription, uint8
from support import mixed_ram, wait_until

SIZE = 1 << 20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "snapshots"


@pytest.fixture
def sides(folder):
    """Two machines that have the same snapshots."""
    with pair(size=SIZE, snapshot_dir=folder) as made:
        yield made


def runs(side):
    before = side.emulator.value
    wait_until(lambda: side.emulator.value > before + 1000, what="the guest counting")


def tags(side):
    return [snapshot.tag for snapshot in side.vm.snapshots()]


def refused(action, *arguments):
    with pytest.raises(MigrationError) as caught:
        action(*arguments)
    return caught.value


def told(events):
    """What has happened to run state and migrations."""
    found = []
    while (event := events.next(0)) is not None:
        name, data, _ = event
        found.append(name if data is None else data.split('"')[3] if name == "MIGRATION" else name)
    return found


@pytest.mark.parametrize("format_", ["2.9", "7.2", "10.0"])
@pytest.mark.parametrize(
    "capabilities", ["", "mapped_ram multifd", "xbzrle compress", "postcopy_ram release_ram validate_uuid"]
)
def test_a_guest_goes_back(folder, format_, capabilities):
    """Whatever is switched on for migrations: a snapshot is a plain stream."""
    with pair(size=SIZE, snapshot_dir=folder, format=format_) as (here, there):
        switched = dict.fromkeys(capabilities.split(), True)
        here.vm.set_capabilities(events=True, **switched)
        here.vm.set_parameters(max_bandwidth=1 << 20)  # does not count either
        here.vm.start()
        runs(here)
        events = here.vm.machine.control.subscribe()
        here.vm.savevm("one")
        after = here.emulator.value
        assert told(events) == ["STOP", "setup", "MIGRATION_PASS", "MIGRATION_PASS", "completed", "RESUME"]
        events.close()
        assert here.vm.machine.control.outgoing_status == "completed"
        runs(here)
        assert {name for name, on in here.vm.machine.settings.capabilities.items() if on} == {
            "events",
            *(name.replace("_", "-") for name in switched),
        }

        there.vm.loadvm("one")
        assert there.vm.run_state == "prelaunch"
        assert 1000 < there.emulator.value <= after
        there.emulator.check()
        there.vm.start()
        runs(there)

        here.vm.loadvm("one")
        assert here.vm.run_state == "running"
        runs(here)
        for side in (here, there):
            side.vm.stop()
            side.emulator.check()


def test_a_machine_that_stands_still_is_left_so(sides):
    here, _ = sides
    events = here.vm.machine.control.subscribe()
    for state in ("prelaunch", "paused"):
        here.vm.savevm(state)
        here.vm.loadvm(state)
        assert here.vm.run_state == state
        assert "STOP" not in told(events)
        here.vm.start()
        runs(here)
        here.vm.stop()
        told(events)
    events.close()


def test_what_the_list_says(sides, folder):
    here, there = sides
    assert there.vm.snapshots() == []
    here.vm.savevm("a")
    here.vm.start()
    runs(here)
    here.vm.savevm("b")
    here.vm.stop()
    first, second = there.vm.snapshots()
    assert (first.tag, second.tag) == ("a", "b")
    assert first.vm_clock == 0 < second.vm_clock <= here.vm.machine.clock.now()
    assert second.size == (folder / "b.qmig").stat().st_size
    assert abs(second.date.timestamp() - (folder / "b.qmig").stat().st_mtime) < 2
    there.vm.delvm("a")
    assert tags(here) == ["b"]
    assert refused(here.vm.delvm, "a").kind == "io"


def test_one_of_the_same_name_is_replaced(sides):
    here, there = sides
    for content in (1, 2):
        here.ram.numpy()[:] = content
        here.vm.savevm("x")
    there.vm.loadvm("x")
    assert (there.ram.numpy() == 2).all()
    assert tags(here) == ["x"]


def test_memory_is_as_it_was_to_the_byte(sides, folder):
    """Also where it has been written since, and where it was not yet written then."""
    here, _ = sides
    memory = here.ram.numpy()
    memory[: SIZE // 2] = np.frombuffer(mixed_ram(SIZE // 2), np.uint8)
    before = memory.copy()
    here.vm.savevm("x")
    memory[SIZE // 4 :] = 7
    here.vm.loadvm("x")
    assert (memory == before).all()
    made = analyze(folder / "x.qmig")
    assert made.complete, made.error


def test_a_snapshot_can_be_received_like_any_machine(sides, folder):
    here, there = sides
    here.vm.start()
    runs(here)
    here.vm.savevm("x")
    there.vm.incoming(f"file:{folder}/x.qmig").wait(20)
    assert there.vm.run_state == "running"
    runs(there)
    there.vm.stop()
    there.emulator.check()


def test_a_machine_can_migrate_afterwards(sides):
    here, there = sides
    here.vm.start()
    runs(here)
    here.vm.savevm("x")
    here.vm.loadvm("x")
    uri, arrival = there.listen()
    here.vm.migrate(uri).wait(20)
    arrival.wait(20)
    runs(there)
    there.vm.stop()
    there.emulator.check()
    assert "handed over" in str(refused(here.vm.savevm, "y"))
    assert "handed over" in str(refused(here.vm.loadvm, "x"))


@pytest.mark.parametrize("tag", ["a/b", "..", ".x", "a b", "100%", "%41", "Ünïcode", "x.qmig", "-", "1", "x" * 250])
def test_any_name_that_can_be_read(sides, folder, tag):
    here, there = sides
    here.vm.savevm(tag)
    assert tags(there) == [tag]
    assert [path.parent for path in folder.iterdir()] == [folder]
    there.vm.loadvm(tag)
    there.vm.delvm(tag)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("tag", ["", "two\nlines", "\0", "x" * 251, "ü" * 80])
def test_names_that_no_snapshot_can_have(sides, tag):
    for action in (sides[0].vm.savevm, sides[0].vm.loadvm, sides[0].vm.delvm):
        assert refused(action, tag).kind == "invalid-argument"


def test_without_a_directory_there_are_none():
    with pair(size=SIZE) as (here, _):
        for action in (here.vm.savevm, here.vm.loadvm, here.vm.delvm):
            assert "--snapshot-dir DIR, or Vm(snapshot_dir=DIR)" in str(refused(action, "x"))
        assert refused(here.vm.snapshots).kind == "invalid-state"


def test_other_files_are_none_of_ours(sides, folder):
    here, _ = sides
    here.vm.savevm("x")
    whole = (folder / "x.qmig").read_bytes()
    for name in ("x", ".qmig", "%58.qmig", ".hidden.qmig"):
        (folder / name).write_bytes(whole)
    (folder / "text.qmig").write_text("no snapshot")
    (folder / "folder.qmig").mkdir()
    assert tags(here) == ["x"]
    for tag in ("text", "folder"):
        assert "is not whole" in str(refused(here.vm.loadvm, tag))


# ---- what is refused


def test_blockers_keep_a_machine_from_being_saved(sides):
    here, _ = sides
    here.vm.savevm("x")
    here.vm.start()
    number = here.vm.add_blocker("the heap is on loan")
    before = list(here.emulator.log)
    error = refused(here.vm.savevm, "y")
    assert (error.kind, error.message) == ("blocked", "the heap is on loan")
    assert here.emulator.log == before, "looked at before the guest is stopped"
    here.vm.loadvm("x")
    here.vm.del_blocker(number)
    here.vm.savevm("y")


def test_a_device_that_no_stream_brings(sides):
    here, there = sides
    here.vm.savevm("x")
    description = VMStateDescription("odd", fields=[uint8("x")], unmigratable=True)
    there.vm.register(description, {"x": 0})
    there.vm.start()
    assert refused(there.vm.savevm, "y").kind == "blocked"
    assert refused(there.vm.loadvm, "x").kind == "blocked"
    assert there.vm.run_state == "running"


def test_not_while_it_migrates(sides):
    here, there = sides
    here.vm.savevm("x")
    here.vm.set_parameters(max_bandwidth=1)
    here.vm.start()
    uri, arrival = there.listen()
    migration = here.vm.migrate(uri)
    for side, text in ((here, "a migration is in progress"), (there, "waits for an incoming migration")):
        for action in (side.vm.savevm, side.vm.loadvm):
            error = refused(action, "x")
            assert error.kind == "invalid-state"
            assert text in error.message
    migration.cancel()
    assert refused(migration.wait, 20).kind == "cancelled"
    refused(arrival.wait, 20)
    assert here.vm.run_state == "running"
    here.vm.loadvm("x")


class Slow(SaveVmHandler):
    """A device that keeps whoever saves or loads it waiting until it is told to go on."""

    def __init__(self):
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def save(self, writer):
        self.reached.set()
        assert self.go_on.wait(60)
        writer.u8(1)

    def load(self, reader, version):
        self.reached.set()
        assert self.go_on.wait(60)
        reader.u8()


@pytest.fixture
def slow(sides):
    """The device, on both machines."""
    made = Slow()
    for side in sides:
        side.vm.register(made, name="slow")
    yield made
    made.go_on.set()


class Attempt(threading.Thread):
    """A call that may fail, in a thread of its own, which is at the slow device when this is made."""

    def __init__(self, slow, action, *arguments):
        super().__init__()
        self._call = action, arguments
        self.error = None
        slow.reached.clear()
        slow.go_on.clear()
        self.start()
        assert slow.reached.wait(20)

    def run(self):
        action, arguments = self._call
        try:
            action(*arguments)
        except MigrationError as error:
            self.error = error

    def ended(self):
        self.join(20)
        assert not self.is_alive()
        return self.error


@pytest.mark.parametrize("action", ["savevm", "loadvm"])
def test_one_thing_at_a_time(sides, slow, action):
    here, _ = sides
    here.vm.savevm("x")
    here.vm.start()
    attempt = Attempt(slow, getattr(here.vm, action), "x")
    for another in (
        lambda: here.vm.savevm("y"),
        lambda: here.vm.loadvm("x"),
        lambda: here.vm.migrate("tcp:127.0.0.1:1"),
        lambda: here.vm.add_ram("more", 4096),
    ):
        assert refused(another).kind == "invalid-state"
    assert here.vm.run_state == ("save-vm" if action == "savevm" else "restore-vm")
    slow.go_on.set()
    assert attempt.ended() is None
    assert here.vm.run_state == "running"
    assert tags(here) == ["x"]


def test_a_cancelled_one_leaves_the_old(sides, slow, folder):
    here, _ = sides
    here.vm.savevm("x")
    before = (folder / "x.qmig").read_bytes()
    here.vm.start()
    attempt = Attempt(slow, here.vm.savevm, "x")
    assert here.vm.machine.control.cancel()
    slow.go_on.set()
    assert attempt.ended().kind == "cancelled"
    assert here.vm.machine.control.outgoing_status == "cancelled"
    assert here.vm.run_state == "running"
    assert (folder / "x.qmig").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["x.qmig"]
    here.vm.savevm("x")


def job_save(side, tag):
    snapshot_jobs.save(side.vm.machine, {"job-id": "job", "tag": tag, "vmstate": "x", "devices": ["x"]})


def job_ended(side):
    def over():
        (job,) = side.vm.machine.jobs.query()
        return job if job["status"] == "concluded" else None

    return wait_until(over, what="the end of the job")


def test_a_cancelled_job(sides, slow, folder):
    """While it writes."""
    here, _ = sides
    here.vm.start()
    slow.reached.clear()
    slow.go_on.clear()
    job_save(here, "x")
    assert slow.reached.wait(20)
    here.vm.machine.jobs.cancel("job")
    slow.go_on.set()
    assert "snapshot 'x' was not saved: cancelled" in job_ended(here)["error"]
    assert (here.vm.run_state, list(folder.iterdir())) == ("running", [])


def test_a_job_that_is_cancelled_before_it_writes(sides, folder):
    here, _ = sides
    with here.vm.machine.lock:  # it is stopped here, between admission and the first byte
        job_save(here, "x")
        wait_until(lambda: here.vm.machine.saving)
        here.vm.machine.jobs.cancel("job")
    assert "was not saved: cancelled" in job_ended(here)["error"]
    assert list(folder.iterdir()) == []
    here.vm.savevm("x")


# ---- failures


class Broken(SaveVmHandler):
    def save(self, writer):
        raise ValueError("out of order")


def test_a_device_that_cannot_be_saved(sides, folder):
    here, _ = sides
    here.vm.register(Broken(), name="broken")
    here.vm.start()
    error = refused(here.vm.savevm, "x")
    assert error.kind == "device-state"
    assert "snapshot 'x' was not saved: broken/0: out of order" in str(error)
    assert here.vm.run_state == "running"
    assert not list(folder.iterdir())
    runs(here)


@pytest.mark.parametrize("failing", ["stop", "start"])
def test_an_emulator_that_does_not_obey(sides, failing):
    here, there = sides
    here.vm.start()
    runs(here)
    here.emulator.failures.add(failing)
    assert f"did not {failing}" in str(refused(here.vm.savevm, "x"))
    here.emulator.failures.clear()
    if failing == "stop":
        assert here.vm.run_state == "running"
        assert tags(here) == []
    else:
        assert here.vm.run_state == "internal-error"
        there.vm.loadvm("x")
        there.emulator.check()


def test_an_emulator_that_neither_saves_nor_starts(sides):
    here, _ = sides
    here.vm.register(Broken(), name="broken")
    here.vm.start()
    here.emulator.failures.add("start")
    error = refused(here.vm.savevm, "x")
    assert error.kind == "device-state"
    assert "snapshot 'x' was not saved: broken/0: out of order; and then the emulator did not start" in str(error)
    assert (tags(here), here.vm.run_state) == ([], "internal-error")


def test_what_is_saved_is_not_called_unsaved(sides, monkeypatch):
    """Only what follows it fails: the guest does not run on, or the directory is not on disk."""
    here, there = sides
    here.vm.start()
    here.emulator.failures.add("start")
    assert "snapshot 'x' was saved, but then: the emulator did not start" in str(refused(here.vm.savevm, "x"))
    here.emulator.failures.clear()
    there.vm.loadvm("x")

    def fsync(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("qmig_e2k.migration.snapshot_files.os.fsync", fsync)
    there.vm.start()
    error = refused(there.vm.savevm, "y")
    assert error.kind == "io"
    assert "snapshot 'y' was saved, but then: whether it outlives a crash of the host is not known" in str(error)
    assert tags(there) == ["x", "y"]
    runs(there)


def test_a_new_directory_is_on_disk_in_its_parent(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd)))
    for _ in range(2):
        Vm("none", snapshot_dir=tmp_path / "new").close()
    assert synced == [tmp_path], "when it is made"


def test_a_directory_in_its_place(sides, folder):
    here, _ = sides
    (folder / "x.qmig").mkdir()
    here.vm.start()
    before = list(here.emulator.log)
    error = refused(here.vm.savevm, "x")
    assert error.kind == "io"
    assert f"{folder}/x.qmig is a directory" in str(error)
    assert here.emulator.log == before, "looked at before the guest is stopped"
    assert refused(here.vm.delvm, "x").kind == "io"


def test_snapshots_without_a_name_do_not_collide(sides, monkeypatch):
    """Two machines that begin in the same second, when neither name is taken yet."""
    here, there = sides

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("qmig_e2k.migration.snapshots.datetime", Clock)
    made = []

    class Other(SaveVmHandler):
        def save(self, writer):
            if not made:
                made.append(None)
                made[0] = savevm(there.vm.machine)

        def load(self, reader, version):
            pass

    here.vm.register(Other(), name="other")
    made.append(savevm(here.vm.machine))
    assert made == ["vm-20260102030405", "vm-20260102030405-2"]
    assert sorted(tags(here)) == made


def test_a_place_that_takes_no_files(sides, folder):
    here, _ = sides
    folder.rmdir()
    here.vm.start()
    before = list(here.emulator.log)
    assert refused(here.vm.savevm, "x").kind == "io"
    assert refused(here.vm.snapshots).kind == "io"
    assert here.vm.run_state == "running"
    assert here.emulator.log == before


def test_one_that_is_missing_or_cut_off_is_seen_before_the_guest_stops(sides, folder):
    here, _ = sides
    here.vm.savevm("x")
    whole = (folder / "x.qmig").read_bytes()
    (folder / "cut.qmig").write_bytes(whole[:-1])
    here.vm.start()
    before = list(here.emulator.log)
    for tag, text in (("none", "there is no snapshot 'none'"), ("cut", "was cut off")):
        error = refused(here.vm.loadvm, tag)
        assert error.kind == "io"
        assert text in str(error)
    assert here.vm.run_state == "running"
    assert here.emulator.log == before
    assert tags(here) == ["x"]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("way_out", ["loadvm", "reset", "incoming"])
def test_half_a_machine_never_runs(sides, folder, running, way_out):
    here, there = sides
    here.vm.savevm("x")
    whole = bytearray((folder / "x.qmig").read_bytes())
    whole[whole.rindex(b"tiny-counter", 0, whole.rindex(b"page_size"))] = ord("T")
    (folder / "bad.qmig").write_bytes(whole)
    if running:
        here.vm.start()
    error = refused(here.vm.loadvm, "bad")
    assert isinstance(error, StreamError)
    assert error.kind == "unknown-section"
    assert error.offset is not None
    assert "the machine's former state is lost" in str(error)
    assert here.vm.run_state == ("restore-vm" if running else "prelaunch")
    for action in (here.vm.start, lambda: here.vm.savevm("y"), lambda: here.vm.migrate("file:/dev/null")):
        assert "its state was lost when snapshot 'bad' could not be loaded" in str(refused(action))
    assert here.vm.machine.control.outgoing_status == "completed", "no migration was begun"
    assert any("state was lost" in reason for reason in here.vm.check())

    if way_out == "loadvm":
        here.vm.loadvm("x")
    elif way_out == "reset":
        here.vm.reset()
        assert "a reset does not bring back its RAM" in str(refused(here.vm.start))
        here.vm.loadvm("x")
    elif running:
        assert "has run" in str(refused(here.vm.incoming, "defer"))
        return
    else:
        uri, arrival = here.listen()
        there.vm.migrate(uri).wait(20)
        arrival.wait(20)
        assert here.vm.run_state == "prelaunch"
    assert here.vm.run_state == "prelaunch"
    here.vm.start()
    runs(here)


@pytest.mark.parametrize(
    ("machine", "ram", "kind", "text"),
    [
        ("none", "ram", "bad-configuration", "machine none, expected e2k-1.0"),
        ("e2k", "e2k.other", "unknown-block", "no RAM block 'e2k.other' here"),
    ],
)
def test_a_machine_is_not_given_up_for_the_snapshot_of_another(sides, folder, machine, ram, kind, text):
    with Vm(machine, snapshot_dir=folder) as other:
        other.add_ram(ram, SIZE)
        other.savevm("other")
    here, _ = sides
    here.vm.start()
    runs(here)
    before = list(here.emulator.log)
    error = refused(here.vm.loadvm, "other")
    assert isinstance(error, StreamError)
    assert error.kind == kind
    assert text in error.message
    assert "snapshot 'other' cannot be loaded, and nothing was done" in error.message
    assert (here.emulator.log, here.vm.run_state) == (before, "running")
    assert here.vm.check() == []
    runs(here)


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_a_machine_with_other_ram_is_another(sides, folder, size):
    with pair(size=size, snapshot_dir=folder) as (other, _):
        other.vm.savevm("other")
    here, _ = sides
    error = refused(here.vm.loadvm, "other")
    assert (error.kind, error.path) == ("block-mismatch", "ram/e2k.ram")
    assert f"{size} bytes there and {SIZE} here" in error.message
    assert here.vm.check() == []


def test_memory_that_may_grow_takes_a_snapshot_of_another_size(folder):
    for size in (SIZE, SIZE // 2):
        with Vm("none", snapshot_dir=folder) as vm:
            ram = vm.add_ram("ram", size, max_size=2 * SIZE)
            if size == SIZE:
                vm.savevm("x")
            else:
                vm.loadvm("x")
            assert ram.size == SIZE


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.995])
def test_a_file_with_a_hole_is_one_clear_error(sides, folder, place):
    """The end is there, and says that it is a snapshot; in the middle something is missing."""
    here, _ = sides
    here.ram.write(0, mixed_ram(SIZE))
    here.vm.savevm("x")
    whole = (folder / "x.qmig").read_bytes()
    at = int(len(whole) * place)
    (folder / "hole.qmig").write_bytes(whole[:at] + whole[at + 999 :])
    error = refused(here.vm.loadvm, "hole")
    assert ("cannot be loaded, and nothing was done" if place == 0 else "could not be loaded") in str(error)
    assert error.kind not in ("device-state", "io"), error
    assert error.offset is not None
    here.vm.loadvm("x")
    assert here.ram.read(0, SIZE) == mixed_ram(SIZE)


def test_closing_ends_a_load(sides, slow):
    here, _ = sides
    here.vm.savevm("x")
    attempt = Attempt(slow, here.vm.loadvm, "x")
    here.vm.close()
    slow.go_on.set()
    assert attempt.ended().kind == "cancelled"
