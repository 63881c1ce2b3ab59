"""A grid of experiments, written down as TOML.

Each key is an option of `lab faults` without its dashes (`delay-us` or `delay_us`); a list makes it an axis:

    ram = "64M"
    faults = 2000
    preempt = [false, true]
    delay-us = [0, 100, 1000]

These are six runs, the last axis turning fastest.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from typing import TYPE_CHECKING, Any

from qmig_e2k.errors import MigrationError, migration_error
from qmig_e2k.lab import plot
from qmig_e2k.lab.faults import Experiment, LabError
from qmig_e2k.lab.faults import run as run_once
from qmig_e2k.migration.parameters import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Grid", "load", "run", "table"]

Grid = list[tuple[str, Experiment]]
"""The runs, each with the values that tell it from the others."""

MOST = 10_000
"""Runs of one grid; more is a slip of the pen."""


def load(path: Path) -> Grid:
    """Read a grid.

    Raises:
        OSError: `path` cannot be read.
        MigrationError: `invalid-argument`: it is no TOML, or asks for what cannot be; the message names the key.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise migration_error("invalid-argument", f"{path}: {error}") from error
    wanted = {name.replace("-", "_"): value for name, value in found.items()}
    if len(wanted) < len(found):
        twice = next(name for name in found if "-" in name and name.replace("-", "_") in found)
        raise migration_error("invalid-argument", f"{path}: {twice} is there twice, with '-' and with '_'; keep one")
    known = Experiment.__dataclass_fields__
    for name in wanted:
        if name not in known:
            words = ", ".join(sorted(known))
            raise migration_error("invalid-argument", f"{path}: {name!r} is no option; there are {words}")
    axes = {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}
    several = [name for name, values in axes.items() if len(values) > 1]
    points = list(itertools.islice(itertools.product(*axes.values()), MOST + 1))
    if not points or len(points) > MOST:
        count = f"more than {MOST}" if points else "no"
        raise migration_error("invalid-argument", f"{path}: {count} runs")
    grid = []
    for point in points:
        values = dict(zip(axes, point, strict=True))
        label = " ".join(f"{name}={json.dumps(values[name])}" for name in several) or "run"
        try:
            grid.append((label, Experiment(**{name: _value(name, value) for name, value in values.items()})))
        except (ValueError, MigrationError) as error:
            raise migration_error("invalid-argument", f"{path}: {error}") from error
    return grid


def _value(name: str, value: object) -> Any:
    """The value as an experiment has it."""
    if name in ("ram", "page") and type(value) in (str, int):
        return parse_size(str(value), "M" if name == "ram" else "B")
    default: object = Experiment.__dataclass_fields__[name].default
    if type(value) is not type(default):
        raise ValueError(f"{name} = {json.dumps(value, default=str)} is no {type(default).__name__}")
    return value


def run(grid: Grid, folder: Path, say: Callable[[str], None] = lambda _: None) -> list[tuple[str, dict[str, Any]]]:
    """Do all runs, one after the other.

    Args:
        grid: What to do, as `load` made it.
        folder: Where the records go, `000.json` and so on, each as soon as it is there; made if it is missing.
        say: Called with a line of text now and then.

    Returns:
        (label, record) of each run.

    Raises:
        LabError: a run came to nothing; the text names it, and the records before it stay.
        OSError: a record cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (label, experiment) in enumerate(grid):
        say(f"{number + 1} of {len(grid)}: {label}")
        try:
            record = run_once(experiment, say)
        except LabError as error:
            raise LabError(f"run {number} ({label}): {error}") from error
        (folder / f"{number:03}.json").write_text(json.dumps(record, indent=1) + "\n")
        rows.append((label, record))
    if not plot.missing():
        plot.points(rows, folder / "sweep.png")
    return rows


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """The touches of all runs for people."""
    wide = max(len(label) for label, _ in rows)
    lines = [
        f"{'':3} {'':{wide}} {'faults':>8} {'p50 us':>9} {'p90 us':>9} {'p99 us':>9} {'max us':>9} {'requests':>9}"
    ]
    for number, (label, record) in enumerate(rows):
        seen = record["phases"]["touch"]
        times = " ".join(f"{seen[name] / 1000:9.1f}" for name in ("p50_ns", "p90_ns", "p99_ns", "max_ns"))
        lines.append(f"{number:03} {label:{wide}} {seen['count']:8} {times} {record['result']['requests']:9}")
    return "\n".join(lines)
