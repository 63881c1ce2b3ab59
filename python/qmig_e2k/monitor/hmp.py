"""Human monitor commands: what `human-monitor-command` returns, laid out as by QEMU 7.2 (spec/control-plane 7.5).

Lines end with CR LF. An error is part of the text, never a QMP error.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qmig_e2k._core import Control, MigrationError
from qmig_e2k.migration.machine import Machine
from qmig_e2k.migration.parameters import PARAMETERS, Value

__all__ = ["execute"]


def execute(machine: Machine, line: str) -> str:
    """Run one command line and return its output with CR LF line ends."""
    words = line.split()
    if not words:
        return ""
    if words[0] in ("help", "?"):
        lines = _help(words[1:])
    elif words[0] in _DO:
        lines = _do(machine, words[0], words[1:])
    elif words[0] != "info":
        lines = [f"unknown command: '{words[0]}'"]
    elif len(words) == 1:
        lines = _help(["info"])
    elif (show := _INFO.get(words[1])) is None:
        lines = [f"unknown command: 'info {words[1]}'"]
    elif len(words) > 2:
        lines = [
            f"{words[1]}: extraneous characters at the end of line",
            f'Try "help info {words[1]}" for more information',
        ]
    else:
        lines = show[0](machine)
    return "".join(f"{text}\r\n" for text in lines)


def _help(topic: list[str]) -> list[str]:
    if topic[:1] == ["info"]:
        wanted = topic[1:2]
        return [f"info {name}  -- {text}" for name, (_, text) in _INFO.items() if not wanted or name in wanted]
    lines = ["help|? [cmd]  -- show the help", "info [subcommand]  -- show various information about the system state"]
    lines += [" ".join([name, " ".join(action.arguments), "--", action.text]) for name, action in _DO.items()]
    return [line for line in lines if not topic or line.split()[0] in topic]


def _do(machine: Machine, name: str, arguments: list[str]) -> list[str]:
    """Run a command that answers nothing when it is well."""
    action = _DO[name]
    if len(arguments) > len(action.arguments):
        return [f"{name}: extraneous characters at the end of line", f'Try "help {name}" for more information']
    if len(arguments) < len(action.arguments):
        return [f"{name}: string expected", f'Try "help {name}" for more information']
    try:
        action.run(machine.control, *arguments)
    except MigrationError as error:
        return [f"Error: {error}"]
    return []


def _on(value: object) -> str:
    return "on" if value else "off"


def _status(machine: Machine) -> list[str]:
    state = machine.control.run_state
    if state == "running":
        return ["VM status: running"]
    return ["VM status: paused" + ("" if state == "paused" else f" ({state})")]


def _capabilities(machine: Machine) -> list[str]:
    return [f"{name}: {_on(state)}" for name, state in machine.settings.capabilities.items()]


def _parameters(machine: Machine) -> list[str]:
    lines = []
    for name, value in machine.settings.parameters.values().items():
        unit = PARAMETERS[name].unit
        if unit is not None:
            lines.append(f"{name}: {_parameter_text(name, value)} {unit}".rstrip())
    return lines


def _parameter_text(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return _on(value)
    return f"'{value}'" if isinstance(value, str) and not PARAMETERS[name].choices else str(value)


_KBYTES = "kbytes"

# label, member of `ram`, unit, shown also when zero
_RAM_LINES = (
    ("transferred ram", "transferred", _KBYTES, True),
    ("throughput", "mbps", "mbps", True),
    ("remaining ram", "remaining", _KBYTES, True),
    ("total ram", "total", _KBYTES, True),
    ("duplicate", "duplicate", "pages", True),
    ("skipped", "skipped", "pages", True),
    ("normal", "normal", "pages", True),
    ("normal bytes", "normal-bytes", _KBYTES, True),
    ("dirty sync count", "dirty-sync-count", "", True),
    ("page size", "page-size", _KBYTES, True),
    ("multifd bytes", "multifd-bytes", _KBYTES, True),
    ("pages-per-second", "pages-per-second", "", True),
    ("dirty pages rate", "dirty-pages-rate", "pages", False),
    ("postcopy request count", "postcopy-requests", "", False),
    ("precopy ram", "precopy-bytes", _KBYTES, False),
    ("downtime ram", "downtime-bytes", _KBYTES, False),
    ("postcopy ram", "postcopy-bytes", _KBYTES, False),
)


_XBZRLE_LINES = (
    ("cache size", "cache-size", "bytes", True),
    ("xbzrle transferred", "bytes", _KBYTES, True),
    ("xbzrle pages", "pages", "pages", True),
    ("xbzrle cache miss", "cache-miss", "pages", True),
    ("xbzrle cache miss rate", "cache-miss-rate", "", True),
    ("xbzrle encoding rate", "encoding-rate", "", True),
    ("xbzrle overflow", "overflow", "", True),
)
_COMPRESSION_LINES = (
    ("compression pages", "pages", "pages", True),
    ("compression busy", "busy", "", True),
    ("compression busy rate", "busy-rate", "", True),
    ("compressed size", "compressed-size", _KBYTES, True),
    ("compression rate", "compression-rate", "", True),
)

_Lines = tuple[tuple[str, str, str, bool], ...]


def _counter_lines(table: _Lines, counters: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, member, unit, always in table:
        value = counters.get(member, 0)
        if not (always or value):
            continue
        text = f"{value:.2f}" if isinstance(value, float) else str(value // 1024 if unit == _KBYTES else value)
        lines.append(f"{label}: {text} {unit}".rstrip())
    return lines


def _address_text(address: Mapping[str, Any]) -> str:
    kind = address.get("type")
    if kind == "inet":
        host = str(address.get("host"))
        return f"tcp:{f'[{host}]' if ':' in host else host}:{address.get('port')}"
    if kind == "unix":
        return f"unix:{address.get('path')}"
    return f"fd:{address.get('str')}"


def _migrate(machine: Machine) -> list[str]:
    info = json.loads(machine.control.query_migrate())
    profile = machine.settings.profile
    lines = [
        "globals:",
        f"store-global-state: {_on(profile.global_state)}",
        f"only-migratable: {_on(machine.settings.only_migratable)}",
        f"send-configuration: {_on(profile.configuration)}",
        f"send-section-footer: {_on(profile.footers)}",
        "decompress-error-check: on",
        "clear-bitmap-shift: 18",
    ]
    reasons = info.get("blocked-reasons")
    if reasons:
        lines += ["Outgoing migration blocked:", *(f"  {reason}" for reason in reasons)]
    if "status" in info:
        error = info.get("error-desc")
        lines.append(f"Migration status: {info['status']}" + (f" ({error})" if error else ""))
        lines.append(f"total time: {info.get('total-time', 0)} ms")
        for label, member in (
            ("expected downtime", "expected-downtime"),
            ("downtime", "downtime"),
            ("setup", "setup-time"),
        ):
            if member in info:
                lines.append(f"{label}: {info[member]} ms")
    for member, table in (("ram", _RAM_LINES), ("xbzrle-cache", _XBZRLE_LINES), ("compression", _COMPRESSION_LINES)):
        if member in info:
            lines += _counter_lines(table, info[member])
    if "cpu-throttle-percentage" in info:
        lines.append(f"cpu throttle percentage: {info['cpu-throttle-percentage']}")
    if "postcopy-blocktime" in info:
        lines.append(f"postcopy blocktime: {info['postcopy-blocktime']}")
    if "postcopy-vcpu-blocktime" in info:
        lines.append(f"postcopy vcpu blocktime: {','.join(map(str, info['postcopy-vcpu-blocktime']))}")
    if info.get("socket-address"):
        lines += ["socket address: [", *(f"\t{_address_text(address)}" for address in info["socket-address"]), "]"]
    return lines


@dataclass(frozen=True, slots=True)
class _Action:
    run: Callable[..., None]
    text: str
    arguments: tuple[str, ...] = ()


_DO: Mapping[str, _Action] = {
    "migrate_start_postcopy": _Action(
        Control.start_postcopy,
        "switch the present migration to postcopy; the capability postcopy-ram must be on on both sides",
    ),
    "migrate_recover": _Action(
        Control.recover, "continue a paused incoming postcopy migration through another address", ("uri",)
    ),
    "migrate_pause": _Action(Control.pause, "pause a migration that is in postcopy"),
}
"""Commands that do something: names and arguments as QEMU's."""

_INFO: Mapping[str, tuple[Callable[[Machine], list[str]], str]] = {
    "migrate": (_migrate, "show migration status"),
    "migrate_capabilities": (_capabilities, "show current migration capabilities"),
    "migrate_parameters": (_parameters, "show current migration parameters"),
    "status": (_status, "show the current VM status (running|paused)"),
}
