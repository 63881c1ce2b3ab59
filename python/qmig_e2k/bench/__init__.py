"""`qmig-e2k bench`: what a migration costs, as a ratio to a real QEMU measured in the same run.

These figures mislead easily: memory that was never touched is slow, cores that sleep are slow to wake, and
neighbours are noisy. So every series touches and frees several GiB first, alternates with the reference, drops the
first pair and reports medians (with the runs beside them).
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench import codec, dirty, host, pages, precopy, vmstate, xbzrle

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]

SCHEMA = "qmig_e2k/bench/1"
RUNS = 5
FEWER = {"faults": 3}
"""Counted runs where nobody says how many: minutes, not tens of them."""


def run(
    what: str, *, runs: int | None = None, programs: Path | None = None, out: Path | None = None, size: int = 1 << 30
) -> int:
    """Measure `what`, print a table, and write the record to `out` if given.

    Args:
        what: `codec`, `dirty`, `faults`, `precopy`, `ram` or `vmstate`.
        runs: Counted runs of each program and case; None: 5, and 3 for `faults`.
        programs: Directory of the core's examples, the bare programs to stand beside (`make bench` builds them).
        out: File for the JSON record.
        size: Bytes of RAM, for `faults` alone.

    Returns:
        The exit status.
    """

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    phases: dict[str, Any] = {}
    runs = FEWER.get(what, RUNS) if runs is None else runs
    if what in ("codec", "dirty", "faults") and programs is None:
        print(f"qmig-e2k bench {what}: needs its bare program; run `make bench BENCH={what}`", file=sys.stderr)  # noqa: T201
        return 1
    if what == "precopy":
        bare_loop = programs / "bare_loop" if programs else None
        results = [
            *precopy.run(runs, bare_loop, say),
            *precopy.downtime(runs, say),
            *precopy.resident(say),
            *xbzrle.run(say),
        ]
    elif what == "ram":
        results = pages.run(runs, say)
    elif what == "vmstate":
        results = vmstate.run(runs)
    elif what == "faults":
        assert programs is not None
        # the lab says on which host it measured, by a module of this package
        from qmig_e2k.bench import faults  # noqa: PLC0415
        from qmig_e2k.lab.faults import LabError  # noqa: PLC0415

        try:
            results, phases = faults.run(runs, size, programs, say, qemu=host.qemu())
        except LabError as error:
            say(f"qmig-e2k bench faults: {error}")
            return 1
    elif what == "codec":
        assert programs is not None
        results = codec.run(runs, programs / "codec_loop", say)
    else:
        assert programs is not None
        results = dirty.run(runs, programs / "dirty_scan", say)
    record = {
        "schema": SCHEMA,
        "host": host.facts(),
        "args": {"what": what, "runs": runs} | ({"size": size} if what == "faults" else {}),
        "phases": phases,
        "results": results,
    }
    print((vmstate.table if what == "vmstate" else table)(results))  # noqa: T201
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def table(results: list[dict[str, Any]]) -> str:
    """The results for people: median, reference, ratio."""
    lines = [f"{'':58} {'ours':>9} {'reference':>20} {'ratio':>6}"]
    for result in results:
        beside = f"{result['reference']:9.3f} {result['reference_name']}" if result["reference"] is not None else ""
        ratio = f"{result['ratio']:6.2f}" if result["ratio"] is not None else ""
        line = f"{result['name']:50} {result['unit']:>7} {result['ours']:9.3f} {beside:>20} {ratio:6}"
        lines.append(f"{line}  {result['runs'].get('note', '')}".rstrip())
    return "\n".join(lines)
