"""`Block`: every backing, memory handed in, views, refusals; and `probe`."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qmig_e2k import MigrationError
from qmig_e2k._core import Block, probe

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


def test_probe_names_every_fact_and_its_remedy() -> None:
    found = probe()
    assert (
        list(found)
        == (
            "userfaultfd missing missing-shmem missing-hugetlb kernel-faults minor poison wp-async pagemap-scan memfd "
            "hugetlb thp"
        ).split()
    )
    for ok, detail, remedy in found.values():
        assert detail
        assert ok == (remedy == "")


@pytest.mark.parametrize("backing", ["anon", "memfd", "file", "hugetlb"])
def test_backings(backing: str, shm_path: Path) -> None:
    if backing == "hugetlb" and not probe()["hugetlb"][0]:
        pytest.skip(probe()["hugetlb"][2])
    path = str(shm_path) if backing == "file" else None
    block = Block("ram", 2 * SIZE, backing=backing, path=path, max_size=4 * SIZE)  # type: ignore[arg-type]
    assert (block.name, block.size, block.max_size, block.backing) == ("ram", 2 * SIZE, 4 * SIZE, backing)
    assert block.page_size == (2 << 20 if backing == "hugetlb" else 4096)
    assert block.address % block.page_size == 0
    assert block.dirty_log == "wp-async"
    assert repr(block) == f'Block("ram", 0x200000, backing="{backing}")'
    block.write(5, b"hello")
    view = np.frombuffer(block, np.uint8)
    assert view.size == 4 * SIZE
    assert view[5:10].tobytes() == b"hello"
    view[9] = ord("!")
    assert block.read(4, 7) == b"\0hell!\0"
    block.prefault(0, block.size)
    block.resize(4 * SIZE)
    assert block.size == 4 * SIZE
    assert block.read(4 * SIZE - 2, 2) == b"\0\0"
    assert block.read(4 * SIZE, 0) == b""


def test_views_keep_the_memory() -> None:
    block = Block("ram", SIZE)
    view = memoryview(block)
    assert (view.format, view.itemsize, view.nbytes, view.readonly) == ("B", 1, SIZE, False)
    with pytest.raises(MigrationError, match="exported views") as caught:
        block.close()
    assert caught.value.kind == "invalid-state"
    second = np.frombuffer(block, np.uint64)
    view.release()
    with pytest.raises(MigrationError, match="exported views"):
        block.close()
    del second
    block.close()
    block.close()
    assert repr(block) == 'Block("ram", closed)'
    with pytest.raises(MigrationError, match="is closed") as caught:
        block.read(0, 1)
    assert caught.value.kind == "invalid-state"
    with pytest.raises(BufferError, match="is closed"):
        memoryview(block)
    # An array alone keeps the memory of a block that nobody names any more.
    array = np.frombuffer(Block("ram", SIZE), np.uint8)
    gc.collect()
    array[:] = 7
    assert array.sum() == 7 * SIZE


def test_any_buffer_can_be_written() -> None:
    block = Block("ram", 4 * SIZE)
    numbers = np.arange(3 * SIZE // 8, dtype=np.uint64)
    block.write(SIZE, numbers)
    assert block.read(SIZE, 3 * SIZE) == numbers.tobytes()
    block.write(1, memoryview(block)[SIZE : SIZE + 4])
    assert block.read(0, 4) == b"\0" + numbers.tobytes()[:3]
    block.write(7, b"")
    with pytest.raises(BufferError, match="contiguous"):
        block.write(0, numbers[::2])
    with pytest.raises(TypeError):
        block.write(0, "text")  # type: ignore[arg-type]


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (1 << 63, 1), (0, 1 << 62)])
def test_ranges_outside_are_refused(offset: int, length: int) -> None:
    block = Block("ram", SIZE, max_size=2 * SIZE)
    with pytest.raises(MigrationError, match='outside block "ram"') as caught:
        block.read(offset, length)
    assert caught.value.kind == "invalid-argument"
    for call in (block.mark_dirty, block.prefault):
        with pytest.raises(MigrationError, match="outside"):
            call(offset, length)
    if length < SIZE:
        with pytest.raises(MigrationError, match="outside"):
            block.write(offset, bytes(length))


@pytest.mark.parametrize(
    ("arguments", "kind", "word"),
    [
        ({"size": 0}, "bad-block", "positive"),
        ({"size": 5000}, "bad-block", "multiples"),
        ({"size": 8192, "max_size": 4096}, "bad-block", "less than"),
        ({"size": 4096, "backing": "file"}, "bad-block", "needs a path"),
        ({"size": 4096, "path": "/dev/shm/x"}, "bad-block", '"file" only'),
        ({"size": 4096, "backing": "file", "path": "/dev/null"}, "bad-block", "/dev/null"),
        ({"size": 4096, "backing": "hugetlb"}, "bad-block", "huge page size"),
        ({"size": 1 << 44, "backing": "hugetlb"}, "no-memory", "vm.nr_hugepages=8388608"),
        ({"size": 1 << 62}, "no-memory", "cannot map"),
        ({"size": 4096, "name": ""}, "invalid-argument", "1 to 255"),
        ({"size": 4096, "name": "x" * 256}, "invalid-argument", "1 to 255"),
    ],
)
def test_what_cannot_be_made_says_why(arguments: dict[str, object], kind: str, word: str) -> None:
    with pytest.raises(MigrationError) as caught:
        Block(**{"name": "ram", **arguments})  # type: ignore[arg-type]
    assert caught.value.kind == kind
    assert word in str(caught.value)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="'anon', 'memfd', 'file' or 'hugetlb'"):
        Block("ram", SIZE, backing="adopted")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'auto' or 'explicit'"):
        Block.adopt("ram", mmap.mmap(-1, SIZE), dirty_log="none")  # type: ignore[arg-type]


def test_a_longer_file_is_an_error_and_a_shorter_one_is_extended(shm_path: Path) -> None:
    shm_path.write_bytes(b"content")
    block = Block("ram", 8192, backing="file", path=str(shm_path))
    assert block.read(0, 8) == b"content\0"
    block.write(8000, b"kept")
    block.close()
    assert shm_path.read_bytes()[8000:8004] == b"kept"
    with pytest.raises(MigrationError, match="0x2000 bytes, more than"):
        Block("ram", 4096, backing="file", path=str(shm_path))


def test_adopted_memory_is_the_callers(tmp_path: Path, shm_path: Path) -> None:
    anonymous = mmap.mmap(-1, SIZE)
    private = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    on_tmpfs = np.memmap(shm_path, np.uint64, "w+", shape=SIZE // 8)
    inside = np.frombuffer(mmap.mmap(-1, SIZE), np.uint8)[8192:-4096]
    for buffer in (anonymous, private, on_tmpfs, inside, Block("other", SIZE)):
        block = Block.adopt("ram", buffer)
        assert (block.backing, block.dirty_log) == ("adopted", "wp-async")
        assert block.size == block.max_size == memoryview(buffer).nbytes
        block.write(4000, b"both see it")
        assert memoryview(buffer).cast("B")[4000:4011] == b"both see it"
        np.frombuffer(block, np.uint8)[4000] = ord("B")
        assert memoryview(buffer).cast("B")[4000] == ord("B")
        block.close()
    # Only closing lets go of the caller's memory.
    block = Block.adopt("ram", anonymous)
    with pytest.raises(BufferError):
        anonymous.close()
    block.close()
    anonymous.close()
    disk = Block.adopt("ram", np.memmap(tmp_path / "disk", np.uint8, "w+", shape=SIZE), dirty_log="explicit")
    assert disk.dirty_log == "explicit"


def refused(buffer: object, kind: str, word: str) -> None:
    with pytest.raises(MigrationError) as caught:
        Block.adopt("ram", buffer)  # type: ignore[arg-type]
    assert caught.value.kind == kind
    assert word in str(caught.value)
    assert 'block "ram"' in str(caught.value)


def test_unfit_memory_is_refused_with_the_remedy(tmp_path: Path, shm_path: Path) -> None:
    refused(np.zeros(SIZE + 1, np.uint8)[1:], "bad-block", "mmap.mmap(-1, size)")
    refused(bytes(SIZE), "bad-block", "read-only")
    np.memmap(shm_path, np.uint8, "w+", shape=SIZE).flush()
    refused(np.memmap(shm_path, np.uint8, "r", shape=SIZE), "bad-block", "read-only")
    refused(np.memmap(shm_path, np.uint8, "c", shape=SIZE), "bad-block", "private map")
    refused(np.frombuffer(mmap.mmap(-1, SIZE), np.uint8)[::2], "bad-block", "not contiguous")
    refused(np.frombuffer(mmap.mmap(-1, SIZE), np.uint8)[:5000], "bad-block", "multiple of 4096")
    refused(np.memmap(tmp_path / "disk", np.uint8, "w+", shape=SIZE), "no-dirty-log", "mark_dirty")


def test_locked_memory_is_refused() -> None:
    buffer = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
    if ctypes.CDLL(None, use_errno=True).mlock(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_size_t(4096)) != 0:
        pytest.skip("this process may not lock memory")
    refused(buffer, "bad-block", "munlock")


def test_memory_watched_already_is_refused() -> None:
    """Two blocks over the same memory cannot both have the kernel's log; the first one keeps it."""
    buffer = mmap.mmap(-1, SIZE)
    first = Block.adopt("first", buffer)
    Block.adopt("second", buffer).close()
    assert first.dirty_log == "wp-async"


def test_an_unprivileged_process_has_the_kernels_log() -> None:
    """No fault is delivered to anyone, so neither root nor a sysctl is needed for wp-async."""
    program = "import ctypes, mmap, os, sys; sys.path[:0] = {!r}; from qmig_e2k._core import Block, probe; "
    # A process that changes its user loses its own /proc files unless it says otherwise (PR_SET_DUMPABLE).
    program += "os.setgroups([]); os.setgid(65534); os.setuid(65534); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0); "
    program += "assert probe()['wp-async'][0], probe(); print(Block.adopt('ram', mmap.mmap(-1, 4096)).dirty_log)"
    if os.geteuid() != 0:
        pytest.skip("only root can give its privileges up; otherwise all other tests show the same")
    done = subprocess.run([sys.executable, "-c", program.format(sys.path)], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "wp-async", done.stderr
