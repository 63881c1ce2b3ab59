"""`migrate_cancel` at random moments: the source runs on, the destination fails cleanly, and nothing is left behind.

A moment is a number of bytes sent, so it is one on a machine of any speed: within the setup, the first round, a later
one, or, where they were never sent, before the switchover, at which each migration would wait. The same two processes
do all of them; the last migration is let through, and its guest verified.
"""

import random
from functools import partial
from pathlib import Path

import pytest

from peer import ServePeer
from qmig_e2k.monitor.client import QmpError
from support import wait_until

RAM = 16 << 20
GUEST = ("-m", "16M", "-smp", "2", "--guest", "random,rate=100000")
MODES = [
    (),
    ("multifd",),
    ("xbzrle",),
    ("compress",),
    ("postcopy-ram",),
    ("postcopy-ram", "postcopy-preempt"),
    ("return-path", "events"),
]
SETTLED = {"xbzrle-cache-size": 1 << 20, "compress-threads": 2}
SLACK = 24 << 20
"""Bytes by which resident memory may grow over all moments: allocators keep some of what they were given back."""


def held(peer):
    """Descriptors, threads, and resident bytes of a process."""
    process = Path(f"/proc/{peer.process.pid}")
    status = (process / "status").read_text().splitlines()
    resident = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))
    return len([*(process / "fd").iterdir()]), len([*(process / "task").iterdir()]), resident


def holds_no_more(peer, descriptors, threads):
    now = held(peer)
    return now[0] <= descriptors and now[1] <= threads


def set_mode(peers, *mode):
    """Switches these capabilities on, and all others of the table off."""
    names = {name for mode in MODES for name in mode} | {"pause-before-switchover"}
    for peer in peers:
        states = [{"capability": name, "state": name in mode} for name in sorted(names)]
        peer.command("migrate-set-capabilities", capabilities=states)


def reached(answer, moment):
    return answer["status"] in ("pre-switchover", "failed") or answer.get("ram", {}).get("transferred", 0) >= moment


def cancel_at(source, destination, moment):
    """One migration, cancelled when `moment` bytes were sent; None: at once."""
    uri = destination.listen()
    cancel(source, uri, moment)
    if destination.migration().get("status") is None:
        # Gone before it was noticed: the next one finds the listener, or the former is noticed and it finds nobody.
        cancel(source, uri, 1, "failed")
    wait_until(lambda: destination.migration().get("status") == "failed", what="the destination noticing")
    assert destination.run_state() == "inmigrate"


def cancel(source, uri, moment, *else_):
    source.command("migrate", uri=uri)
    if moment is not None:
        wait_until(lambda: reached(source.migration(), moment), what=f"byte {moment}")
    source.command("migrate_cancel")
    source.wait_migration("cancelled", *else_)
    assert source.run_state() == "running"


@pytest.fixture
def pair(tmp_path):
    with (
        ServePeer(tmp_path / "source", *GUEST, "--seed", "5", machine="e2k") as source,
        ServePeer(tmp_path / "destination", *GUEST, machine="e2k", incoming="defer") as destination,
    ):
        for peer in (source, destination):
            peer.command("cont")
            peer.command("migrate-set-parameters", **{name.replace("-", "_"): n for name, n in SETTLED.items()})
        yield source, destination


def run(pair, seed, moments):
    """What the last migration holds stays until the next one begins, so the first and the last are of one kind."""
    source, destination = pair
    source.command("migrate-set-parameters", max_bandwidth=64 << 20, downtime_limit=0)
    for mode in (*MODES, ()):  # each way once, so that all is there that will be
        set_mode(pair, *mode, "pause-before-switchover")
        cancel_at(source, destination, RAM // 8 if mode else RAM + RAM // 8)
    before = [held(peer) for peer in pair]
    numbers = random.Random(seed)
    for number in range(moments):
        set_mode(pair, *MODES[(number + 1) % len(MODES)], "pause-before-switchover")
        cancel_at(source, destination, numbers.choice([None, numbers.randrange(4096), numbers.randrange(2 * RAM)]))
    set_mode(pair, "pause-before-switchover")
    cancel_at(source, destination, RAM // 8)
    for peer, (descriptors, threads, resident) in zip(pair, before, strict=True):
        wait_until(partial(holds_no_more, peer, descriptors, threads), what="closed descriptors and ended threads")
        assert held(peer)[2] < resident + SLACK


def arrive(pair):
    """After all of that the machine moves, whole."""
    source, destination = pair
    set_mode(pair)
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=2000)
    source.command("migrate", uri=destination.listen())
    source.wait_migration()
    destination.wait_arrived()
    destination.command("stop")
    answer = destination.command("x-verify")
    assert answer["equal"]
    assert answer["steps"] > 0
    with pytest.raises(QmpError):
        destination.command("migrate-incoming", uri="tcp:127.0.0.1:0")


def test_thirty_moments(pair):
    run(pair, 1, 21)  # and nine before and after them
    arrive(pair)


@pytest.mark.long
def test_two_hundred_moments(pair):
    run(pair, random.randrange(2**32), 200)
    arrive(pair)
