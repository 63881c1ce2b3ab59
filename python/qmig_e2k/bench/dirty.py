"""What a look at the dirty log costs beside the bare PAGEMAP_SCAN call, on a clean GiB of each kind of memory."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench.result import row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKINGS = ("anon", "thp", "memfd")


def run(runs: int, program: Path, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Measure all backings.

    Args:
        runs: Counted pairs of scans, at least; the program alternates and drops the first pair.
        program: `dirty_scan` of the core's examples.
        say: Called with a line of text per backing.
    """
    results = []
    for backing in BACKINGS:
        command = [str(program), "--backing", backing, "--runs", str(max(runs, 31))]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
        say(f"{backing}: sync {found['sync_ns'] / 1000:.0f} us, bare call {found['bare_ns'] / 1000:.0f} us")
        sync, bare = found["sync_ns"] / 1000, found["bare_ns"] / 1000
        results.append(row(f"dirty scan of a clean GiB, {backing}", "us", sync, bare, "bare PAGEMAP_SCAN"))
    return results
