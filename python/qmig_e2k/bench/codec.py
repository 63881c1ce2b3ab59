"""`bench codec`: what a page costs to encode, decode or test, beside `memcmp` and plain reading of the same memory."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench.result import paired_row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 600.0


def run(runs: int, program: Path, say: Callable[[str], None] = lambda _: None, mib: int = 64) -> list[dict[str, Any]]:
    """Measure the codecs.

    Args:
        runs: counted runs; five times as many here, as each takes a moment only.
        program: the core's example `codec_loop`.
        say: told what is going on.
        mib: MiB of pages, and as much of their last version.

    Returns:
        One result for each codec and number of changed bytes a page, GiB/s of pages; the reference is of the same call.
    """
    runs *= 5  # each takes a moment only
    say(f"pages of {mib} MiB, {runs} runs")
    command = [str(program), "--mib", str(mib), "--runs", str(runs)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S).stdout)
    results = []
    for case in found["xbzrle"]:
        name = f"{case['changed']} changed bytes a page"
        for level, pairs in zip(found["levels"], case["encode"], strict=True):
            results.append(_row(f"xbzrle encode, {level}: {name}", pairs, "memcmp"))
        results.append(_row(f"xbzrle decode: {name}", case["decode"], "memcmp"))
    return [*results, _row("zero test, not in cache", found["zero"], "read")]


def _row(name: str, pairs: dict[str, list[float]], reference: str) -> dict[str, Any]:
    return paired_row(name, "GiB/s", pairs["ours"], pairs[reference], reference)
