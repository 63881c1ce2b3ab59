"""A whole migration while a part fails: the disk, the memory, the dirty log, time itself.

Whatever it is, it ends in one of two ways: with one clear error and the machine running where it was, or complete.
What failed for one attempt keeps nobody from the next.
"""

import os
import re
import resource
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.monitor.client import QmpError
from qmig_e2k.testing import pair
from support import wait_until

SIZE = 4 << 20
GUEST = ("-m", "16M", "-smp", "2", "--guest", "random,threads=2,wss=4M,rate=5000")


@pytest.fixture
def machines(serve):
    """A machine that runs and a process that waits for one."""
    source, destination = serve(*GUEST, machine="e2k"), serve(*GUEST, machine="e2k", incoming="defer")
    source.command("cont")
    return source, destination


def limited(peer, kind, value):
    """From now on the kernel refuses the process more than that."""
    resource.prlimit(peer.process.pid, kind, (value, resource.RLIM_INFINITY))


def has_written(peer, pages):
    """The guest has: zero pages need next to no room."""

    def found():
        memory = peer.memory(4 << 20)
        return sum(any(memory[at : at + 4096]) for at in range(0, len(memory), 4096)) > pages

    wait_until(found, what="the guest writing")


def stays(peer, *words):
    """The migration has failed, says why, and the machine runs."""
    answer = peer.wait_migration("failed")
    assert any(word in answer["error-desc"] for word in words), answer["error-desc"]
    assert "\n" not in answer["error-desc"]
    assert peer.run_state() == "running"


def arrives(source, destination, uri=None):
    """It moves all the same, and its memory is what its steps make of it."""
    uri = uri or destination.listen()
    source.command("migrate", uri=uri)
    source.wait_migration("completed")
    if uri.startswith("file:"):
        destination.command("migrate-incoming", uri=uri)
    destination.wait_arrived()
    destination.command("stop")
    assert destination.command("x-verify")["equal"]


# ---- disk


@pytest.mark.parametrize("mapped", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_file_that_can_grow_no_further(machines, tmp_path, mapped):
    """The disk takes some of it: once not even the head, once half of RAM, once all but the end."""
    source, destination = machines
    for side in machines:
        side.set_capabilities(mapped_ram=mapped)
    uri = f"file:{tmp_path}/stream"
    has_written(source, 400)
    for most in (4096, 100_000, 1 << 20):
        limited(source, resource.RLIMIT_FSIZE, most)
        source.command("migrate", uri=uri)
        stays(source, "File too large")
    limited(source, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
    arrives(source, destination, uri)


@pytest.mark.long
def test_a_disk_that_is_full(machines, room, tmp_path):
    """A file system with less room than RAM has; with more it does."""
    source, destination = machines
    uri = f"file:{tmp_path}/small/stream"
    has_written(source, 700)
    source.command("migrate", uri=uri)
    stays(source, "No space left")
    assert room(64 << 20)
    arrives(source, destination, uri)


def test_a_disk_with_errors(machines):
    """Address 0 of a process can neither be written nor read: the kernel says EIO."""
    source, destination = machines
    source.command("migrate", uri="file:/proc/self/mem")
    stays(source, "Input/output error")
    destination.command("migrate-incoming", uri="file:/proc/self/mem")
    answer = destination.wait_migration("failed")
    assert "Input/output error" in answer["error-desc"]
    assert destination.run_state() == "inmigrate"
    arrives(source, destination)


# ---- memory


def address_space(peer):
    """Bytes that the process has mapped."""
    status = (Path("/proc") / str(peer.process.pid) / "status").read_text()
    return int(re.search(r"VmSize:\s+(\d+)", status)[1]) << 10


NO_MEMORY = ("no memory", "temporarily unavailable", "Cannot allocate memory")
MODES = {
    "precopy": ({}, {}),
    "multifd": ({"multifd": True}, {"multifd_channels": 4, "multifd_compression": "zstd"}),
    "xbzrle": ({"xbzrle": True}, {"xbzrle_cache_size": 64 << 20}),
    "compress": ({"compress": True}, {"compress_threads": 4}),
}


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.long] if mode != "precopy" else []) for mode in MODES]
)
def test_a_source_without_memory(serve, mode):
    """Not even for a thread, and then for some of what the migration wants; the machine lives through all of it."""
    capabilities, parameters = MODES[mode]
    source = serve(*GUEST, machine="e2k")
    source.command("cont")
    for more in (0, 9 << 20, 18 << 20, None):
        # whoever is left alone in the middle of it may wait on, so each attempt has one of its own
        destination = serve(*GUEST, machine="e2k", incoming="defer")
        for side in (source, destination):
            side.set_capabilities(**capabilities)
            side.command("migrate-set-parameters", **parameters)
        uri = destination.listen()
        limited(source, resource.RLIMIT_AS, resource.RLIM_INFINITY if more is None else address_space(source) + more)
        with suppress(QmpError):  # query-migrate says the same
            source.command("migrate", uri=uri)
        wait_until(lambda: source.migration()["status"] in ("failed", "completed"), what="the end of the attempt")
        limited(source, resource.RLIMIT_AS, resource.RLIM_INFINITY)
        if source.migration()["status"] == "completed":
            break
        stays(source, *NO_MEMORY)
        assert destination.run_state() == "inmigrate"
        destination.close()
    destination.wait_arrived()
    destination.command("stop")
    assert destination.command("x-verify")["equal"]


@pytest.mark.parametrize("more", [0, pytest.param(9 << 20, marks=pytest.mark.long)])
def test_a_destination_without_memory(machines, more):
    """The source hears that it is over; the destination says why, and takes the machine once it can."""
    source, destination = machines
    limited(destination, resource.RLIMIT_AS, address_space(destination) + more)
    with suppress(QmpError):
        source.command("migrate", uri=destination.listen())
        stays(source, "closed", "refused")
    limited(destination, resource.RLIMIT_AS, resource.RLIM_INFINITY)
    answer = destination.wait_migration("failed")
    assert any(word in answer["error-desc"] for word in NO_MEMORY), answer
    arrives(source, destination)


# ---- dirty log


def test_a_dirty_log_that_fails(tmp_path):
    """Its descriptor becomes another one between two rounds; the machine runs on, and the next attempt has its own."""
    with pair(size=SIZE) as (source, destination):
        source.vm.set_parameters(max_bandwidth=SIZE // 4)
        source.vm.start()
        target, arrival = destination.listen()
        migration = source.vm.migrate(target)
        wait_until(lambda: migration.info().get("ram", {}).get("transferred", 0) > SIZE // 16, what="the first pages")
        logs = [int(link.name) for link in Path("/proc/self/fd").iterdir() if "pagemap" in where(link)]
        assert logs, "the dirty log of this machine is the kernel's"
        nothing = os.open(os.devnull, os.O_RDONLY)
        for log in logs:
            os.dup2(nothing, log)
        os.close(nothing)
        source.vm.set_parameters(max_bandwidth=0)
        with pytest.raises(MigrationError, match="dirty"):
            migration.wait(20)
        assert source.vm.run_state == "running"
        with pytest.raises(MigrationError):
            arrival.wait(20)
        target, arrival = destination.listen()
        source.vm.migrate(target).wait(20)
        arrival.wait(20)
        destination.vm.stop()
        destination.emulator.check()


def where(link):
    try:
        return str(link.readlink())
    except FileNotFoundError:  # the descriptor by which the folder is read
        return ""


# ---- time


@pytest.mark.parametrize("side", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_for_which_time_jumps(machines, side):
    """One side is not run for a while in the middle: to it the clock jumps, to the other it falls silent."""
    source, destination = machines
    has_written(source, 400)  # else it is over before anybody has looked
    source.command("migrate-set-parameters", max_bandwidth=2 << 20)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("transferred", 0) > 1 << 18, what="pages")
    process = machines[side].process
    process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with pytest.raises(TimeoutError):
            machines[side].qmp._message(1.0)
    finally:
        process.send_signal(signal.SIGCONT)
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.wait_migration("completed")
    destination.wait_arrived()
    destination.command("stop")
    assert destination.command("x-verify")["equal"]


@pytest.mark.long
def test_a_deadline_that_passes_in_a_jump(machines):
    """It was over before anybody could look: the migration is cancelled, not half of it."""
    source, destination = machines
    source.command("migrate-set-parameters", max_bandwidth=1 << 18, x_deadline=1, x_deadline_action="cancel")
    source.command("migrate", uri=destination.listen())
    process = source.process
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    process.send_signal(signal.SIGCONT)
    assert "x-deadline" in source.wait_migration("cancelled")["error-desc"]
    assert source.run_state() == "running"
    source.command("migrate-set-parameters", max_bandwidth=0, x_deadline=0)
    destination.wait_migration("failed")
    arrives(source, destination)
