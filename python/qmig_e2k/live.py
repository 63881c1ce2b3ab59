"""The live view of `serve`: what becomes of a machine's migrations, for a person who looks at a terminal.

One line stays for each change of run state or migration. While a migration is under way its figures stand below,
renewed in place twice a second; at its end they go and the sum of it stays. Without rich there is a line for each round
instead, and now and then in a long one.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from qmig_e2k.migration.machine import Machine

__all__ = ["Lines", "LiveView", "Look", "Watch", "facts", "words"]

log = logging.getLogger(__name__)

_INTERVAL = 0.5
"""Seconds between two looks: what moves faster than that cannot be read."""
_LINE_INTERVAL = 1.0
"""Seconds between two lines of figures that stay, at least."""
_LINE_INTERVAL_MOST = 5.0
"""The same in a long round, at most."""
_ROUNDS = 4
"""Former rounds that are shown."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MIB = 1 << 20

_MOVING = frozenset(
    {"active", "device", "pre-switchover", "postcopy-active", "postcopy-recover", "postcopy-recover-setup"}
)
"""Statuses whose figures change."""
_STYLES = {"completed": "green", "failed": "bold red", "cancelled": "yellow", "postcopy-paused": "bold yellow"}

_LEAVES = {
    "setup": "leaving: connecting",
    "active": "leaving: its memory is sent while it runs",
    "pre-switchover": "stopped before the switchover: migrate-continue lets it go on",
    "device": "stopped: the last of its memory and its devices are sent",
    "cancelling": "cancelling",
    "cancelled": "cancelled: the machine stays here",
    "postcopy-active": "it runs at the destination, which fetches the rest of its memory from here",
    "postcopy-paused": "the connection is lost: migrate-recover at the destination, then migrate with `resume` here",
    "postcopy-recover": "connected again",
}
_SNAPSHOT = {"save-vm": "stopped: a snapshot is written", "restore-vm": "stopped: a snapshot is loaded"}
_ARRIVES = {
    "active": "arriving: its memory comes while it runs at the source",
    "postcopy-active": "it runs here, and its memory follows",
    "postcopy-paused": "the connection is lost: migrate-recover here, then migrate with `resume` at the source",
    "postcopy-recover": "connected again",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a machine found.

    Attributes:
        run_state: QMP's.
        info: the answer of query-migrate.
        leaves: the machine leaves, or has left; else it arrives, if there is a migration at all.
        limit: the parameter `downtime-limit`, ms.
        received: bytes that have come, of an arriving machine.
        rate: of these, bytes a second since the look before.
        elapsed: seconds since they began to come.
    """

    run_state: str
    info: dict[str, Any]
    leaves: bool = True
    limit: int = 300
    received: int = 0
    rate: float = 0.0
    elapsed: float = 0.0

    @property
    def status(self) -> str:
        """The migration's; `none` without one."""
        return str(self.info.get("status", "none"))

    @property
    def moving(self) -> bool:
        """There are figures that change."""
        return self.status in _MOVING

    @property
    def ram(self) -> dict[str, Any]:
        """The source's figures, empty where there are none."""
        found: dict[str, Any] = self.info.get("ram", {}) if self.leaves else {}
        return found


class Watch:
    """Looks at one machine again and again; a rate is what came between two looks."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._begun: float | None = None
        self._last = (0.0, 0)

    def look(self) -> Look:
        """How it is now."""
        control, now = self._machine.control, time.monotonic()
        info = json.loads(control.query_migrate())
        leaves = control.outgoing_status != "none"
        received, rate, elapsed = control.received, 0.0, 0.0
        if leaves or control.incoming_status == "none":
            self._begun = None
        else:
            if self._begun is None:
                self._begun, self._last = now, (now, 0)
            before, had = self._last
            rate = (received - had) / (now - before) if now > before else 0.0
            elapsed = now - self._begun
        self._last = (now, received)
        limit = self._machine.settings.parameters["downtime-limit"]
        return Look(control.run_state, info, leaves, int(limit), received, rate, elapsed)


def words(look: Look) -> str:
    """What is to be said of the machine beside its run state; empty if that says all."""
    info, status = look.info, look.status
    if look.run_state in _SNAPSHOT:
        return _SNAPSHOT[look.run_state]
    if status == "completed" and look.leaves:
        # as long as it has left: it may run on here, and what was completed may have been a snapshot
        return _left(info, look.ram) if look.run_state == "postmigrate" else ""
    if status == "completed":
        return "arrived: " + ", ".join(filter(None, (size(look.received), _faults(info))))
    if status == "failed":
        return f"{'failed' if look.leaves else 'did not arrive'}: {info.get('error-desc', 'no reason given')}"
    text = (_LEAVES if look.leaves else _ARRIVES).get(status, "")
    if "error-desc" in info:
        text += f" ({info['error-desc']})"
    if not text and "socket-address" in info:
        text = "waiting for a machine at " + ", ".join(_address(each) for each in info["socket-address"])
    return text


def _left(info: dict[str, Any], ram: dict[str, Any]) -> str:
    words = (
        f"left: {size(ram['transferred'])} in {info['total-time'] / 1000:.2f} s, "
        f"{ram['dirty-sync-count']} rounds, downtime {info['downtime']} ms"
    )
    return words + (f", {ram['postcopy-requests']} pages asked for" if ram["postcopy-requests"] else "")


def _address(address: dict[str, Any]) -> str:
    kind = address.get("type")
    if kind == "inet":
        return f"tcp:{address['host']}:{address['port']}"
    return f"{kind}:{address.get('path', address.get('str', ''))}"


def _faults(info: dict[str, Any]) -> str:
    total = info.get("x-fault-latency", {}).get("total", {})
    if not total.get("count"):
        return ""
    half, most = (f"{total[name] / 1000:.0f} us" for name in ("p50", "p99"))
    return f"{total['count']} faults: half within {half}, 99 % within {most}"


def facts(look: Look) -> list[str]:
    """The figures of a migration under way, in lines of at most 80 columns."""
    ram = look.ram
    if not look.leaves:
        lines = [f"{size(look.received)} here, {_rate(look.rate)}, {look.elapsed:.0f} s"]
        return lines + ([faults] if (faults := _faults(look.info)) else [])
    if not ram:
        return []
    sent = f"{_rate(ram['mbps'] * 1e6 / 8)} sent"
    lines = [f"{size(ram['remaining'])} of {size(ram['total'])} to send, {look.info['total-time'] / 1000:.0f} s"]
    if look.status.startswith("postcopy"):
        return [*lines, f"{sent}, {ram['postcopy-requests']} pages asked for"]
    lines.append(f"{sent}, {_rate(ram['dirty-pages-rate'] * ram['page-size'])} written by the guest")
    if slowed := look.info.get("cpu-throttle-percentage"):
        lines[-1] += f", which is slowed down by {slowed} %"
    if "expected-downtime" in look.info:
        lines.append(
            f"stopped now, it would stand still for {look.info['expected-downtime']} ms (limit {look.limit} ms)"
        )
    return lines


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def _rate(count: float) -> str:
    return f"{count / _MIB:.1f} MiB/s"


class _Face(Protocol):
    """Where looks are shown."""

    def show(self, look: Look) -> None:
        """Another one."""

    def close(self) -> None:
        """That was the last."""


class _Headlines:
    """The lines that stay, each said once."""

    def __init__(self) -> None:
        self._state = self._words = ""

    def new(self, look: Look) -> str | None:
        """The line for a change since the last look, if there is one."""
        # some of it the other side may have said
        text = "".join(each if each.isprintable() else "?" for each in words(look))
        same, said = look.run_state == self._state, text if text != self._words else ""
        self._state, self._words = look.run_state, text
        return None if same and not said else f"{look.run_state:<14}  {said}".rstrip()


class Lines:
    """Plain text: a line for each change and for each round."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._headlines = _Headlines()
        self._mark: tuple[str, Any] | None = None
        self._last = -_LINE_INTERVAL_MOST

    def show(self, look: Look) -> None:
        """Another look."""
        if text := self._headlines.new(look):
            self._print(text)
        if not look.moving or not (figures := facts(look)):
            return
        mark, since = (look.status, look.ram.get("dirty-sync-count")), time.monotonic() - self._last
        if since >= (_LINE_INTERVAL if mark != self._mark else _LINE_INTERVAL_MOST):
            self._mark, self._last = mark, time.monotonic()
            self._print(f"  {f'round {mark[1]}: ' if look.ram else ''}{', '.join(figures)}")

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing is left to be done."""


@dataclass(slots=True)
class _Rounds:
    """How much the last rounds of a migration had to send when they were first seen."""

    seen: list[tuple[int, int]] = field(default_factory=list)

    def note(self, look: Look) -> list[str]:
        """The lines of the rounds before that of `look`; none in postcopy, which has no rounds."""
        ram = look.ram
        if not ram or look.status.startswith("postcopy"):
            self.seen.clear()
            return []
        number = int(ram["dirty-sync-count"])
        if not self.seen or self.seen[-1][0] != number:
            self.seen.append((number, int(ram["remaining"])))
            del self.seen[: -_ROUNDS - 1]
        return [f"round {number:<3} {size(left):>10} to send" for number, left in self.seen[:-1]]


class Screen:
    """Rich: what is under way is renewed in place. Raises ImportError without rich."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415  an extra that may be missing

        self._console = Console(file=out, highlight=False)
        self._live: Any = None
        self._headlines = _Headlines()
        self._rounds = _Rounds()

    @property
    def rich(self) -> bool:
        """The terminal can renew a line; a dumb one cannot."""
        return bool(self._console.is_terminal and not self._console.is_dumb_terminal)

    def show(self, look: Look) -> None:
        """Another look."""
        if not look.moving:
            self._settle()
        if text := self._headlines.new(look):
            stamp = time.strftime("%H:%M:%S")
            self._console.print(f"{stamp}  {text}", style=_STYLES.get(look.status), markup=False)
        if look.moving:
            self._renew(look)

    def _renew(self, look: Look) -> None:
        from rich.console import Group  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        def line(text: str, style: str = "") -> Text:
            return Text(text, style=style, no_wrap=True, overflow="crop")

        parts: list[Any] = [line(f"  {text}", "dim") for text in self._rounds.note(look)]
        if look.ram:
            total, left = look.ram["total"], look.ram["remaining"]
            done = max(total - left, 0)
            bar = Table.grid(padding=(0, 1))
            label = (
                "  its memory" if look.status.startswith("postcopy") else f"  round {look.ram['dirty-sync-count']:<3}"
            )
            bar.add_row(
                label, ProgressBar(total=max(total, 1), completed=done, width=50), f"{100 * done // max(total, 1)} %"
            )
            parts.append(bar)
        parts += [line(f"  {text}") for text in facts(look)]
        if self._live is None:
            # what is logged to the same terminal goes above the figures; what goes to a file does not come here
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),
            )
            with _Followed():
                self._live.start()
            self._console.show_cursor(show=True)  # a process that is killed leaves the terminal as it was
        self._live.update(Group(*parts), refresh=True)

    def _settle(self) -> None:
        if self._live is not None:
            with _Followed():
                self._live.stop()
            self._live = None
            self._rounds = _Rounds()

    def close(self) -> None:
        """The figures go."""
        self._settle()


class _Followed:
    """Loggers that write to `sys.stderr` still do after it was replaced inside the `with` block."""

    def __enter__(self) -> None:
        self._before = sys.stderr

    def __exit__(self, *_: object) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is self._before:
                handler.setStream(sys.stderr)


class LiveView:
    """Follows the migrations of one machine in a thread of its own until `close`."""

    def __init__(self, machine: Machine, out: TextIO) -> None:
        self._watch = Watch(machine)
        self._face: _Face = _face(out)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-view")
        self._thread.start()

    def close(self) -> None:
        """Show the last state and end."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            over = False
            while not over:
                self._face.show(self._watch.look())
                over = self._over.wait(_INTERVAL)
            self._face.show(self._watch.look())
            self._face.close()
        except (OSError, ValueError) as error:  # the terminal has gone, or cannot show this; the machine goes on
            log.info("the live view ends: %s", error)


def _face(out: TextIO) -> _Face:
    """Rich, where it is installed and `out` is a terminal that can do more than lines."""
    if out.isatty():
        try:
            screen = Screen(out)
        except ImportError:
            return Lines(out)
        if screen.rich:
            return screen
    return Lines(out)
