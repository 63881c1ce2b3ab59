"""The shapes of answers and events, and of the commands that the core answers by itself (spec/control-plane 4.3, 7.3).

`query-qmp-schema` shows them; the tests hold the answers against them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from qmig_e2k.monitor.schema import (
    BOOL,
    INT,
    NO_ARGUMENTS,
    NUMBER,
    STR,
    Array,
    Enum,
    Kind,
    Struct,
)
from qmig_e2k.savevm.globalstate import RUN_STATES

__all__ = ["CORE", "EVENTS", "JOB", "MIGRATION", "STATUSES", "CoreCommand"]

STATUSES = (
    "none",
    "setup",
    "cancelling",
    "cancelled",
    "active",
    "postcopy-active",
    "postcopy-paused",
    "postcopy-recover",
    "completed",
    "failed",
    "colo",
    "pre-switchover",
    "device",
    "wait-unplug",
)
"""Names of the migration statuses, in the order of QEMU 7.2."""

_RAM = Struct(
    {
        "transferred": INT,
        "remaining": INT,
        "total": INT,
        "duplicate": INT,
        "skipped": INT,
        "normal": INT,
        "normal-bytes": INT,
        "dirty-pages-rate": INT,
        "mbps": NUMBER,
        "dirty-sync-count": INT,
        "postcopy-requests": INT,
        "page-size": INT,
        "multifd-bytes": INT,
        "pages-per-second": INT,
        "precopy-bytes": INT,
        "downtime-bytes": INT,
        "postcopy-bytes": INT,
        "dirty-sync-missed-zero-copy": INT,
    }
)

_XBZRLE = Struct(
    {
        "cache-size": INT,
        "bytes": INT,
        "pages": INT,
        "cache-miss": INT,
        "cache-miss-rate": NUMBER,
        "encoding-rate": NUMBER,
        "overflow": INT,
    }
)

_COMPRESSION = Struct(
    {"pages": INT, "busy": INT, "busy-rate": NUMBER, "compressed-size": INT, "compression-rate": NUMBER}
)

_ADDRESS = Struct(
    {"type": Enum(("inet", "unix", "vsock", "fd"))}, {"host": STR, "port": STR, "path": STR, "str": STR}, anything=True
)

_MICROSECONDS = dict.fromkeys(("stop", "pause", "sync", "pages", "switchover", "load", "start"), INT)

MIGRATION = Struct(
    {},
    {
        "status": Enum(STATUSES),
        "ram": _RAM,
        "xbzrle-cache": _XBZRLE,
        "compression": _COMPRESSION,
        **dict.fromkeys(("total-time", "expected-downtime", "downtime", "setup-time", "cpu-throttle-percentage"), INT),
        "error-desc": STR,
        "blocked-reasons": Array(STR),
        "postcopy-blocktime": INT,
        "postcopy-vcpu-blocktime": Array(INT),
        "socket-address": Array(_ADDRESS),
        "x-downtime": Struct({}, {**_MICROSECONDS, "devices": Kind()}),
        "x-fault-latency": Kind(),
        "x-dirty-log": Enum(("wp-async", "explicit")),
        "x-commands-waited": INT,
    },
)
"""The answer of query-migrate: what is absent depends on the state."""

_JOB_STATUSES = "undefined created running paused ready standby waiting pending aborting concluded null"
_JOB_STATUS = Enum(tuple(_JOB_STATUSES.split()))

JOB = Struct(
    {
        "id": STR,
        "type": Enum(("snapshot-save", "snapshot-load", "snapshot-delete")),
        "status": _JOB_STATUS,
        "current-progress": INT,
        "total-progress": INT,
    },
    {"error": STR},
)
"""One item of the answer of query-jobs."""

_VERSION = Struct({"qemu": Struct({"major": INT, "minor": INT, "micro": INT}), "package": STR})
_CAUSE = Struct({"guest": BOOL, "reason": Enum(("host-qmp-quit", "host-qmp-system-reset"))})


class CoreCommand:
    """A command that the core answers: its arguments, its answer, and whether it may overtake (`exec-oob`)."""

    def __init__(self, arguments: Struct = NO_ARGUMENTS, returns: Kind = NO_ARGUMENTS, *, oob: bool = False) -> None:
        self.arguments = arguments
        self.returns = returns
        self.oob = oob


CORE: Mapping[str, CoreCommand] = MappingProxyType(
    {
        "closefd": CoreCommand(Struct({"fdname": STR})),
        "getfd": CoreCommand(Struct({"fdname": STR})),
        "migrate-pause": CoreCommand(oob=True),
        "migrate-recover": CoreCommand(Struct({"uri": STR}), oob=True),
        "migrate_cancel": CoreCommand(),
        "qmp_capabilities": CoreCommand(Struct({}, {"enable": Array(Enum(("oob",)))})),
        "query-commands": CoreCommand(returns=Array(Struct({"name": STR}))),
        "query-migrate": CoreCommand(returns=MIGRATION, oob=True),
        "query-status": CoreCommand(
            returns=Struct({"running": BOOL, "singlestep": BOOL, "status": Enum(RUN_STATES)}), oob=True
        ),
        "query-version": CoreCommand(returns=_VERSION),
        "x-migrate-give-up": CoreCommand(oob=True),
    }
)
"""Every command that Python does not see."""

EVENTS: Mapping[str, Struct] = MappingProxyType(
    {
        "JOB_STATUS_CHANGE": Struct({"id": STR, "status": _JOB_STATUS}),
        "MIGRATION": Struct({"status": Enum(STATUSES)}),
        "MIGRATION_PASS": Struct({"pass": INT}),
        "POWERDOWN": NO_ARGUMENTS,
        "RESET": _CAUSE,
        "RESUME": NO_ARGUMENTS,
        "SHUTDOWN": _CAUSE,
        "STOP": NO_ARGUMENTS,
    }
)
"""Every event with its data."""
