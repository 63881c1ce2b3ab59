"""Postcopy between two processes: a busy machine runs there at once, no write of its guest is lost."""

import time
from uuid import uuid4

import pytest

from qmig_e2k.testing import Proxy
from support import PAGE, assert_same_memory, mixed_ram, wait_until

SIZE = 64 << 20
GUEST = ("-m", "64M", "-smp", "2", "--guest", "random,threads=2")
SLOW = 4 << 20
"""Bytes per second at which the memory of this machine takes a quarter of a minute."""
TRICKLE = 64 << 10
"""Bytes per second of a background that needs a quarter of an hour: what comes was asked for."""
LATE = 0.02
"""Seconds that every byte takes longer where the vCPUs shall leave most of the memory at the source for minutes."""


@pytest.fixture
def machines(serve):
    """`machines(...)`: a source whose guest has been busy, and a destination that starts what arrives, for postcopy."""

    def machines(*options, **capabilities):
        sides = serve(*GUEST, *options, machine="e2k"), serve(*GUEST, *options, machine="e2k", incoming="defer")
        for side in sides:
            side.set_capabilities(postcopy_ram=True, **capabilities)
        source, there = sides
        source.command("migrate-set-parameters", max_bandwidth=SLOW, max_postcopy_bandwidth=TRICKLE)
        source.command("cont")
        there.command("cont")
        wait_until(lambda: all(map(any, (source.memory(PAGE), source.memory(PAGE, SIZE - PAGE)))), what="a busy guest")
        return sides

    return machines


def switch(source, uri):
    source.command("migrate", uri=uri)
    source.command("migrate-start-postcopy")


def requests(source):
    return source.migration().get("ram", {}).get("postcopy-requests", 0)


def hurry(source):
    source.command("migrate-set-parameters", max_postcopy_bandwidth=0)


def check(source, destination):
    """The guest has gone on at the destination from where it stopped; its memory is what all its steps made of it."""
    for side in (source, destination):
        side.wait_migration("completed", seconds=60)
    assert source.run_state() == "postmigrate"
    destination.command("stop")
    before, after = (side.command("x-verify", vcpus=True) for side in (source, destination))
    assert after["equal"], after
    for steps, then in zip(after["vcpu-steps"], before["vcpu-steps"], strict=True):
        assert steps > then > 0, (after, before)
    assert after["steps"] == sum(after["vcpu-steps"])
    return source.migration()


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("backing", ["anon", "memfd", "hugetlb"])
def test_a_busy_guest(machines, huge_pages, backing, preempt):
    if backing == "hugetlb":
        huge_pages(2 * SIZE)
    source, destination = machines("--mem", backing, postcopy_preempt=preempt)
    switch(source, destination.listen())
    wanted = 10 if backing == "hugetlb" else 100
    wait_until(lambda: requests(source) >= wanted, what="a guest that runs there on memory that is still here")
    assert destination.run_state() == "running"
    hurry(source)
    assert check(source, destination)["ram"]["postcopy-bytes"] > SIZE // 2


def test_with_a_delay_on_the_way(machines):
    """Every page that a vCPU waits for takes a round trip of 2 ms."""
    source, destination = machines()
    port = int(destination.listen().rpartition(":")[2])
    with Proxy(port, delay=0.001) as proxy:
        switch(source, proxy.uri)
        wait_until(lambda: requests(source) >= 10, what="requests")
        hurry(source)
        check(source, destination)
    latency = destination.migration()["x-fault-latency"]["total"]
    assert latency["count"] >= 10
    assert latency["p50"] >= 2_000_000


@pytest.mark.parametrize("preempt", [False, True])
def test_eight_cuts(machines, tmp_path, preempt):
    """The wire is cut again and again, here, there and in between; each time both sides find together again."""
    source, destination = machines(postcopy_preempt=preempt)
    target = destination.listen()
    for cut in range(8):
        port = int(target.rpartition(":")[2])
        with Proxy(port, delay=LATE) as proxy:
            if cut == 0:
                switch(source, proxy.uri)
            else:
                source.command("migrate", uri=proxy.uri, resume=True)
            for side in (source, destination):
                side.wait_migration("postcopy-active")
            had = proxy.forwarded
            wait_until(lambda had=had: proxy.forwarded > had, what="pages")
            if cut % 3 == 0:
                proxy.cut()
            else:
                (source, destination)[cut % 2].command("migrate-pause")
            for side in (source, destination):
                side.wait_migration("postcopy-paused")
                assert side.migration()["error-desc"]
            assert (source.run_state(), destination.run_state()) == ("finish-migrate", "running")
        uri = f"unix:{tmp_path}/{uuid4().hex[:8]}" if cut == 7 else "tcp:127.0.0.1:0"
        destination.command("migrate-recover", uri=uri)
        address = destination.migration()["socket-address"][0]
        target = uri if cut == 7 else f"tcp:{address['host']}:{address['port']}"
    source.command("migrate", uri=target, resume=True)
    source.wait_migration("postcopy-active")
    hurry(source)
    check(source, destination)


def test_memory_is_released_as_it_is_sent(machines):
    """With release-ram nothing can be recovered; whoever asks is told so."""
    source, destination = machines(release_ram=True)
    switch(source, destination.listen())
    wait_until(lambda: requests(source) > 0, what="a request")
    hurry(source)
    for side in (source, destination):
        side.wait_migration("completed", seconds=60)
    destination.command("stop")
    assert destination.command("x-verify")["equal"]
    assert not any(source.memory(SIZE)), "what was sent is gone"


@pytest.mark.parametrize(
    ("side", "link", "how"),
    [
        ("source", "up", "quit"),
        ("source", "down", "SIGTERM"),
        ("destination", "up", "SIGTERM"),
        ("destination", "down", "quit"),
    ],
)
def test_a_process_that_shall_end_ends(machines, side, link, how):
    """Also while its vCPUs are stuck in missing pages, or the other side waits for its memory."""
    source, destination = machines()
    with Proxy(int(destination.listen().rpartition(":")[2]), delay=LATE) as proxy:
        switch(source, proxy.uri)
        for peer in (source, destination):
            peer.wait_migration("postcopy-active")
        destination.wait_arrived()  # a channel that is lost before is the end of it
        if link == "down":
            source.command("migrate-pause")
            for peer in (source, destination):
                peer.wait_migration("postcopy-paused")
        peer, other = (source, destination) if side == "source" else (destination, source)
        if how == "quit":
            peer.command("quit")
        else:
            peer.process.terminate()
        assert peer.process.wait(30) == 0, peer.words()
        other.wait_migration("postcopy-paused", seconds=30)
    assert other.run_state() == ("running" if other is destination else "finish-migrate")


@pytest.fixture
def still(serve, tmp_path):
    """A source and a destination without a guest, the source full of data; and that data."""
    content = mixed_ram(SIZE)
    (tmp_path / "image").write_bytes(content)
    sides = serve(ram=tmp_path / "image"), serve(incoming="defer")
    for side in sides:
        side.set_capabilities(postcopy_ram=True)
    sides[0].command("migrate-set-parameters", max_bandwidth=SLOW, max_postcopy_bandwidth=TRICKLE)
    switch(sides[0], sides[1].listen())
    sides[1].wait_arrived()
    return *sides, content


def test_pages_can_be_brought_in_ahead_of_use(still):
    source, destination, content = still
    length = 1 << 20
    start = SIZE - length  # the background comes there last
    # from the end: the background goes on behind a page that was asked for, and must find nothing there
    for offset in reversed(range(start, SIZE, PAGE)):
        destination.command("x-block-prefault", block="ram", offset=offset, length=PAGE)
    assert requests(source) == length // PAGE
    start -= length
    destination.command("x-block-prefault", block="ram", offset=start, length=length)
    asked = requests(source)
    assert destination.memory(2 * length, start) == content[start:]
    assert requests(source) == asked, "all of it was there"
    hurry(source)
    source.wait_migration("completed")


def test_bandwidth_in_postcopy(still):
    """The background obeys its limit, and what is asked for does not wait for it."""
    source, destination, content = still
    source.command("migrate-set-parameters", max_postcopy_bandwidth=SLOW)
    begun, at = time.monotonic(), source.migration()["ram"]["transferred"]
    wait_until(lambda: source.migration()["ram"]["transferred"] > at + SLOW, what="a second's worth")
    assert time.monotonic() - begun > 0.7
    source.command("migrate-set-parameters", max_postcopy_bandwidth=TRICKLE)
    assert_same_memory(destination.memory(SIZE), content)
    for side in (source, destination):
        side.wait_migration("completed")
