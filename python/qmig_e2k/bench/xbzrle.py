"""A guest that dirties 64 MiB in writes of 8 bytes, with `xbzrle` and without: what each round sends, and how it ends.

The bandwidth is one at which such a guest cannot be outrun with whole pages. A round's bytes are those of query-migrate
between two MIGRATION_PASS events; the question follows the event, so a round of few milliseconds has some of the next.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k.bench.result import median_row
from qmig_e2k.demo import Served
from qmig_e2k.monitor.client import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.monitor.client import QmpClient

MACHINE = ["-M", "e2k", "-m", "256M", "--guest", "random,wss=64M,rate=400000"]
WORKING_SET = 64 << 20
BANDWIDTH = 64 << 20
"""Bytes a second. A round of the whole working set takes a second, in which the guest writes to all of it again."""
ROUNDS = 8
"""After so many dirty rounds a migration that does not end is given up."""
DEADLINE_S = 60.0
_NAME = "64 MiB dirtied 8 bytes at a time, 64 MiB/s"


@dataclass
class Moved:
    """One migration.

    Attributes:
        rounds: Bytes that each round sent; the first is the whole of RAM's.
        downtime_ms: From the stop on the source to the resume on the destination; None: given up.
    """

    rounds: list[int]
    downtime_ms: float | None


def run(say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Measure both; the rows of contract section 2. `say` is called with a line of text per migration."""
    found = {state: _move(xbzrle=state) for state in (True, False)}
    for state, moved in found.items():
        end = "given up" if moved.downtime_ms is None else f"downtime {moved.downtime_ms:.1f} ms"
        sent = ", ".join(f"{sent / 2**20:.2f}" for sent in moved.rounds)
        say(f"xbzrle {'on' if state else 'off'}: {len(moved.rounds)} rounds, {end}; MiB sent a round: {sent}")
    # the second round is the first that the cache sees, and as large as the one before
    later = {state: [sent / 2**20 for sent in moved.rounds[2:]] for state, moved in found.items()}
    rows = []
    if later[True]:
        rows.append(median_row(f"{_NAME}: a later round", "MiB", later[True], later[False], "without xbzrle"))
    for state, moved in found.items():
        if moved.downtime_ms is not None:
            name = f"{_NAME}: downtime, xbzrle {'on' if state else 'off'}"
            rows.append(median_row(name, "ms", [moved.downtime_ms], [], None))
    for state, moved in found.items():
        word = "on" if state else "off"
        row = median_row(f"{_NAME}: rounds, xbzrle {word}", "", [float(len(moved.rounds))], [], None)
        row["runs"]["note"] = "not converged, given up" if moved.downtime_ms is None else "converged, verified"
        rows.append(row)
    return rows


def _move(*, xbzrle: bool) -> Moved:
    with tempfile.TemporaryDirectory(prefix="qmig-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        destination = stack.enter_context(
            Served([*MACHINE, "--incoming", "tcp:127.0.0.1:0"], folder, "destination")
        ).qmp
        source = stack.enter_context(Served(MACHINE, folder, "source")).qmp
        source.execute("x-block-prefault", block="e2k.ram", offset=0, length=WORKING_SET)
        source.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": "events", "state": True}, {"capability": "xbzrle", "state": xbzrle}],
        )
        source.execute("migrate-set-parameters", max_bandwidth=BANDWIDTH)
        address = destination.execute("query-migrate")["socket-address"][0]
        source.execute("migrate", uri=f"tcp:{address['host']}:{address['port']}")
        return _follow(source, destination)


def _follow(source: QmpClient, destination: QmpClient) -> Moved:
    passes: list[int] = []
    stopped = 0.0
    while True:
        event = source.event(DEADLINE_S)
        if event is None:
            message = "a migration of the benchmark stands still"
            raise TimeoutError(message)
        if event["event"] == "STOP":
            stopped = stamp(event)
        elif event["event"] == "MIGRATION_PASS" and not stopped:
            passes.append(source.execute("query-migrate").get("ram", {}).get("transferred", 0))
            if len(passes) == ROUNDS + 2:
                source.execute("migrate_cancel")
        elif event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "cancelled", "failed"):
            break
    rounds = [after - before for before, after in pairwise(passes)]
    if event["data"]["status"] != "completed":
        return Moved(rounds, None)
    resumed = stamp(destination.wait_event("RESUME", DEADLINE_S))
    destination.execute("stop")
    if not destination.execute("x-verify")["equal"]:
        message = "the machine of the benchmark did not arrive whole"
        raise RuntimeError(message)
    return Moved(rounds, (resumed - stopped) * 1000)
