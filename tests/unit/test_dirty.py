"""A numpy program writes from several threads while pages are sent: nothing is missed, nothing else is sent again."""

from __future__ import annotations

import json
import mmap
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from elements import take_apart
from qmig_e2k import MigrationError
from qmig_e2k._core import Block, Control, Outgoing, probe
from support import PAGE, assert_same_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 32 << 20
PAGES = SIZE // PAGE
THREADS = 3
ROUNDS = 5

HEAD = b"QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x04none"
TAIL = b"\x00\x06\x00\x00\x00\x02{}"


class Memory(NamedTuple):
    """A block, the array through which the guest sees it, and what a guest does after a write."""

    block: Block
    pages: NDArray[np.uint8]
    wrote: Callable[[int], None]


def made(**options: object) -> Memory:
    block = Block("ram", SIZE, **options)  # type: ignore[arg-type]
    return Memory(block, np.frombuffer(block, np.uint8).reshape(PAGES, PAGE), lambda _: None)


def adopted(path: Path | None, dirty_log: str = "auto") -> Memory:
    buffer = mmap.mmap(-1, SIZE) if path is None else np.memmap(path, np.uint8, "w+", shape=SIZE)
    block = Block.adopt("ram", buffer, dirty_log=dirty_log)  # type: ignore[arg-type]
    pages = np.frombuffer(buffer, np.uint8).reshape(PAGES, PAGE)
    tell = (lambda page: block.mark_dirty(page * PAGE, PAGE)) if dirty_log == "explicit" else (lambda _: None)
    return Memory(block, pages, tell)


def memory(kind: str, tmp_path: Path, shm_path: Path) -> Memory:
    match kind:
        case "anon":
            return made(thp=False)
        case "anon-thp":
            return made()
        case "memfd":
            return made(backing="memfd")
        case "hugetlb":
            ok, _, remedy = probe()["hugetlb"]
            if not ok:
                pytest.skip(remedy)
            try:
                return made(backing="hugetlb")
            except MigrationError as error:
                if error.kind != "no-memory":
                    raise
                pytest.skip(str(error))  # the pages are the whole computer's, and others may have taken them
        case "tmpfs":
            return made(backing="file", path=str(shm_path))
        case "adopted-mmap":
            return adopted(None)
        case "adopted-tmpfs":
            return adopted(shm_path)
        case _:
            return adopted(tmp_path / "disk", "explicit")


@pytest.mark.parametrize(
    "kind",
    ["anon", "anon-thp", "memfd", "hugetlb", "tmpfs", "adopted-mmap", "adopted-tmpfs", "adopted-disk-explicit"],
)
def test_writers_are_followed(kind: str, tmp_path: Path, shm_path: Path) -> None:
    """Every page is as the writers left it, and only pages that they wrote are sent more than once."""
    block, pages, wrote = memory(kind, tmp_path, shm_path)
    # A third exists before, and the writers' pages lie on both sides, at the edges, alone and in runs.
    pages[: PAGES // 3] = 1
    mine = sorted({0, 1, 2, PAGES // 3 - 1, PAGES // 3, PAGES - 1, *range(500, 530), *range(7, PAGES // 2, 97)})

    control = Control()
    control.set_parameters(json.dumps({"max-bandwidth": 256 << 20, "downtime-limit": 1}))
    control.begin_outgoing()
    out = Outgoing(control, [block])
    out.connect(f"file:{tmp_path / 'stream'}")
    enough = threading.Event()
    sweeps = [0] * THREADS

    def write(thread: int) -> None:
        while not enough.is_set():
            sweeps[thread] += 1
            at = sweeps[thread] * 8 % PAGE
            for page in mine[thread::THREADS]:
                pages[page, at : at + 8] = sweeps[thread] % 251 + 1
                wrote(page)

    def syncs() -> int:
        return json.loads(control.query_migrate()).get("ram", {}).get("dirty-sync-count", 0)

    def watch() -> None:
        # After the first pass, some rounds, and every page written at least once.
        while syncs() < 2 and not enough.wait(0.001):
            pass
        goal = [done + 2 for done in sweeps]
        while not enough.wait(0.001):
            if syncs() > ROUNDS and all(done >= wanted for done, wanted in zip(sweeps, goal, strict=True)):
                enough.set()

    others = [threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)]
    others.append(threading.Thread(target=watch))
    for thread in others:
        thread.start()
    try:
        out.setup(HEAD, [None])
        while not enough.is_set():
            assert out.run() == "switchover"
    finally:
        enough.set()
        for thread in others:
            thread.join()
    out.finish([None], b"", TAIL)
    out.close()
    assert json.loads(control.query_migrate())["x-dirty-log"] == ("explicit" if "explicit" in kind else "wp-async")

    parts = take_apart((tmp_path / "stream").read_bytes())
    assert_same_memory(parts.memory(b"ram"), pages.tobytes())
    sent = np.bincount([record.offset // PAGE for record in parts.records], minlength=PAGES)
    assert sent.min() >= 1, "every page is sent at least once"
    # A huge page of the pool is noticed as a whole; all else, split transparent huge pages too, by 4 KiB.
    each = block.page_size // PAGE
    wanted = {other for page in mine for other in range(page - page % each, page - page % each + each)}
    again = set(np.flatnonzero(sent > 1).tolist())
    assert again == wanted, f"not written but sent: {sorted(again - wanted)}; not sent: {sorted(wanted - again)}"


def test_dropped_memory_is_sent_again(tmp_path: Path) -> None:
    """madvise(MADV_DONTNEED) on private memory makes zeros of it: the destination must read zeros too."""
    buffer = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = Block.adopt("ram", buffer)
    pages = np.frombuffer(buffer, np.uint8).reshape(PAGES, PAGE)
    pages[:] = 3
    control = Control()
    control.begin_outgoing()
    out = Outgoing(control, [block])
    out.connect(f"file:{tmp_path / 'stream'}")
    out.setup(HEAD, [None])
    assert out.run() == "switchover"
    buffer.madvise(mmap.MADV_DONTNEED, 4 << 20, 8 << 20)
    out.finish([None], b"", TAIL)
    out.close()
    found = take_apart((tmp_path / "stream").read_bytes()).memory(b"ram")
    assert_same_memory(found, pages.tobytes())
    assert not pages[1024:3072].any()


def test_a_disk_file_needs_the_explicit_log(tmp_path: Path) -> None:
    block = Block("ram", SIZE, backing="file", path=str(tmp_path / "ram"))
    assert block.dirty_log == "explicit"
    control = Control()
    control.begin_outgoing()
    out = Outgoing(control, [block])
    out.connect(f"file:{tmp_path / 'stream'}")
    with pytest.raises(MigrationError, match="/dev/shm") as caught:
        out.setup(HEAD, [None])
    assert caught.value.kind == "no-dirty-log"
    out.close()


def test_the_last_dirty_bitmap_is_kept(tmp_path: Path) -> None:
    block = Block("ram", 1 << 20)
    assert block.dump_dirty() == ""
    control = Control()
    control.begin_outgoing()
    out = Outgoing(control, [block])
    out.connect(f"file:{tmp_path / 'stream'}")
    out.setup(HEAD, [None])
    with pytest.raises(MigrationError, match="during a migration"):
        block.resize(4096)
    with pytest.raises(MigrationError, match="in use"):
        block.close()
    out.close()
    assert block.dump_dirty() == "0x00000000: " + "1" * 128 + "\n0x00080000: " + "1" * 128 + "\n"
    assert block.dump_dirty(expected=True) == ""
    del out
    block.close()
