"""`calc-dirty-rate` and `query-dirty-rate` of QMP, and their two of the human monitor, laid out as by QEMU 7.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmig_e2k.migration.dirty_rate import UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmig_e2k.migration.dirty_rate import Mode
    from qmig_e2k.migration.machine import Machine

__all__ = ["calc", "calc_by_hand", "query", "show"]


def calc(machine: Machine, arguments: Mapping[str, Any]) -> None:
    """Begin a measurement; the arguments are those of QMP. Raises as `DirtyRates.start`."""
    milliseconds = arguments["calc-time"] * UNITS[arguments.get("calc-time-unit", "second")]
    mode = arguments.get("mode", "page-sampling")
    machine.dirty_rates.start(milliseconds, mode=mode, samples=arguments.get("sample-pages"))


def query(machine: Machine, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The last measurement. The unit of time is in the answer if it was asked for, as QEMU 7.2 knows seconds only."""
    unit = arguments.get("calc-time-unit", "second")
    answer = machine.dirty_rates.query(unit)
    return answer | {"calc-time-unit": unit} if "calc-time-unit" in arguments else answer


def calc_by_hand(machine: Machine, values: Mapping[str, Any]) -> list[str]:
    """`calc_dirty_rate [-r] [-b] second [sample_pages_per_GB]`; returns lines. Raises as `DirtyRates.start`."""
    seconds = values["second"]
    if seconds < 1:
        return ["Incorrect period length specified!"]
    if values["r"] and values["b"]:
        return ["Either dirty ring or dirty bitmap can be specified!"]
    mode: Mode = "dirty-ring" if values["r"] else "dirty-bitmap" if values["b"] else "page-sampling"
    machine.dirty_rates.start(seconds * 1000, mode=mode, samples=values["sample_pages_per_GB"])
    return [
        f"Starting dirty rate measurement with period {seconds} seconds",
        "[Please use 'info dirty_rate' to check results]",
    ]


def show(machine: Machine) -> list[str]:
    """`info dirty_rate`."""
    answer = machine.dirty_rates.query()
    rate = f"{answer['dirty-rate']} (MB/s)" if "dirty-rate" in answer else "(not ready)"
    return [
        f"Status: {answer['status']}",
        # seconds, whatever the label says: clients know it so
        f"Start Time: {answer['start-time']} (ms)",
        f"Sample Pages: {answer['sample-pages']} (per GB)",
        f"Period: {answer['calc-time']} (sec)",
        f"Mode: {answer['mode']}",
        f"Dirty rate: {rate}",
    ]
