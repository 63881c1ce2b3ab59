"""Postcopy as a whole: all memory beside precopy, and the moment of the switch.

The switch is measured with a tenth of the memory dirty, which is what has to be discarded at the destination before the
machine may run there. The dirty pages are made by this process, which is the source: exactly those, in any order of
events.
"""

from __future__ import annotations

import os
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k._core import Block, Toucher
from qmig_e2k.bench import host
from qmig_e2k.bench.precopy import migrate as precopy
from qmig_e2k.bench.result import median_row
from qmig_e2k.demo import Served
from qmig_e2k.e2k import build
from qmig_e2k.monitor.client import stamp
from qmig_e2k.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.migration.handle import Migration
    from qmig_e2k.monitor.client import QmpClient

__all__ = ["DEADLINE_S", "begin", "random_file", "switch", "whole"]

DEADLINE_S = 120.0
BEFORE = 32 << 20
"""Bytes a second until the switch; QEMU stands still for a tenth of a second where it was much too slow before."""
TRICKLE = 4096
"""Bytes a second: what is dirty stays so."""
PAGE = 4096
RUN = 256 << 10
"""Bytes of a run of dirty pages."""
DIRTY: dict[str, Callable[[int], list[int]]] = {
    "in runs of 256 KiB": lambda size: [page for page in range(0, size, PAGE) if page // RUN % 10 == 0],
    "in single pages": lambda size: [*range(0, size, 10 * PAGE)],
}
"""The tenth of RAM that is dirty at the switch, spread over all of it."""
LIMITS = {"in runs of 256 KiB": 30.0}
"""Of the time from migrate-start-postcopy to RESUME, in ms."""
LOOK = 256
"""Pages that are made dirty between two looks at how far the source is."""


def begin(source: QmpClient, destination: QmpClient, preempt: bool) -> float:
    """The machine runs there, with no memory but what comes; returns when it was asked for, on the wall clock."""
    wanted = {"events": True, "postcopy-ram": True, "postcopy-preempt": preempt}
    for side in (source, destination):
        listed = [{"capability": name, "state": state} for name, state in wanted.items()]
        side.execute("migrate-set-capabilities", capabilities=listed)
    source.execute("migrate-set-parameters", max_bandwidth=BEFORE, max_postcopy_bandwidth=0)
    destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    source.execute("migrate", uri=_uri(destination))
    source.execute("migrate-start-postcopy")
    return stamp(source.wait_event("MIGRATION", DEADLINE_S, status="postcopy-active"))


def random_file(path: Path, size: int) -> None:
    """Content for a machine: no page is zero, and none like another."""
    with path.open("wb") as out:
        for at in range(0, size, 16 << 20):
            out.write(os.urandom(min(16 << 20, size - at)))


def whole(runs: int, content: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All memory by postcopy that nobody touches, and by precopy.

    Args:
        runs: Counted runs of each.
        content: What the machine's memory holds, all of it.
        say: Called with a line of text per run.
    """
    ours, before = [], []
    size = content.stat().st_size
    words = ["-M", "none", "-m", f"{size >> 20}M"]
    for _ in range(runs):
        for postcopy in (False, True):
            host.warm(max(3 * size >> 30, 1))
            with (
                tempfile.TemporaryDirectory(prefix="qmig-bench-") as name,
                Served([*words, "--incoming", "defer"], Path(name), "destination") as destination,
                Served([*words, "-kernel", str(content)], Path(name), "source") as source,
            ):
                if postcopy:
                    begun = begin(source.qmp, destination.qmp, preempt=False)
                    ended = source.qmp.wait_event("MIGRATION", DEADLINE_S, status="completed")
                    ours.append(stamp(ended) - begun)
                else:
                    destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
                    before.append(precopy(source.qmp, destination.qmp))
        say(f"all memory, nothing touched: postcopy {ours[-1]:.2f} s, precopy {before[-1]:.2f} s")
    return [median_row("all memory, nothing touched", "s", ours, before, "precopy")]


def switch(runs: int, size: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """From `migrate-start-postcopy` until the machine runs there, a tenth dirty: runs of pages, or single ones."""
    rows = []
    for where, pages in DIRTY.items():
        took = []
        for _ in range(runs):
            took.append(_switch(size, pages(size)))
            say(f"from migrate-start-postcopy to RESUME, a tenth dirty {where}: {took[-1]:.1f} ms")
        limit = [LIMITS[where]] * runs if where in LIMITS else []
        name = f"start-postcopy to RESUME, a tenth dirty {where}"
        rows.append(median_row(name, "ms", took, limit, "limit" if limit else None))
    return rows


def _switch(size: int, dirty: list[int]) -> float:
    """Milliseconds; all has been sent, and the pages at the offsets `dirty` have changed since."""
    hardware = build("e2k", size)
    words = ["-M", "e2k", "-m", f"{size >> 20}M", "--incoming", "defer"]
    with (
        tempfile.TemporaryDirectory(prefix="qmig-bench-") as name,
        Served(words, Path(name), "destination") as destination,
        Vm(hardware) as vm,
    ):
        for spec in hardware.blocks:
            vm.add_ram(spec.name, spec.size)
        ram = vm.machine.blocks[0]
        Toucher.fill(ram)
        listed = [{"capability": word, "state": True} for word in ("events", "postcopy-ram")]
        destination.qmp.execute("migrate-set-capabilities", capabilities=listed)
        destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        vm.set_capabilities(postcopy_ram=True)
        vm.set_parameters(max_bandwidth=size // 2, max_postcopy_bandwidth=0, downtime_limit=0)
        vm.start()
        migration = vm.migrate(_uri(destination.qmp))
        _make_dirty(ram, dirty, migration)
        vm.set_parameters(max_bandwidth=TRICKLE)
        for offset in dirty:  # what the second round has sent meanwhile
            ram.write(offset, b"\0")
        asked = time.time()
        migration.start_postcopy()
        took = stamp(destination.qmp.wait_event("RESUME", DEADLINE_S)) - asked
        migration.wait(DEADLINE_S)
    return took * 1000


def _make_dirty(ram: Block, dirty: list[int], migration: Migration) -> None:
    """Write to the pages, over and over, until the second round of sending has begun: so it never runs out of them."""
    end = time.monotonic() + DEADLINE_S
    for turn in count(1):
        for at, offset in enumerate(dirty):
            ram.write(offset, bytes([turn % 255 + 1]))
            if at % LOOK == 0 and migration.info().get("ram", {}).get("dirty-sync-count", 0) >= 2:
                return
        if migration.done() or time.monotonic() > end:
            message = "the first round of sending did not end"
            raise TimeoutError(message)


def _uri(destination: QmpClient) -> str:
    return f"tcp:127.0.0.1:{destination.execute('query-migrate')['socket-address'][0]['port']}"
