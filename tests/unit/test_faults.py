"""`qmig_e2k.faults`: missing pages from buffers, files and sockets, touched by threads that hold Python's lock."""

import mmap
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from qmig_e2k import MigrationError, RamBlock, faults
from qmig_e2k._core import probe
from support import wait_until

PAGE = 4096
PAGES = 512
PHASES = ["read", "request", "first-byte", "place", "total"]


@pytest.fixture
def content() -> bytes:
    """Random, but for some pages of zeros."""
    generator = random.Random(4)
    return b"".join(bytes(PAGE) if page % 7 == 3 else generator.randbytes(PAGE) for page in range(PAGES))


@pytest.fixture(params=["anon", "memfd"])
def block(request) -> RamBlock:
    return RamBlock("ram", PAGES * PAGE, backing=request.param)


PEER = textwrap.dedent("""
    import socket, struct, sys

    link = socket.socket(fileno=int(sys.argv[1]))
    content = open(sys.argv[2], "rb").read()
    requests = link.makefile("rb")
    while request := requests.read(16):
        offset, length = struct.unpack(">QQ", request)
        link.sendall(request[:8] + content[offset : offset + length])
""")


@contextmanager
def peer(path) -> Iterator[socket.socket]:
    """A socket whose other end is a process that serves the file."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", PEER, str(theirs.fileno()), str(path)]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            try:
                yield ours
                ours.close()
                assert process.wait(30) == 0
            finally:
                process.kill()


@contextmanager
def a_source(kind: str, content: bytes, tmp_path) -> Iterator[object]:
    path = tmp_path / "content"
    path.write_bytes(content)
    if kind == "bytes":
        yield content
    elif kind == "block":
        block = RamBlock("source", len(content))
        block.write(0, content)
        yield block
    elif kind == "mmap":
        with mmap.mmap(-1, len(content)) as mapped:
            mapped[:] = content
            yield mapped
    elif kind == "file":
        with path.open("rb") as file:
            yield file
    else:
        with peer(path) as link:
            yield link


@pytest.mark.parametrize("kind", ["bytes", "block", "mmap", "file", "socket"])
def test_python_threads_that_hold_the_lock_get_their_pages(block, content, kind, tmp_path):
    """Indexing a numpy array keeps the interpreter lock: nobody else here runs Python until the page is there."""
    memory, wrong = block.numpy(), []

    def touch(seed: int) -> None:
        generator = random.Random(seed)
        for page in generator.sample(range(PAGES), 200):
            offset = page * PAGE + generator.randrange(PAGE)
            if memory[offset] != content[offset]:
                wrong.append(offset)

    with a_source(kind, content, tmp_path) as source:
        service = faults.arm(block, source)
        threads = [threading.Thread(target=touch, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)
        # Whoever waited for a page knows of it before the books do.
        wait_until(lambda: not service.stats()["outstanding"], what="all pages in the books")
        stats = service.stats()
        assert (stats["pages"], stats["error"]) == (PAGES, None)
        assert 300 < stats["received"] < PAGES
        assert list(stats["phases"]) == PHASES
        counts = {phase["count"] for phase in stats["phases"].values()}
        assert counts == {stats["requests"]}
        assert stats["requests"] == stats["received"]
        service.close()
        assert service.stats()["received"] == PAGES
        assert memory.tobytes() == content
        service.close(fill=False)


def test_writes_keep_the_rest_of_the_page(block, content):
    memory = block.numpy()
    with faults.arm(block, content):
        memory[5 * PAGE + 7] = 1
    expected = bytearray(content)
    expected[5 * PAGE + 7] = 1
    assert memory.tobytes() == expected


def test_the_kernel_waits_as_well(block, content):
    if not probe()["kernel-faults"][0]:
        pytest.skip(probe()["kernel-faults"][2])
    memory = memoryview(block)
    with faults.arm(block, content):
        reader, writer = os.pipe()
        try:
            os.write(writer, memory[3:9])
            assert os.readv(reader, [memory[2 * PAGE + 1 : 2 * PAGE + 7]]) == 6
        finally:
            os.close(reader)
            os.close(writer)
        block.prefault(8 * PAGE, 2 * PAGE)
        assert (
            memory[: 10 * PAGE].tobytes() == content[: 2 * PAGE + 1] + content[3:9] + content[2 * PAGE + 7 : 10 * PAGE]
        )


def test_an_exception_ends_it_at_once(block, content):
    with suppress(ZeroDivisionError), faults.arm(block, content) as service:
        assert block.numpy()[PAGE] == content[PAGE]
        raise ZeroDivisionError
    assert service.stats()["received"] == 1
    assert block.numpy()[PAGE] == content[PAGE]
    assert not block.numpy()[2 * PAGE :].any()


def test_the_source_is_kept_as_long_as_it_is_needed(block, content):
    source = bytearray(content)
    service = faults.arm(block, source)
    with pytest.raises(BufferError):
        source.append(1)
    service.close()
    source.append(1)
    again = faults.arm(block, source)
    del again
    source.append(1)


@pytest.mark.parametrize("source", [lambda offset: b"", 3, None, "text"])
def test_what_is_no_source(block, source):
    with pytest.raises(TypeError):
        faults.arm(block, source)


def test_refusals_leave_the_block_as_it_was(block, content, tmp_path):
    block.write(0, b"kept")
    short = tmp_path / "short"
    short.write_bytes(content[:-1])
    with short.open("rb") as file, pytest.raises(MigrationError, match="the page source has 0x1fffff bytes") as caught:
        faults.arm(block, file)
    assert caught.value.kind == "invalid-argument"
    with pytest.raises(MigrationError, match='lies in block "ram" itself'):
        faults.arm(block, block)
    with socket.socket(type=socket.SOCK_DGRAM) as link, pytest.raises(MigrationError, match="no stream socket"):
        faults.arm(block, link)
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb") as file,
        pytest.raises(MigrationError, match="a page source is a buffer, a regular file"),
    ):
        faults.arm(block, file)
    os.close(writer)
    assert block.read(0, 4) == b"kept"
    with faults.arm(block, content), pytest.raises(MigrationError, match="already") as caught:
        faults.arm(block, content)
    assert caught.value.kind == "invalid-state"


def test_a_peer_that_leaves_is_named(block):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        service = faults.arm(block, ours)
    with pytest.raises(MigrationError):
        service.close()
    assert service.stats()["error"]
    service.close(fill=False)
    assert not np.frombuffer(block, np.uint8).any()
