"""The parts of the lab: a thread that touches memory in an order of its own, and a link of a known length and speed."""

import json
import socket
import threading
import time

import pytest

from qmig_e2k import RamBlock, faults
from qmig_e2k._core import Shaper, Toucher
from support import PAGE, wait_until

PAGES = 256
SIZE = PAGES * PAGE


def touched(block, **options):
    """The record of a toucher that has touched all it wants."""
    toucher = Toucher(block, **options)
    toucher.start()
    assert toucher.wait(20)
    return json.loads(toucher.record())


def test_a_toucher_measures_the_faults_of_a_block_that_is_served():
    """Every touch of a page that is served from elsewhere is a fault, and both sides count it."""
    content = RamBlock("content", SIZE)
    Toucher.fill(content)
    block = RamBlock("ram", SIZE, thp=False)
    with faults.arm(block, content) as service:
        record = touched(block, seed=3)
        # the toucher may go on a little before the record is made
        wait_until(lambda: service.stats()["phases"]["total"]["count"] == PAGES, what="the last record")
    assert (record["touches"], record["wrong"]) == (PAGES, 0)
    assert record["seconds"] > 0
    seen = record["faults"]
    assert seen["count"] == PAGES
    assert seen["p50_ns"] <= seen["p90_ns"] <= seen["p99_ns"] <= seen["p999_ns"] <= seen["max_ns"]
    assert sum(count for _, _, count in seen["buckets"]) == PAGES


def test_a_toucher_sees_pages_that_are_not_as_they_were_filled():
    block = RamBlock("ram", SIZE)
    Toucher.fill(block)
    block.write(7 * PAGE, bytes(PAGE))
    assert touched(block)["wrong"] == 1
    assert touched(block, write=True)["wrong"] == 1


def test_so_many_faults_and_no_more():
    content = RamBlock("content", SIZE)
    Toucher.fill(content)
    block = RamBlock("ram", SIZE, thp=False)
    with faults.arm(block, content):
        record = touched(block, faults=10)
    assert record["faults"]["count"] == 10
    assert record["touches"] == 10


def test_the_order_is_the_seeds():
    block = RamBlock("ram", SIZE)
    for order in ("random", "zipf"):
        first = Toucher(block, order=order, seed=1).order(PAGES)
        assert first == Toucher(block, order=order, seed=1).order(PAGES)
        assert first != Toucher(block, order=order, seed=2).order(PAGES)
    assert sorted(Toucher(block, seed=5).order(SIZE)) == list(range(PAGES))
    assert Toucher(block, order="seq").order(3) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [{"order": "walk"}, {"page": 1000}, {"page": 2 * SIZE}])
def test_what_cannot_be_touched(wrong):
    with pytest.raises(ValueError, match=r"walk|1000|has no page"):
        Toucher(RamBlock("ram", SIZE), **wrong)


def test_a_toucher_that_has_not_begun_has_nothing_to_wait_for():
    toucher = Toucher(RamBlock("ram", SIZE))
    assert not toucher.wait(0)
    with pytest.raises(ValueError, match="negative"):
        toucher.wait(-1)
    assert json.loads(toucher.record())["seconds"] is None
    toucher.stop()


def test_a_link_takes_its_time_each_way():
    with socket.create_server(("127.0.0.1", 0)) as server:
        shaper = Shaper(server.getsockname()[1], delay_us=20_000, mbit=100)
        with socket.create_connection(("127.0.0.1", shaper.port), timeout=20) as near:
            far, _ = server.accept()
            with far:
                begun = time.monotonic()
                near.sendall(b"x")
                assert far.recv(1) == b"x"
                far.sendall(b"y")
                assert near.recv(1) == b"y"
                assert time.monotonic() - begun >= 0.04
                shaper.close()
                assert near.recv(1) == b""


def test_a_link_is_as_slow_as_it_shall_be():
    sent = bytes(250_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        shaper = Shaper(server.getsockname()[1], mbit=10)
        with socket.create_connection(("127.0.0.1", shaper.port), timeout=20) as near:
            far, _ = server.accept()
            with far, far.makefile("rb") as stream:
                begun = time.monotonic()
                sender = threading.Thread(target=near.sendall, args=(sent,))
                sender.start()
                assert stream.read(len(sent)) == sent
                assert time.monotonic() - begun >= 0.19, "250 kB at 10 Mbit/s, but for what may be sent ahead"
                sender.join()
        shaper.close()


def test_a_link_that_is_too_fast_to_be_counted():
    with pytest.raises(ValueError, match="too fast"):
        Shaper(1, mbit=1 << 50)
