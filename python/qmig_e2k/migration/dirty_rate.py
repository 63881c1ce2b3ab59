"""How fast a machine writes its memory: the measurement behind `calc-dirty-rate` (spec/control-plane 15.3)."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qmig_e2k._core import DirtyRate
from qmig_e2k.errors import migration_error
from qmig_e2k.migration.blockers import POSTCOPY, RUNNING
from qmig_e2k.migration.capabilities import NO_DIRTY_RING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmig_e2k.migration.machine import Machine

__all__ = ["MODES", "UNITS", "DirtyRates", "Mode", "Unit"]

Mode = Literal["page-sampling", "dirty-ring", "dirty-bitmap"]
Unit = Literal["second", "millisecond"]

MODES: tuple[Mode, ...] = ("page-sampling", "dirty-ring", "dirty-bitmap")
"""Names of the modes; `dirty-ring` is refused."""
UNITS: Mapping[Unit, int] = {"second": 1000, "millisecond": 1}
"""Units of a period, in milliseconds."""

_PERIOD = (50, 60_000)
_SAMPLES = (128, 16_384)
_DEFAULT_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class _Begun:
    """A measurement: what was asked for, and when (seconds since the epoch)."""

    rate: DirtyRate
    mode: Mode
    samples: int
    milliseconds: int
    start: int


class DirtyRates:
    """The measurements of one machine, one at a time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._last: _Begun | None = None

    def start(self, milliseconds: int, *, mode: Mode = "page-sampling", samples: int | None = None) -> None:
        """Begin to measure; returns at once.

        Args:
            milliseconds: for how long, 50 to 60000.
            mode: `page-sampling` compares hashes of some pages, `dirty-bitmap` lets a dirty log count the pages that
                are written.
            samples: with `page-sampling`: pages looked at for each GiB, 128 to 16384; None: 512.

        Raises:
            MigrationError: `invalid-argument` for another mode or a number out of range, `unsupported` for
                `dirty-ring`, `invalid-state` while another one measures or the memory is not here yet, and with
                `dirty-bitmap` during a migration, which needs the log itself.
        """
        if mode == "dirty-ring":
            raise migration_error("unsupported", f"mode 'dirty-ring' is not supported: {NO_DIRTY_RING}")
        if mode not in MODES:
            raise migration_error("invalid-argument", f"mode {mode!r} is not known: there are {', '.join(MODES)}")
        _check("the period in milliseconds", milliseconds, _PERIOD)
        if mode == "dirty-bitmap" and samples is not None:
            raise migration_error("invalid-argument", "sample-pages goes with mode 'page-sampling' only")
        samples = _DEFAULT_SAMPLES if samples is None else samples
        _check("sample-pages", samples, _SAMPLES)
        machine, control = self._machine, self._machine.control
        with machine.settings_lock, self._lock:
            if self._last is not None and self._last.rate.measured() is None:
                raise migration_error("invalid-state", "the dirty rate is being measured already")
            if control.run_state == "inmigrate" or control.incoming_status in POSTCOPY:
                raise migration_error("invalid-state", "the dirty rate cannot be measured: the memory is not here yet")
            if machine.restoring is not None:
                raise migration_error("invalid-state", "the dirty rate cannot be measured while a snapshot is loaded")
            if mode == "dirty-bitmap" and (machine.saving or control.outgoing_status in RUNNING):
                text = "mode 'dirty-bitmap' cannot be had while a migration runs, which needs the dirty log itself"
                raise migration_error("invalid-state", f"{text}: see dirty-pages-rate of query-migrate")
            explicit = machine.dirty_log == "explicit"
            sample_pages = samples if mode == "page-sampling" else None
            rate = DirtyRate(machine.blocks, milliseconds, sample_pages=sample_pages, explicit=explicit)
            self._last = _Begun(rate, mode, 0 if sample_pages is None else samples, milliseconds, int(time.time()))

    def query(self, unit: Unit = "second") -> dict[str, Any]:
        """What `query-dirty-rate` answers, with the time in `unit`: the one asked for, in the end the real one."""
        last = self._last
        if last is None:
            return {"status": "unstarted", "sample-pages": 0, "mode": MODES[0], "start-time": 0, "calc-time": 0}
        answer: dict[str, Any] = {
            "status": "measuring",
            "sample-pages": last.samples,
            "mode": last.mode,
            "start-time": last.start,
            "calc-time": last.milliseconds // UNITS[unit],
        }
        measured = last.rate.measured()
        if measured is not None:
            milliseconds, rate = measured
            answer |= {
                "status": "measured",
                "dirty-rate": -1 if rate is None else rate,
                "calc-time": milliseconds // UNITS[unit],
            }
        return answer

    def cut(self) -> None:
        """End a measurement now, with the rate so far: a migration needs the dirty log, or the machine is closed."""
        last = self._last
        if last is not None:
            last.rate.cut()


def _check(what: str, value: int, limits: tuple[int, int]) -> None:
    low, high = limits
    if not low <= value <= high:
        raise migration_error("invalid-argument", f"{what} must be from {low} to {high}, not {value}")
