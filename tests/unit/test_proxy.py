"""The relay that does to a wire what a network can: each fault at its byte, on its way and link, and nothing else."""

import random
import socket
import threading
from contextlib import contextmanager
from itertools import pairwise

import pytest

from qmig_e2k.testing import Fault, Proxy
from support import wait_until

DATA = random.Random(1).randbytes(5000)
PATIENCE = 30


@contextmanager
def wired(*, links=1, **options):
    """A proxy and so many pairs of ends: those of the source, and those of the destination."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        with Proxy(server.getsockname()[1], **options) as proxy:
            host, port = proxy.uri.removeprefix("tcp:").split(":")
            ends = []
            for _ in range(links):
                near = socket.create_connection((host, int(port)), PATIENCE)
                far, _ = server.accept()
                far.settimeout(PATIENCE)
                ends.append((near, far))
            try:
                yield proxy, *(ends[0] if links == 1 else ends)
            finally:
                for pair in ends:
                    for end in pair:
                        end.close()


def everything(end):
    """What comes until the end, and whether that was a reset."""
    found = bytearray()
    try:
        while data := end.recv(1 << 16):
            found += data
    except ConnectionResetError:
        return bytes(found), True
    return bytes(found), False


def exactly(end, count):
    found = bytearray()
    while len(found) < count and (data := end.recv(count - len(found))):
        found += data
    return bytes(found)


def test_what_passes_is_what_was_sent():
    with wired(record=True) as (proxy, near, far):
        near.sendall(DATA)
        near.shutdown(socket.SHUT_WR)
        assert everything(far) == (DATA, False)
        far.sendall(DATA[::-1])
        far.close()
        assert everything(near) == (DATA[::-1], False)
        assert (proxy.passed(), proxy.passed("back"), proxy.passed("forward", 1)) == (DATA, DATA[::-1], b"")
        assert (proxy.forwarded, proxy.returned, proxy.links) == (len(DATA), len(DATA), 1)
        assert not proxy.reached.is_set()


@pytest.mark.parametrize("kind", ["cut", "reset"])
@pytest.mark.parametrize("way", ["forward", "back"])
@pytest.mark.parametrize("at", [0, 1, 777, len(DATA) - 1])
def test_the_wire_ends_at_a_byte(kind, way, at):
    seen = []
    with wired(faults=[Fault(kind, at, way)], on_fault=seen.append) as (proxy, near, far):
        one, other = (near, far) if way == "forward" else (far, near)
        one.sendall(DATA)
        assert everything(other) == (DATA[:at], kind == "reset")
        rest, reset = everything(one)
        assert rest == b""
        assert reset or kind == "cut"
        assert proxy.reached.is_set()
        assert seen == [Fault(kind, at, way)]


def test_prompt_or_when_one_more_byte_wants_to_pass():
    with wired(cut_forward=10) as (proxy, near, far):
        near.sendall(DATA[:10])
        assert exactly(far, 10) == DATA[:10]
        far.sendall(b"answer")
        assert exactly(near, 6) == b"answer"
        assert not proxy.reached.is_set()
        near.sendall(b"x")
        assert everything(far) == (b"", False)
    with wired(faults=[Fault("cut", 10, prompt=True)]) as (_, near, far):
        near.sendall(DATA[:10])
        assert everything(far) == (DATA[:10], False)


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("at", [-3, 0, 5])
def test_counted_from_a_mark(at, piece):
    """Also one that comes byte by byte; before it only where it comes in one piece."""
    mark = DATA[1000:1008]
    with wired(faults=[Fault("cut", at, since=mark)], piece=piece) as (_, near, far):
        near.sendall(DATA)
        assert everything(far) == (DATA[: 1008 + (max(at, -1) if piece else at)], False)


def test_silence_until_it_is_released():
    with wired(cut_forward=100, stall=True) as (proxy, near, far):
        near.sendall(DATA)
        assert exactly(far, 100) == DATA[:100]
        assert proxy.reached.wait(PATIENCE)
        assert proxy.forwarded == 100
        far.sendall(b"the other way is open")
        assert exactly(near, 21) == b"the other way is open"
        proxy.release()
        assert exactly(far, len(DATA) - 100) == DATA[100:]


def test_one_byte_is_changed():
    with wired(faults=[Fault("corrupt", 7, mask=0x81), Fault("corrupt", 0)]) as (_, near, far):
        near.sendall(DATA)
        near.shutdown(socket.SHUT_WR)
        found, _ = everything(far)
        changed = {at: one ^ other for at, (one, other) in enumerate(zip(found, DATA, strict=True)) if one != other}
        assert changed == {0: 0xFF, 7: 0x81}


def test_one_link_or_all():
    for alone in (True, False):
        with wired(links=2, faults=[Fault("cut", 5, link=1, alone=alone)]) as (proxy, (near, far), (near1, far1)):
            near.sendall(DATA[:100])
            assert exactly(far, 100) == DATA[:100]
            near1.sendall(DATA)
            assert everything(far1) == (DATA[:5], False)
            if alone:
                near.sendall(b"still there")
                assert exactly(far, 11) == b"still there"
            else:
                assert everything(far) == (b"", False)
            assert proxy.links == 2


def test_armed_later():
    with wired() as (proxy, near, far):
        near.sendall(DATA[:100])
        assert exactly(far, 100) == DATA[:100]
        proxy.arm(Fault("cut", 3))
        near.sendall(DATA)
        assert everything(far) == (DATA[:3], False)


def test_small_pieces_hold_the_writer_up():
    with wired(piece=1) as (_, near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        near.setblocking(False)
        sent = near.send(DATA * 200)
        assert sent < len(DATA) * 200, "the writer is held up"
        near.close()
        assert exactly(far, 2000) == DATA[:2000]


def test_links_overtake_each_other_and_none_itself():
    order, lock = [], threading.Lock()
    with wired(links=3, reorder=5, piece=50) as (_, *ends):

        def take(number, far):
            found = bytearray()
            while data := far.recv(50):
                found += data
                with lock:
                    order.append(number)
            assert bytes(found) == DATA

        readers = [threading.Thread(target=take, args=(number, far)) for number, (_, far) in enumerate(ends)]
        for reader in readers:
            reader.start()
        for near, _ in ends:
            near.sendall(DATA)
            near.shutdown(socket.SHUT_WR)
        for reader in readers:
            reader.join(PATIENCE)
    turns = sum(one != other for one, other in pairwise(order))
    assert turns > 10, "they take turns"


def test_who_resets_is_noticed_on_the_other_side():
    with wired() as (_, near, far):
        near.sendall(DATA[:50])
        assert exactly(far, 50) == DATA[:50]
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
        assert everything(far) == (b"", True)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Proxy(port) as proxy:
        host, there = proxy.uri.removeprefix("tcp:").split(":")
        for _ in range(2):
            with socket.create_connection((host, int(there)), PATIENCE) as near:
                assert everything(near)[0] == b""
        wait_until(lambda: proxy.links == 0, what="no link")
