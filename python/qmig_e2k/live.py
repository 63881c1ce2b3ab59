"""The live view of `serve`: one line for each round of a migration, on a terminal or wherever it is asked for."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from qmig_e2k._core import Control

__all__ = ["LiveView", "describe"]

_INTERVAL = 0.1
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class LiveView:
    """Follows the migrations of one machine in a thread of its own until `close`."""

    def __init__(self, control: Control, out: TextIO) -> None:
        self._control = control
        self._print = _printer(out)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-view")
        self._thread.start()

    def close(self) -> None:
        """Show the last state and end."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        seen: tuple[str, ...] = ()
        over = False
        while not over:
            over = self._over.wait(_INTERVAL)
            run_state = self._control.run_state
            info = json.loads(self._control.query_migrate())
            mark = (run_state, str(info.get("status")), str(info.get("ram", {}).get("dirty-sync-count")))
            if mark != seen:
                seen = mark
                self._print(describe(run_state, info), str(info.get("status", "none")))


def describe(run_state: str, info: dict[str, Any]) -> str:
    """One line of at most 80 columns (without a reason) about a machine whose query-migrate answer is `info`."""
    parts = [run_state]
    if "status" in info:
        parts = [f"{run_state:<14}", f"{info['status']:<9}"]
    ram = info.get("ram")
    if ram:
        parts.append(f"round {ram['dirty-sync-count']:<2}")
        if "downtime" in info:
            parts.append(
                f"{size(ram['transferred'])} in {info['total-time'] / 1000:.2f} s, downtime {info['downtime']} ms"
            )
        else:
            parts.append(f"left {size(ram['remaining']):>9}  {ram['mbps'] / 8.388608:7.1f} MiB/s")
    if "error-desc" in info:
        parts.append(info["error-desc"])
    return "  ".join(parts)


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


_STYLES = {"completed": "green", "failed": "bold red", "cancelled": "yellow"}


def _printer(out: TextIO) -> Any:
    """A function (text, status) that writes a line; coloured if rich is installed and `out` is a terminal."""
    try:
        from rich.console import Console  # noqa: PLC0415  optional
    except ImportError:
        return lambda text, _: print(text, file=out, flush=True)
    console = Console(file=out, highlight=False)
    return lambda text, status: console.print(text, style=_STYLES.get(status), markup=False)
