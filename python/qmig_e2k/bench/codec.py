"""`bench codec`: what a page costs to encode, decode or test, beside `memcmp` and plain reading of the same memory."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 600.0


def run(runs: int, program: Path, say: Callable[[str], None] = lambda _: None, mib: int = 64) -> list[dict[str, Any]]:
    """Measure the codecs.

    Args:
        runs: counted runs.
        program: the core's example `codec_loop`.
        say: told what is going on.
        mib: MiB of pages, and as much of their last version.

    Returns:
        One result for each codec and number of changed bytes a page, GiB/s of pages; the reference is of the same call.
    """
    say(f"pages of {mib} MiB, {runs} runs")
    command = [str(program), "--mib", str(mib), "--runs", str(runs)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S).stdout)
    results = []
    for case in found["xbzrle"]:
        name = f"{case['changed']} changed bytes a page"
        for level, rate in zip(found["levels"], case["encode"], strict=True):
            results.append(_result(f"xbzrle encode, {level}: {name}", rate, case["memcmp"], "memcmp"))
        results.append(_result(f"xbzrle decode: {name}", case["decode"], case["memcmp"], "memcmp"))
    zero = found["zero"]
    return [*results, _result("zero test, not in cache", zero["test"], zero["read"], "reading")]


def _result(name: str, ours: float, reference: float, reference_name: str) -> dict[str, Any]:
    return {
        "name": name,
        "unit": "GiB/s",
        "ours": ours,
        "reference": reference,
        "reference_name": reference_name,
        "ratio": ours / reference,
        "runs": {"ours": [], "reference": []},
    }
