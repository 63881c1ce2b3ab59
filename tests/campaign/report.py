"""What came of a campaign, as JSON that can be merged and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from campaign.cut import OWNERS
from campaign.modes import PHASES

if TYPE_CHECKING:
    from campaign.cut import Outcome
    from campaign.plan import Shot

MOST = 50
"""Broken rules that are kept with all that belongs to them."""


def new(seed: int, head: int) -> dict[str, Any]:
    """The record of one mode."""
    return {
        "seed": seed,
        "head": head,
        "cuts": 0,
        "control": 0,
        "pages": 0,
        "not_reached": 0,
        "again": 0,
        "outcomes": {},
        "slowest_recovery": 0.0,
        "slowest_rest": 0.0,
        "slowest_rest_of": None,
        "kinds": {},
        "wrong_count": 0,
        "wrong": [],
    }


def add(record: dict[str, Any], shot: Shot, outcome: Outcome) -> None:
    """Count one migration."""
    if outcome.wrong:
        record["wrong_count"] += 1
        if len(record["wrong"]) < MOST:
            record["wrong"].append({"shot": shot.plain(), "phase": outcome.phase, "wrong": outcome.wrong})
    if not outcome.reached:
        record["not_reached"] += 1
        return
    record["cuts"] += 1
    record["pages" if shot.pages else "control"] += 1
    by = record["outcomes"].setdefault(outcome.phase, {})
    by[str(outcome.owner)] = by.get(str(outcome.owner), 0) + 1
    record["again"] += shot.again and outcome.owner == "source"
    record["slowest_recovery"] = max(record["slowest_recovery"], outcome.recovery or 0.0)
    if outcome.seconds > record["slowest_rest"]:
        record["slowest_rest"], record["slowest_rest_of"] = outcome.seconds, shot.plain()
    kinds = "/".join(kind or "-" for kind in outcome.kinds)
    record["kinds"][kinds] = record["kinds"].get(kinds, 0) + 1


def text(records: dict[str, dict[str, Any]]) -> str:
    """A table: a line for each mode and phase, a column for each owner."""
    lines = [
        f"| mode | cut in | cuts | {' | '.join(OWNERS)} | **broken** |",
        f"|---|---|{'---:|' * (len(OWNERS) + 2)}",
    ]
    total = dict.fromkeys((*OWNERS, "None"), 0)
    for name, record in records.items():
        for phase in PHASES:
            if by := record["outcomes"].get(phase):
                cells = " | ".join(str(by.get(owner, "")) for owner in OWNERS)
                lines.append(f"| {name} | {phase} | {sum(by.values())} | {cells} | {by.get('None', 0)} |")
                for owner, count in by.items():
                    total[owner] += count
    cells = " | ".join(str(total[owner]) for owner in OWNERS)
    lines += [f"| **all** | | {sum(total.values())} | {cells} | {total['None']} |", ""]
    lines += [
        "| mode | seed | control bytes | page offsets | not reached | tried again | slowest recovery | slowest rest |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {record['seed']} | {record['control']} | {record['pages']} | {record['not_reached']} "
        f"| {record['again']} | {record['slowest_recovery']:.2f} s | {record['slowest_rest']:.2f} s |"
        for name, record in records.items()
    ]
    return "\n".join(lines)
