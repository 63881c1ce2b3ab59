"""Postcopy between this project and a real QEMU 7.2, in both directions: RAM, requests, statuses, recoveries.

QEMU's `-M none` has no CPU: what touches missing memory there is `pmemsave`, one page after the other. Ours is a
program in which as many threads as pages touch at once: a QEMU source with a limited bandwidth answers ten times a
second only.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from interop.test_query_migrate import members
from peer import Peer
from qmig_e2k import Vm
from qmig_e2k.monitor.client import QmpClient, QmpError
from qmig_e2k.testing import Proxy
from support import PAGE, assert_same_memory, mixed_ram, wait_until, written

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
        for name in ("qmp", "oob"):
            self._vm.serve_qmp(f"unix:{folder}/{name}")
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
            oob = f"unix:{tmp_path}/qemu0/oob,server=on,wait=off"
            destination = qemu("-m", "16M", "-qmp", oob, incoming="defer")
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
    ram = done[0]["ram"]
    assert ram["precopy-bytes"] + ram["downtime-bytes"] + ram["postcopy-bytes"] == ram["transferred"]
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
def test_recovery(sides, content, tmp_path, here, there, preempt):
    """The connection is cut, then paused at the source, then at the destination; each time pages are fetched again."""
    source, destination = sides(here, there, postcopy_preempt=preempt)
    with Proxy(int(destination.listen().rpartition(":")[2])) as proxy:
        switch(source, destination, proxy.uri)
        touch(destination, content)
        asked = [requests(source)]
        for turn, lose in enumerate(
            [proxy.cut, lambda: source.command("migrate-pause"), lambda: destination.command("migrate-pause")], 1
        ):
            lose()
            for side in (source, destination):
                side.wait_migration("postcopy-paused")
            assert (source.run_state(), destination.run_state()) == ("finish-migrate", "running")
            uri = f"unix:{tmp_path}/{turn}"
            destination.command("migrate-recover", uri=uri)
            source.command("migrate", uri=uri, resume=True)
            for side in (source, destination):
                side.wait_migration("postcopy-active")
            touch(destination, content, SIZE - turn * TOUCHED * PAGE)
            asked.append(requests(source))
    assert min(after - before for before, after in itertools.pairwise(asked)) >= 50
    assert asked[-1] >= 4 * 50
    finish(source, destination, content)


@BOTH_WAYS
def test_a_reader_waits_through_a_pause(sides, content, tmp_path, here, there):
    """Whoever stands in a missing page when the connection is cut goes on after the recovery, as if nothing had been.

    QEMU's main thread is the reader: what recovers it has to be out of band, as it was meant.
    """
    source, destination = sides(here, there)
    with (
        Proxy(int(destination.listen().rpartition(":")[2])) as proxy,
        QmpClient(f"unix:{destination.folder}/oob", oob=True) as second,
        ThreadPoolExecutor(1) as reader,
    ):
        switch(source, destination, proxy.uri)
        reading = reader.submit(destination.memory, SIZE)
        asked = requests(source)
        wait_until(lambda: requests(source) > asked, what="a request")
        proxy.cut()
        source.wait_migration("postcopy-paused")
        # the destination notices by itself, but cannot tell
        uri = f"unix:{tmp_path}/again"
        wait_until(lambda: recovered(second, uri), what="a destination that takes a new connection")
        assert not reading.done()
        source.command("migrate", uri=uri, resume=True)
        source.wait_migration("postcopy-active")
        source.command("migrate-set-parameters", max_postcopy_bandwidth=0)
        assert_same_memory(reading.result(30), content)
    finish(source, destination, content)


def recovered(client, uri):
    """Whether migrate-recover is taken: not before the destination has noticed that it has lost its source."""
    try:
        client.execute_oob("migrate-recover", uri=uri)
    except QmpError:
        return False
    return True


@BOTH_WAYS
def test_after_most_of_the_memory_was_sent(sides, content, here, there):
    """What the destination has already is not asked for; what it has and is out of date would be discarded."""
    source, destination = sides(here, there)
    source.command("migrate-set-parameters", max_bandwidth=8 * SLOW)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("transferred", 0) > 6 << 20, what="half of the memory")
    source.command("migrate-start-postcopy")
    for side in (source, destination):
        side.wait_migration("postcopy-active")
    destination.wait_arrived()
    asked = requests(source)
    assert_same_memory(destination.memory(1 << 20), content[: 1 << 20])
    assert requests(source) == asked == 0
    touch(destination, content)
    moved, _ = finish(source, destination, content)
    assert 6 << 20 <= moved["ram"]["precopy-bytes"] < moved["ram"]["transferred"]
    assert 0 < moved["ram"]["postcopy-bytes"] < 6 << 20


def test_a_guest_that_writes_until_the_switch(qemu, serve):
    """All of RAM was sent, parts of it are out of date again: QEMU drops those, and asks for them."""
    source = serve("-m", "16M", "--guest", "random,wss=8M,rate=1000000")
    destination = qemu("-m", "16M", incoming="defer")
    for side in (source, destination):
        side.set_capabilities(postcopy_ram=True)
        side.command("cont")
    wait_until(lambda: written(source.memory(8 << 20)), what="a write to every page of the working set")
    # written faster than it can be sent
    source.command("migrate-set-parameters", max_bandwidth=48 << 20, downtime_limit=1, max_postcopy_bandwidth=SLOW)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 3, what="the third round")
    source.command("migrate-start-postcopy")
    for side in (source, destination):
        side.wait_migration("postcopy-active")
    destination.wait_arrived()
    memory = source.memory(SIZE)
    touch(destination, memory, 8 << 20)
    assert requests(source) > 0
    finish(source, destination, memory)
    assert source.command("x-verify")["equal"]


@BOTH_WAYS
def test_memory_is_released_as_it_is_sent(sides, content, here, there):
    source, destination = sides(here, there, release_ram=True)
    switch(source, destination, destination.listen())
    touch(destination, content)
    finish(source, destination, content)
    assert not any(source.memory(SIZE))


@BOTH_WAYS
def test_no_recovery_of_released_memory(sides, tmp_path, here, there):
    """QEMU pauses and refuses to go on; here the migration has failed. Neither source runs the machine again."""
    source, destination = sides(here, there, release_ram=True)
    switch(source, destination, destination.listen())
    destination.command("migrate-pause")
    destination.wait_migration("postcopy-paused")
    answer = source.wait_migration("failed" if source.serves else "postcopy-paused")
    if source.serves:
        assert "ownership is unknown" in answer["error-desc"]
    with pytest.raises(QmpError, match=r"release-ram|postcopy-paused"):
        source.command("migrate", uri=f"unix:{tmp_path}/again", resume=True)
    assert source.run_state() == ("postmigrate" if source.serves else "finish-migrate")


@pytest.mark.parametrize(
    ("here", "there", "lost"), [("qemu", "ours", "source"), ("ours", "qemu", "source"), ("ours", "qemu", "destination")]
)
def test_one_side_dies(sides, content, here, there, lost):
    """The other keeps what it has, waits, and does not run a machine that may run elsewhere."""
    source, destination = sides(here, there)
    switch(source, destination, destination.listen())
    touch(destination, content)
    dead, left = (source, destination) if lost == "source" else (destination, source)
    dead.process.kill()
    dead.process.wait()
    left.wait_migration("postcopy-paused")
    if left is source:
        assert source.run_state() == "finish-migrate"
        with pytest.raises(QmpError, match="needs its memory"):
            source.command("cont")
        assert_same_memory(source.memory(SIZE), content)
    else:
        assert destination.run_state() == "running"
        assert destination.memory(TOUCHED * PAGE, SIZE - TOUCHED * PAGE) == content[-TOUCHED * PAGE :]


def test_the_way_back_breaks_before_the_hand_over(sides):
    """Half of the answer that we wait for arrives: the machine is still ours, and QEMU has not run it."""
    source, destination = sides("ours", "qemu")
    pong = 8
    with Proxy(int(destination.listen().rpartition(":")[2]), cut_back=pong + pong // 2) as proxy:
        source.command("migrate", uri=proxy.uri)
        source.command("migrate-start-postcopy")
        source.wait_migration("failed")
    assert source.run_state() == "running"
    assert destination.process.wait(20) == 1


@BOTH_WAYS
def test_a_destination_that_was_not_told(sides, content, here, there):
    """A destination without the capability refuses what it is told of postcopy; the source keeps its machine."""
    source, destination = sides(here, there)
    destination.set_capabilities(postcopy_ram=False)
    source.command("migrate", uri=destination.listen())
    source.wait_migration("failed")
    assert source.run_state() == "running"
    if destination.serves:
        assert "postcopy-ram" in destination.wait_migration("failed")["error-desc"]
        destination.set_capabilities(postcopy_ram=True)
        source.wait_let_go()
        switch(source, destination, destination.listen())
        finish(source, destination, content)
    else:
        assert "closed the channel" in source.migration()["error-desc"]
        assert destination.process.wait(20) == 1


@pytest.mark.parametrize("large", ["source", "destination"])
def test_other_page_sizes(qemu, serve, huge_pages, large):
    """Postcopy places whole host pages: QEMU and we refuse a side with others before anything moves."""
    huge_pages(SIZE)
    memory = [("--mem", "hugetlb") if large == side else () for side in ("source", "destination")]
    source = serve("-m", "16M", *memory[0]) if large == "source" else qemu("-m", "16M")
    destination = serve("-m", "16M", *memory[1], incoming="defer") if large != "source" else qemu(incoming="defer")
    for side in (source, destination):
        side.set_capabilities(postcopy_ram=True)
        side.command("cont")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("failed")
    assert source.run_state() == "running"
    if destination.serves:
        assert "page size" in destination.wait_migration("failed")["error-desc"]


@BOTH_PREEMPT
def test_answers_and_events(sides, content, tmp_path, preempt):
    """What query-migrate answers in each status, and which events tell of it, is the same from both kinds."""
    answers, told = {}, {}
    for here, there in (("qemu", "ours"), ("ours", "qemu")):
        source, destination = sides(here, there, postcopy_preempt=preempt, postcopy_blocktime=True)

        def note(status, kinds=(here, there), pair=(source, destination)):
            for role, kind, side in zip(("source", "destination"), kinds, pair, strict=True):
                answers[role, status, kind] = members(side.wait_migration(status))

        with Proxy(int(destination.listen().rpartition(":")[2])) as proxy:
            switch(source, destination, proxy.uri)
            note("postcopy-active")
            proxy.cut()
            note("postcopy-paused")
        uri = f"unix:{tmp_path}/{here}"
        destination.command("migrate-recover", uri=uri)
        source.command("migrate", uri=uri, resume=True)
        note("postcopy-active")
        finish(source, destination, content)
        note("completed")
        told["source", here], told["destination", there] = history(source), history(destination)
    for role in ("source", "destination"):
        assert told[role, "ours"] == told[role, "qemu"]
    for (role, status, kind), found in answers.items():
        if kind == "qemu":
            made = answers[role, status, "ours"]
            if status == "postcopy-paused":  # 7.2 does not say why, 10.0 does
                assert made.pop("error-desc") == "str"
            for answer in (made, found):  # 7.2 goes on to name the address at which nobody listens any more
                answer.pop("socket-address", None)
            assert made == found, (role, status)


def history(side):
    """The events that have come."""
    found = []
    while event := side.qmp.event():
        if event["event"] == "MIGRATION":
            found.append(event["data"]["status"])
        elif event["event"] in ("STOP", "RESUME"):
            found.append(event["event"])
    return found
