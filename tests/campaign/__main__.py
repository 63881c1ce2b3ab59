"""`python -m campaign`: cut every wire, or do again what broke a rule.

`--modes precopy,tls --json part.json` does a part of it, `--merge part.json other.json` shows the table of all parts,
`--replay '{"mode": ...}'` takes what the JSON has under `shot`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certificates
from campaign import report
from campaign.cut import Run
from campaign.modes import MODES
from campaign.plan import Plan, Shot, mode_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MORE = 2
"""So many draws at most for each offset that is wanted: some streams end before it."""
SAY = 20.0
"""Seconds between two words."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="campaign", description="Cut every wire of a migration.")
    parser.add_argument("--modes", default=",".join(MODES), help="all: %(default)s")
    parser.add_argument("--pages", type=int, default=2000, help="offsets of the page part of each mode (%(default)s)")
    parser.add_argument("--step", type=int, default=1, help="every so many bytes of the control part (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--merge", type=Path, nargs="+", help="only print the table of these reports")
    parser.add_argument("--replay", help="one migration, twenty times")
    options = parser.parse_args(arguments)
    if options.merge:
        merged = {}
        for path in options.merge:
            merged |= json.loads(path.read_text())
        print(report.text(merged))
        return 0
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        good = certificates.make(_made(Path(folder) / "certificates")) / "good"
        if options.replay:
            return _replay(Shot.parse(json.loads(options.replay)), good)
        print(f"seed {options.seed}", flush=True)
        records = {}
        for name in options.modes.split(","):
            records[name] = campaign(name, options.pages, options.seed, good, step=options.step)
            if options.json:
                options.json.write_text(json.dumps(records, indent=1))
    print(report.text(records))
    return 1 if any(record["wrong_count"] for record in records.values()) else 0


def campaign(
    name: str, pages: int, seed: int, good: Path | None, *, step: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Everything of one mode; returns its record."""
    plan = Plan(MODES[name], seed, good, step)
    record = report.new(seed, plan.head)
    said = time.monotonic()
    for shot in chain(plan.control(), islice(plan.pages(), MORE * pages)):
        if record["pages"] >= pages and shot.pages:
            break
        outcome = Run(plan.mode, shot.fault, head=plan.head, certificates=good, again=shot.again, still=shot.still)()
        report.add(record, shot, outcome)
        if outcome.wrong and not quiet:
            print(f"{name}: {outcome.wrong}, cut in {outcome.phase}: {json.dumps(shot.plain())}", flush=True)
        if not quiet and time.monotonic() - said > SAY:
            said = time.monotonic()
            print(f"{name}: {record['cuts']} cuts", file=sys.stderr, flush=True)
    return record


def _replay(shot: Shot, good: Path) -> int:
    plan = Plan(mode_of(shot), 0, good)
    wrong = 0
    for _ in range(20):
        run = Run(plan.mode, shot.fault, head=plan.head, certificates=good, again=shot.again, still=shot.still)
        outcome = run()
        print(outcome.owner, outcome.phase, outcome.kinds, f"{outcome.seconds:.3f} s", outcome.wrong)
        wrong += bool(outcome.wrong)
    return 1 if wrong else 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
