"""Human monitor commands: what `human-monitor-command` returns, laid out as by QEMU 7.2 (spec/control-plane 7.5).

Lines end with CR LF. An error is part of the text, never a QMP error.
"""

import json
from collections.abc import Mapping
from typing import Any

from qmig_e2k import downtime
from qmig_e2k._core import MigrationError
from qmig_e2k.migration.machine import Machine
from qmig_e2k.migration.parameters import PARAMETERS, Value
from qmig_e2k.monitor import dirty_rate, hmp_machine, snapshots
from qmig_e2k.monitor.hmp_commands import ACTIONS
from qmig_e2k.monitor.hmp_line import Action, Argument, Line, number, plain

__all__ = ["execute"]


def execute(machine: Machine, line: str) -> str:
    """Run one command line and return its output with CR LF line ends. `quit` raises Leave."""
    rest = Line(line)
    name = rest.word()
    if name is None:
        return ""
    try:
        lines = _execute(machine, name, rest)
    except (MigrationError, OSError) as error:
        lines = [f"Error: {error}"]
    return "".join(f"{text}\r\n" for text in lines)


def _execute(machine: Machine, name: str, rest: Line) -> list[str]:
    if name in ("help", "?"):
        return _help(rest)
    if name == "info":
        page = rest.word()
        if page is None:
            return _pages()
        if page not in _INFO:
            return [f"unknown command: 'info {page}'"]
        return _INFO[page].execute(machine, rest, page, f"info {page}")
    action = _find(name)
    if action is None:
        return [f"unknown command: '{name}'"]
    return action[1].execute(machine, rest, action[0], name)


def _find(name: str) -> tuple[str, Action] | None:
    """The command of that name, short or long."""
    return next(((long, action) for long, action in ACTIONS.items() if name in (long, action.short)), None)


def _help(rest: Line) -> list[str]:
    topic = rest.word()
    if topic == "info":
        page = rest.word()
        if page is None:
            return _pages()
        return [_page(page)] if page in _INFO else [f"unknown command: 'info {page}'"]
    if topic is not None and topic not in ("help", "?"):
        found = _find(topic)
        return [f"unknown command: '{topic}'"] if found is None else [_line(*found)]
    lines = ["help|? [cmd] -- show the help"]
    if topic is None:
        lines.append("info [subcommand] -- show various information about the system state")
        lines += [_line(name, action) for name, action in ACTIONS.items()]
    return lines


def _pages() -> list[str]:
    return [_page(name) for name in _INFO]


def _page(name: str) -> str:
    return "info " + _line(name, _INFO[name])


def _line(name: str, action: Action) -> str:
    return f"{action.names(name)} {action.usage()} -- {action.text}"


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
        if PARAMETERS[name].shown:
            lines.append(f"{name}: {_parameter_text(name, value)} {PARAMETERS[name].unit}".rstrip())
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
    if "x-downtime" in info:
        lines.append(f"x-downtime: {downtime.describe(info['x-downtime'])}")
        if devices := downtime.slowest(info["x-downtime"]):
            lines.append(f"x-downtime devices: {devices}")
    if info.get("socket-address"):
        lines += ["socket address: [", *(f"\t{_address_text(address)}" for address in info["socket-address"]), "]"]
    return lines


_INFO: Mapping[str, Action] = {
    "dirty_rate": Action(plain(dirty_rate.show), "show dirty rate information"),
    "migrate": Action(plain(_migrate), "show migration status"),
    "migrate_cache_size": Action(plain(hmp_machine.cache_size), "show the size of the cache of xbzrle"),
    "migrate_capabilities": Action(plain(_capabilities), "show current migration capabilities"),
    "migrate_parameters": Action(plain(_parameters), "show current migration parameters"),
    "mtree": Action(hmp_machine.mtree, "show memory tree (-f: without the regions around it)", options="f"),
    "name": Action(plain(hmp_machine.name), "show the current VM name"),
    "registers": Action(
        hmp_machine.registers,
        "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query)",
        (Argument("vcpu", number, optional=True),),
        "a",
    ),
    "snapshots": Action(plain(snapshots.table), "show the currently saved VM snapshots"),
    "status": Action(plain(_status), "show the current VM status (running|paused)"),
    "uuid": Action(plain(hmp_machine.uuid), "show the current VM UUID"),
    "version": Action(plain(hmp_machine.version), "show the version of QEMU"),
}
"""Pages of `info`, in the order of help."""
