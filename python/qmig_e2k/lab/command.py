"""`qmig-e2k lab`: what happens is said on standard error, what was found on standard output."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from qmig_e2k.lab import plot
from qmig_e2k.lab import sweep as grids
from qmig_e2k.lab.faults import Experiment, LabError, run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["faults", "sweep", "table"]


def faults(conditions: dict[str, Any], *, json_out: Path | None = None, plot_out: Path | None = None) -> int:
    """Do one experiment, print its phases, and write record and plot where they are wanted.

    Args:
        conditions: The fields of `Experiment`.
        json_out: File for the record.
        plot_out: File for the histograms.

    Returns:
        The exit status.

    Raises:
        MigrationError: `invalid-argument`: the conditions cannot be.
        OSError: a file cannot be written any more.
    """
    experiment = Experiment(**conditions)
    if plot_out is not None and plot.missing():
        return _came_to_nothing("faults", plot.REMEDY)
    if why := _cannot_be_written(json_out) or _cannot_be_written(plot_out) or (plot_out and plot.unknown(plot_out)):
        return _came_to_nothing("faults", why)
    try:
        record = run(experiment, _say)
        print(table(record))
        if json_out is not None:
            json_out.write_text(json.dumps(record, indent=1) + "\n")
        if plot_out is not None:
            plot.histograms(record, plot_out)
    except LabError as error:
        return _came_to_nothing("faults", error)
    return 0


def sweep(file: Path, folder: Path | None = None) -> int:
    """Do a grid of experiments; the records and the plot go to `folder` (default: named as `file`, without its end).

    Returns:
        The exit status.

    Raises:
        MigrationError: `invalid-argument`: the grid cannot be.
        OSError: a file cannot be read or written.
    """
    grid = grids.load(file)
    folder = folder or file.with_suffix("")
    if folder == file:
        folder = file.with_name(f"{file.name}.runs")
    try:
        rows = grids.run(grid, folder, _say)
    except LabError as error:
        return _came_to_nothing("sweep", error)
    print(grids.table(rows))
    if plot.missing():
        _say(f"no plot: {plot.REMEDY}")
    return 0


def table(record: dict[str, Any]) -> str:
    """The phases of one record for people, in us."""
    lines = [f"{'us':10} {'count':>8} {'p50':>9} {'p90':>9} {'p99':>9} {'p99.9':>9} {'max':>9} {'mean':>9}"]
    for name, seen in record["phases"].items():
        figures = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns", "mean_ns")
        times = " ".join(f"{seen[figure] / 1000:9.1f}" for figure in figures)
        lines.append(f"{name:10} {seen['count']:8} {times}")
    result = record["result"]
    line = f"{result['requests']} requests, {result['touches']} touches in {result['seconds']:.2f} s"
    if result["gib_per_second"] is not None:
        line += f"; all memory in {result['postcopy_seconds']:.2f} s ({result['gib_per_second']:.2f} GiB/s)"
    return "\n".join([*lines, line])


def _cannot_be_written(out: Path | None) -> str | None:
    """Why, asked before anything is measured; no file is left behind by asking."""
    there = out is not None and out.exists()
    if out is None or (there and not (out.is_file() or out.is_dir())):  # a reader of a pipe would see its end
        return None
    try:
        out.open("ab").close()
    except OSError as error:
        return f"{out} cannot be written: {error.strerror}; name a file in a directory that is there and may be written"
    if not there:
        out.unlink()
    return None


def _came_to_nothing(experiment: str, why: object) -> int:
    _say(f"qmig-e2k lab {experiment}: {why}")
    return 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
