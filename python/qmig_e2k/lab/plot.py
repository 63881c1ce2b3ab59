"""Pictures of what the lab found, drawn by matplotlib (`pip install 'qmig_e2k[lab]'`)."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qmig_e2k.lab.faults import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["REMEDY", "histograms", "missing", "points", "unknown"]

REMEDY = "plots need matplotlib: pip install 'qmig_e2k[lab]'"
_BINS_A_DECADE = 20


def missing() -> bool:
    """Whether nothing can be drawn here."""
    try:
        import_module("matplotlib")
    except ImportError:
        return True
    return False


def unknown(out: Path) -> str | None:
    """Why no picture can have this name: matplotlib, which has to be there, goes by its end."""
    known = sorted(_figure(1, 1).canvas.get_supported_filetypes())
    end = out.suffix.removeprefix(".").lower()
    return (
        f"{out}: {end!r} is no format of a picture; there are {', '.join(known)}" if end and end not in known else None
    )


def histograms(record: dict[str, Any], out: Path) -> None:
    """One histogram a phase, all over the same logarithmic axis of time; the format follows the name's end.

    Raises:
        LabError: matplotlib is missing, or does not know the format.
        OSError: `out` cannot be written.
    """
    phases = {name: seen for name, seen in record["phases"].items() if seen["count"]}
    figure = _figure(8, 1 + 1.4 * max(len(phases), 1))
    axes = figure.subplots(max(len(phases), 1), sharex=True, squeeze=False)[:, 0]
    for axis, (name, seen) in zip(axes, phases.items(), strict=False):
        edges, counts = _bins(seen["buckets"])
        axis.stairs(counts, edges, fill=True)
        for percentile in ("p50", "p99"):
            axis.axvline(seen[f"{percentile}_ns"] / 1000, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_ylabel(name)
        label = f"{seen['count']} faults, p50 {seen['p50_ns'] / 1000:.1f}, p99 {seen['p99_ns'] / 1000:.1f} us"
        axis.set_title(label, loc="right", fontsize="small")
    axes[-1].set_xlabel("us")
    figure.suptitle(_conditions(record), fontsize="small")
    _save(figure, out)


def points(rows: Sequence[tuple[str, dict[str, Any]]], out: Path) -> None:
    """Median and 99th percentile of the touches of several runs, one line a run with its label.

    Raises:
        LabError: matplotlib is missing, or does not know the format.
        OSError: `out` cannot be written.
    """
    figure = _figure(8, 1.5 + 0.3 * len(rows))
    axis = figure.subplots()
    lines = range(len(rows))
    for percentile, marker in (("p50", "o"), ("p99", "|")):
        times = [record["phases"]["touch"][f"{percentile}_ns"] / 1000 for _, record in rows]
        axis.plot(times, lines, marker, label=percentile)
    axis.set_xscale("log")
    axis.set_yticks(lines, [label for label, _ in rows], fontsize="small")
    axis.invert_yaxis()
    axis.set_xlabel("us from before the touch to after it")
    axis.legend()
    _save(figure, out)


def _figure(width: float, height: float) -> Any:
    try:
        # the class alone: nothing looks for a display, nothing global is kept
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise LabError(REMEDY) from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, out: Path) -> None:
    try:
        figure.savefig(out, dpi=150)
    except ValueError as error:  # its word for a format that it does not know
        raise LabError(str(error)) from error


def _bins(buckets: Sequence[tuple[int, int, int]]) -> tuple[list[float], list[int]]:
    """The record's fine buckets, put together: edges in us, logarithmic, and the counts between them."""

    def decade(value: float) -> int:
        return math.floor(math.log10(max(value, 1)) * _BINS_A_DECADE)

    counts: dict[int, int] = {}
    for least, width, count in buckets:
        at = decade(least + width / 2)
        counts[at] = counts.get(at, 0) + count
    first, last = min(counts), max(counts)
    edges = [10 ** (at / _BINS_A_DECADE) / 1000 for at in range(first, last + 2)]
    return edges, [counts.get(at, 0) for at in range(first, last + 1)]


def _conditions(record: dict[str, Any]) -> str:
    words = (f"{name} {value}" for name, value in record["args"].items() if value not in (False, 0))
    return f"{', '.join(words)}\n{record['host']['cpu']}, {record['host']['cores']} cores, {record['host']['kernel']}"
