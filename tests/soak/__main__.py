"""Minutes or hours of migrations back and forth between two processes with a busy guest: `make soak MINUTES=30`.

All ways of `trips.WAYS` in turn, which the seed shuffles for each round. After each trip the machine has one owner, and
both processes are counted (`counters`). At the end nothing may have grown, and every step of the guest is replayed: its
RAM must be what they make. Text goes to standard output, the record to `--json`.

    PYTHONPATH=tests .venv/bin/python -m soak --minutes 30 --json soak.json

Exit status: 0 flat and whole, 1 not, and what.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import certificates
from qmig_e2k.demo import Served
from qmig_e2k.monitor.client import QmpClient, QmpError
from soak.counters import Series, held
from soak.trips import WAYS, Sides, SoakError

MACHINE = ("-M", "e2k", "-smp", "2", "-m", "64M", "--mem", "memfd")
GUEST = "random,threads=2,wss=16M,rate=10000"
ROLES = ("runs", "waits")
CHECKS = 4
"""Times in between at which the machine is stopped and verified, at even distances."""


class Soak:
    """Two processes, one machine.

    Args:
        folder: For sockets and logs.
        seed: Of the order of the ways, and of the guest.
        folder_of_certificates: What `certificates.make` made, for TLS; None: without.
    """

    def __init__(self, folder: Path, seed: int, folder_of_certificates: Path | None = None) -> None:
        self._random = random.Random(seed)
        self._folder = folder
        machine = [*MACHINE, "--guest", GUEST]
        # whoever begins this may have been told where things are by other means than its environment
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with ExitStack() as stack:
            self.first = stack.enter_context(
                Served([*machine, "--seed", str(seed % (1 << 32))], folder, "first", "soak.side", environment)
            )
            self.second = stack.enter_context(
                Served([*machine, "--incoming", "defer"], folder, "second", "soak.side", environment)
            )
            self._ends = stack.pop_all()
        self._pids = {self.first.qmp: self.first.process.pid, self.second.qmp: self.second.process.pid}
        tls = folder_of_certificates is not None
        self.sides = Sides(self.first.qmp, self.second.qmp, folder, tls=tls)
        for side in self._pids:
            # a replay of all steps takes its time
            side._deadline = 600.0
            for endpoint in ("client", "server") if tls else ():
                words = {"qom-type": "tls-creds-x509", "id": endpoint, "endpoint": endpoint, "sanity-check": False}
                side.execute("object-add", {**words, "dir": f"{folder_of_certificates}/good"})
        self.sides.plain()
        self.series = {(pid, role): Series() for pid in self._pids.values() for role in ROLES}
        self.trips: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self.steps = 0

    def close(self) -> None:
        """End both processes."""
        self._ends.close()

    def run(self, seconds: float) -> None:
        """Travel for so long, verify in between and at the end. Raises SoakError, QmpError and the like."""
        begun = time.monotonic()
        checks = 0
        while (gone := time.monotonic() - begun) < seconds or not self.trips:
            for way in self._random.sample(WAYS, len(WAYS)):
                self._trip(way)
            if checks < CHECKS and gone > seconds * (checks + 1) / (CHECKS + 1):
                checks += 1
                self.verify()
        self.verify()

    def _trip(self, way: Any) -> None:
        for side in self._pids:
            while side.event() is not None:
                pass  # of the trip before
        begun = time.monotonic()
        try:
            moved = way(self.sides)
            taken = time.monotonic() - begun
            if moved:
                self.sides.exchange()
            self.sides.plain()
        except Exception as error:
            error.add_note(f"in the way {way.__name__}, after {self.trips.total()} trips")
            raise
        states = self.sides.run_states()
        if states[0] != "running" or states[1] not in ("prelaunch", "inmigrate"):
            raise SoakError(f"after {way.__name__} the machines are {states}: one must run, the other wait")
        self.trips[way.__name__] += 1
        self.slowest[way.__name__] = max(self.slowest.get(way.__name__, 0.0), taken)
        for side, role in zip((self.sides.source, self.sides.destination), ROLES, strict=True):
            self._count(side, role)

    def _count(self, side: QmpClient, role: str) -> None:
        pid = self._pids[side]
        self.series[pid, role].samples.append(held(pid))

    def verify(self) -> None:
        """Replay all steps. Raises SoakError if RAM is not what they make."""
        owner = self.sides.source
        owner.execute("stop")
        check = owner.execute("x-verify")
        if not check["equal"]:
            raise SoakError(f"RAM is wrong after {check['steps']} steps, first at {check['first-difference']}")
        self.steps = check["steps"]
        owner.execute("cont")

    def record(self) -> dict[str, Any]:
        """What was done and held."""
        names = {self.first.process.pid: "first", self.second.process.pid: "second"}
        return {
            "schema": "qmig_e2k/soak/1",
            "trips": dict(sorted(self.trips.items())),
            "slowest_s": {name: round(value, 3) for name, value in sorted(self.slowest.items())},
            "recoveries": self.sides.recoveries,
            "steps_verified": self.steps,
            "held": {f"{names[pid]} {role}": series.record() for (pid, role), series in self.series.items()},
            "grew": [
                f"{names[pid]} while it {role}: {what}"
                for (pid, role), series in self.series.items()
                for what in series.growth()
            ],
        }


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    trips = record["trips"]
    lines = [f"{sum(trips.values())} trips in {record['minutes']:.1f} min, seed {record['seed']}"]
    lines += [f"  {name:<18} {count:5}  slowest {record['slowest_s'][name]:7.2f} s" for name, count in trips.items()]
    lines.append(f"{'':14} {'descriptors':>14} {'threads':>14} {'mappings':>14} {'own memory, KiB':>24}")
    for name, figures in record["held"].items():
        if not figures["samples"]:
            continue
        cells = [f"{name:14}"]
        for counter, width in (("descriptors", 14), ("threads", 14), ("mappings", 14), ("memory", 24)):
            values = figures[counter]
            text = "/".join(str(values[key] >> (10 * (counter == "memory"))) for key in ("first", "most", "last"))
            cells.append(f"{text:>{width}}")
        lines.append(" ".join(cells))
    lines.append("  (first/most/last)")
    lines += [f"GREW: {what}" for what in record["grew"]]
    lines.append(f"{record['recoveries']} recoveries; verified: {record['steps_verified']} steps replayed, RAM equal")
    if record["error"]:
        lines.append(f"FAILED: {record['error']}")
    return "\n".join(lines)


def soak(seconds: float, seed: int, folder_of_certificates: Path | None = None) -> dict[str, Any]:
    """A whole soak; never raises for what it finds: `error` and `grew` say that. Certificates as for `Soak`."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qmig-soak-") as name:
        travelling = Soak(Path(name), seed, folder_of_certificates)
        error = None
        try:
            travelling.run(seconds)
        except (SoakError, QmpError, OSError, TimeoutError) as caught:
            notes = "".join(f" ({note})" for note in getattr(caught, "__notes__", ()))
            error = f"{type(caught).__name__}: {caught}{notes}"
        finally:
            record = travelling.record()
            travelling.close()
    tls = folder_of_certificates is not None
    return {**record, "seed": seed, "minutes": (time.monotonic() - begun) / 60, "tls": tls, "error": error}


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, default 30")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the record to OUT")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"soak of {options.minutes:g} min, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qmig-soak-") as name:
        made = certificates.make(Path(name)) if shutil.which("openssl") else None
        record = soak(options.minutes * 60, seed, made)
    print(table(record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if record["error"] or record["grew"] else 0


if __name__ == "__main__":
    sys.exit(main())
