"""A row of a benchmark's record and table (contract section 2)."""

from __future__ import annotations

import statistics
from typing import Any


def median_row(
    name: str, unit: str, ours: list[float], reference: list[float], reference_name: str | None
) -> dict[str, Any]:
    """The row of two series of runs; an empty `reference` is none."""
    other = statistics.median(reference) if reference else None
    runs = {"ours": ours, "reference": reference}
    return row(name, unit, statistics.median(ours), other, reference_name) | {"runs": runs}


def paired_row(name: str, unit: str, ours: list[float], reference: list[float], reference_name: str) -> dict[str, Any]:
    """The same of runs each of which follows one of the reference at once; its ratio is the median of theirs."""
    ratio = statistics.median(one / other for one, other in zip(ours, reference, strict=True))
    return median_row(name, unit, ours, reference, reference_name) | {"ratio": ratio}


def row(name: str, unit: str, ours: float, reference: float | None, reference_name: str | None) -> dict[str, Any]:
    """The row of two figures whose runs another program has kept to itself."""
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "reference": reference,
        "reference_name": reference_name,
        "ratio": ours / reference if reference else None,
        "runs": {"ours": [], "reference": []},
    }
