"""Postcopy between this project and a real QEMU 7.2, in both directions: RAM, requests, statuses, recoveries.

QEMU's `-M none` has no CPU: what touches missing memory there is `pmemsave`, one page after the other. Ours is a program
in which as many threads as pages touch at once: a QEMU source whose bandwidth is limited answers ten times a second only.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from peer import Peer
from qmig_e2k import Vm
from qmig_e2k.monitor.client import QmpClient
from qmig_e2k.testing import Proxy
from support import PAGE, assert_same_memory, mixed_ram

SIZE = 16 << 20
SLOW = 1 << 20
"""Bytes per second at which this memory takes a dozen seconds: what is touched before has to be asked for."""
TOUCHED = 128
"""Pages that are touched, one by one."""
BOTH_WAYS = pytest.mark.parametrize(("here", "there"), [("qemu", "ours"), ("ours", "qemu")])
BOTH_PREEMPT = pytest.mark.parametrize("preempt", [False, True], ids=["main", "preempt"])


class Program(Peer):
    """A destination of ours in this process, driven by QMP like any other."""

    serves = True

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self._dumps = 0
        self._vm = Vm("none", Idle())
        self._ram = self._vm.add_ram("ram", SIZE)
        self._vm.serve_qmp(f"unix:{folder}/qmp")
        self._vm.incoming("defer")
        self.qmp = QmpClient(f"unix:{folder}/qmp")
        self._vcpus = ThreadPoolExecutor(TOUCHED)

    def words(self):
        return ""

    def touch(self, pages):
        """Let a thread for each page wait for it."""
        return [self._vcpus.submit(self._ram.prefault, page, PAGE) for page in pages]

    def close(self):
        self.qmp.close()
        self._vm.close()
        self._vcpus.shutdown()


class Idle:
    def start(self):
        pass

    def stop(self):
        pass


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


@pytest.fixture
def sides(qemu, serve, content, tmp_path):
    """`sides("qemu", "ours", ...)`: a running source full of data, and a destination, both allowed to do postcopy."""
    programs = []

    def sides(here, there, **capabilities):
        (tmp_path / "image").write_bytes(content)
        source = {"qemu": qemu, "ours": serve}[here]("-m", "16M", ram=tmp_path / "image")
        if there == "qemu":
            destination = qemu("-m", "16M", incoming="defer")
        else:
            destination = Program(tmp_path / "program")
            programs.append(destination)
        for side in (source, destination):
            side.set_capabilities(postcopy_ram=True, events=True, **capabilities)
            side.command("cont")
        source.command("migrate-set-parameters", max_bandwidth=SLOW, max_postcopy_bandwidth=SLOW)
        return source, destination

    yield sides
    for program in programs:
        program.close()


def switch(source, destination, uri):
    """Let the machine run there at once."""
    source.command("migrate", uri=uri)
    source.command("migrate-start-postcopy")
    for side in (source, destination):
        side.wait_migration("postcopy-active")
    destination.wait_arrived()


def touch(destination, content, until=SIZE):
    """Touch pages, the last one first: the background goes on behind a page that was asked for."""
    pages = range(until - PAGE, until - PAGE - TOUCHED * PAGE, -PAGE)
    if destination.serves:
        for done in destination.touch(pages):
            done.result(20)
    for page in pages:
        assert destination.memory(PAGE, page) == content[page : page + PAGE]


def requests(source):
    return source.migration()["ram"]["postcopy-requests"]


def finish(source, destination, content):
    """All the rest without a limit; both sides end well, the machine runs there only, with every byte."""
    source.command("migrate-set-parameters", max_postcopy_bandwidth=0)
    assert_same_memory(destination.memory(SIZE), content)
    done = [side.wait_migration("completed") for side in (source, destination)]
    assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")
    assert_same_memory(destination.memory(SIZE), content)
    return done


@BOTH_PREEMPT
@BOTH_WAYS
def test_a_machine_runs_before_its_memory(sides, content, here, there, preempt):
    source, destination = sides(here, there, postcopy_preempt=preempt)
    switch(source, destination, destination.listen())
    assert source.run_state() == "finish-migrate"
    assert destination.run_state() == "running"
    touch(destination, content)
    assert requests(source) >= 100
    moved, _ = finish(source, destination, content)
    assert moved["ram"]["postcopy-bytes"] > SIZE // 2


@BOTH_PREEMPT
@BOTH_WAYS
def test_recovery_after_a_cut(sides, content, tmp_path, here, there, preempt):
    source, destination = sides(here, there, postcopy_preempt=preempt)
    with Proxy(int(destination.listen().rpartition(":")[2])) as proxy:
        switch(source, destination, proxy.uri)
        touch(destination, content)
        proxy.cut()
        for side in (source, destination):
            side.wait_migration("postcopy-paused")
    before = requests(source)
    assert (source.run_state(), destination.run_state()) == ("finish-migrate", "running")
    uri = f"unix:{tmp_path}/again"
    destination.command("migrate-recover", uri=uri)
    source.command("migrate", uri=uri, resume=True)
    for side in (source, destination):
        side.wait_migration("postcopy-active")
    touch(destination, content, SIZE // 2)
    assert requests(source) >= before + 100
    finish(source, destination, content)
