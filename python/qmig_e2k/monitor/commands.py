"""The QMP commands that Python answers: arguments, meaning, errors (spec/control-plane 7.3). One table says it all.

What is not here (`qmp_capabilities`, `query-status`, `query-migrate`, `migrate_cancel`, `migrate-pause`,
`migrate-recover`, ...) is answered by the core, which never waits for Python.
"""

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol
from uuid import UUID

from qmig_e2k._core import Command, MigrationError
from qmig_e2k.migration import tls
from qmig_e2k.migration.capabilities import ALIASES as CAPABILITY_ALIASES
from qmig_e2k.migration.capabilities import CAPABILITIES, COLO, NO_DIRTY_RING, NO_STORAGE
from qmig_e2k.migration.dirty_rate import MODES, UNITS
from qmig_e2k.migration.incoming import incoming
from qmig_e2k.migration.machine import Machine
from qmig_e2k.migration.outgoing import migrate, resume_switchover
from qmig_e2k.migration.parameters import ALIASES as PARAMETER_ALIASES
from qmig_e2k.migration.parameters import PARAMETERS, REFUSED, Parameter
from qmig_e2k.monitor import channels, dirty_rate, hmp, legacy, snapshots
from qmig_e2k.monitor.answers import CORE, EVENTS, JOB, STATUSES
from qmig_e2k.monitor.hmp_line import Leave
from qmig_e2k.monitor.introspect import describe
from qmig_e2k.monitor.schema import (
    ANYTHING,
    BOOL,
    INT,
    NO_ARGUMENTS,
    NUMBER,
    SIZE,
    STR,
    STR_OR_NULL,
    Array,
    CommandError,
    Enum,
    Int,
    Kind,
    Struct,
)

__all__ = ["COMMANDS", "Verifiable", "execute"]

log = logging.getLogger(__name__)


class Verifiable(Protocol):
    """A guest whose steps can be replayed."""

    def verify(self) -> tuple[int, bool, int | None]:
        """Steps, whether all of RAM is what they make of it, and else the first difference."""

    def vcpu_steps(self) -> list[int]:
        """The steps of each vCPU."""


@dataclass(frozen=True, slots=True)
class Call:
    """One command being run, with its checked arguments, on a machine that may have a model guest."""

    machine: Machine
    guest: Verifiable | None
    command: Command
    arguments: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def taken_fd(self, uri: str) -> int | None:
        """The descriptor that an `fd:NAME` URI means; a number stands for an inherited one."""
        name = uri.removeprefix("fd:")
        if name == uri or name[:1].isdigit():
            return None
        fd = self.command.take_fd(name)
        if fd is None:
            raise CommandError(f"no descriptor named '{name}' was passed by getfd on this connection")
        return fd


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: what it does, the shapes of its arguments and its answer. None from `run` is the empty object."""

    run: Callable[[Call], Any]
    arguments: Struct = NO_ARGUMENTS
    returns: Kind = NO_ARGUMENTS
    oob: bool = False


def execute(machine: Machine, guest: Verifiable | None, command: Command) -> bool:
    """Run `command` and answer it; never raises. True if it ends the program."""
    try:
        entry = COMMANDS[command.name]
        arguments = json.loads(command.arguments)
        entry.arguments.check(arguments)
        answer = entry.run(Call(machine, guest, command, arguments))
    except Leave as leave:
        machine.control.emit("SHUTDOWN", '{"guest": false, "reason": "host-qmp-quit"}')
        command.reply(json.dumps(leave.answer))
        return True
    except CommandError as error:
        command.fail(str(error), error.error_class)
    except (MigrationError, OSError) as error:
        command.fail(str(error))
    except Exception as error:
        log.exception("QMP command %s failed", command.name)
        command.fail(f"{type(error).__name__}: {error}")
    else:
        command.reply(json.dumps({} if answer is None else answer))
    return False


def _quit(_call: Call) -> None:
    raise Leave({})


def _query_name(call: Call) -> dict[str, str]:
    return {} if call.machine.label is None else {"name": call.machine.label}


def _pmemsave(call: Call) -> None:
    chunks = call.machine.read_physical(call["val"], call["size"])
    name = call["filename"]
    if "\0" in name:
        raise CommandError("parameter 'filename' has a NUL in it, which no name of a file has")
    # a FIFO is not waited for: neither for a reader, nor for what it makes of it
    no_file = CommandError(f"'{name}' is no file: whoever should read it would hold up all commands")
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise no_file if error.errno == errno.ENXIO else error from None
    with os.fdopen(fd, "wb") as file:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise no_file
        file.writelines(chunks)


def _migrate(call: Call) -> None:
    for name in ("blk", "inc"):
        if call.arguments.get(name):
            raise CommandError(f"'{name}' is not supported: {NO_STORAGE}")
    uri = channels.uri(call.arguments)
    fd = call.taken_fd(uri)
    if call.arguments.get("resume"):
        call.machine.control.resume(uri, fd)
    else:
        migrate(call.machine, uri, fd)


def _migrate_incoming(call: Call) -> None:
    uri = channels.uri(call.arguments)
    if call.arguments.get("exit-on-error"):
        text = "'exit-on-error' cannot be true: after a failed load this process waits for another `migrate-incoming`"
        raise CommandError(f"{text}; watch for the status 'failed', and `quit`")
    legacy.refuse_unexpected(call.machine)
    incoming(call.machine, uri, call.taken_fd(uri))


def _set_capabilities(call: Call) -> None:
    call.machine.set_capabilities((entry["capability"], entry["state"]) for entry in call["capabilities"])


def _query_capabilities(call: Call) -> list[dict[str, Any]]:
    return [{"capability": name, "state": state} for name, state in call.machine.settings.capabilities.items()]


def _verify(call: Call) -> dict[str, Any]:
    if call.guest is None:
        raise CommandError("there is no model guest to verify: start with --guest")
    steps, equal, difference = call.guest.verify()
    answer: dict[str, Any] = {"steps": steps, "equal": equal, "first-difference": difference}
    if call.arguments.get("vcpus"):
        answer["vcpu-steps"] = call.guest.vcpu_steps()
    return answer


def _prefault(call: Call) -> None:
    block = next((block for block in call.machine.blocks if block.name == call["block"]), None)
    if block is None:
        raise CommandError(f"there is no RAM block '{call['block']}'")
    block.prefault(call["offset"], call["length"])


def _object_add(call: Call) -> None:
    own = ("qom-type", "id")
    properties = {name: value for name, value in call.arguments.items() if name not in own}
    tls.add_object(call.machine, call["qom-type"], call["id"], properties)


@cache
def _schema() -> list[dict[str, Any]]:
    return describe({**COMMANDS, **CORE}, EVENTS)


def _refusal(reason: str) -> Entry:
    def run(call: Call) -> None:
        raise CommandError(f"{call.command.name} is not supported: {reason}")

    return Entry(run, ANYTHING)


def _kind(parameter: Parameter) -> Kind:
    if parameter.nullable:
        return STR_OR_NULL
    if isinstance(parameter.default, bool):
        return BOOL
    if isinstance(parameter.default, str):
        return Enum(parameter.choices) if parameter.choices else STR
    return Int(parameter.low, parameter.high)


_WHERE: Mapping[str, Kind] = {"uri": STR, "channels": channels.CHANNELS}
_UNIT = Enum(tuple(UNITS))
_DIRTY_RATE = Struct(
    {
        "status": Enum(("unstarted", "measuring", "measured")),
        "start-time": INT,
        "calc-time": INT,
        "sample-pages": INT,
        "mode": Enum(MODES),
    },
    {"dirty-rate": INT, "calc-time-unit": _UNIT},
)
_CAPABILITY = Struct({"capability": Enum((*CAPABILITIES, *CAPABILITY_ALIASES)), "state": BOOL})
_CAPABILITY_STATE = Struct({"capability": Enum(tuple(CAPABILITIES)), "state": BOOL})
_PARAMETERS = {name: _kind(parameter) for name, parameter in PARAMETERS.items()}
_PARAMETER_VALUES = {name: STR if kind is STR_OR_NULL else kind for name, kind in _PARAMETERS.items()}
_PARAMETERS |= {alias: _PARAMETERS[name] for alias, name in PARAMETER_ALIASES.items()}
_PARAMETERS |= dict.fromkeys(REFUSED, Kind())  # whatever the value, the parameter itself is refused

_VERIFIED = Struct({"steps": INT, "equal": BOOL, "first-difference": Kind()}, {"vcpu-steps": Array(INT)})
_META_TYPES = ("builtin", "enum", "array", "object", "alternate", "command", "event")
_DESCRIBED = Struct({"name": STR, "meta-type": Enum(_META_TYPES)}, anything=True)

COMMANDS: Mapping[str, Entry] = MappingProxyType(
    {
        "stop": Entry(lambda call: call.machine.pause()),
        "cont": Entry(lambda call: call.machine.cont()),
        "system_reset": Entry(lambda call: call.machine.reset()),
        "quit": Entry(_quit),
        "query-events": Entry(lambda _: [{"name": name} for name in EVENTS], returns=Array(Struct({"name": STR}))),
        "query-qmp-schema": Entry(lambda _: _schema(), returns=Array(_DESCRIBED)),
        "query-name": Entry(_query_name, returns=Struct({}, {"name": STR})),
        "pmemsave": Entry(_pmemsave, Struct({"val": SIZE, "size": SIZE, "filename": STR})),
        "human-monitor-command": Entry(
            lambda call: hmp.execute(call.machine, call["command-line"]),
            Struct({"command-line": STR}, {"cpu-index": INT}),
            STR,
        ),
        "migrate": Entry(_migrate, Struct({}, {**_WHERE, **dict.fromkeys(("blk", "inc", "detach", "resume"), BOOL)})),
        "migrate-incoming": Entry(_migrate_incoming, Struct({}, {**_WHERE, "exit-on-error": BOOL})),
        "migrate-continue": Entry(
            lambda call: resume_switchover(call.machine, call["state"]), Struct({"state": Enum(STATUSES)})
        ),
        "migrate-set-capabilities": Entry(_set_capabilities, Struct({"capabilities": Array(_CAPABILITY)})),
        "query-migrate-capabilities": Entry(_query_capabilities, returns=Array(_CAPABILITY_STATE)),
        "migrate-set-parameters": Entry(
            lambda call: call.machine.set_parameters(call.arguments), Struct({}, _PARAMETERS)
        ),
        "query-migrate-parameters": Entry(
            lambda call: call.machine.settings.parameters.values(), returns=Struct({}, _PARAMETER_VALUES)
        ),
        "migrate-start-postcopy": Entry(lambda call: call.machine.control.start_postcopy()),
        "migrate_set_speed": Entry(lambda call: legacy.set_speed(call.machine, call["value"]), Struct({"value": INT})),
        "migrate_set_downtime": Entry(
            lambda call: legacy.set_downtime(call.machine, call["value"]), Struct({"value": NUMBER})
        ),
        "migrate-set-cache-size": Entry(
            lambda call: legacy.set_cache_size(call.machine, call["value"]), Struct({"value": INT})
        ),
        "query-migrate-cache-size": Entry(
            lambda call: call.machine.settings.parameters["xbzrle-cache-size"], returns=INT
        ),
        "system_powerdown": Entry(lambda call: call.machine.control.emit("POWERDOWN")),
        "query-uuid": Entry(
            lambda call: {"UUID": str(call.machine.uuid or UUID(int=0))}, returns=Struct({"UUID": STR})
        ),
        "query-kvm": Entry(
            lambda _: {"enabled": False, "present": False}, returns=Struct({"enabled": BOOL, "present": BOOL})
        ),
        "query-target": Entry(lambda _: {"arch": "e2k"}, returns=Struct({"arch": Enum(("e2k",))})),
        "client_migrate_info": _refusal("this machine has no display to hand over"),
        "x-colo-lost-heartbeat": _refusal(COLO),
        "snapshot-save": Entry(lambda call: snapshots.save(call.machine, call.arguments), snapshots.WITH_STATE),
        "snapshot-load": Entry(lambda call: snapshots.load(call.machine, call.arguments), snapshots.WITH_STATE),
        "snapshot-delete": Entry(lambda call: snapshots.delete(call.machine, call.arguments), snapshots.WITHOUT_STATE),
        "query-jobs": Entry(lambda call: call.machine.jobs.query(), returns=Array(JOB)),
        "job-cancel": Entry(lambda call: call.machine.jobs.cancel(call["id"]), Struct({"id": STR})),
        "job-dismiss": Entry(lambda call: call.machine.jobs.dismiss(call["id"]), Struct({"id": STR})),
        "announce-self": _refusal("this machine has no network device"),
        "object-add": Entry(_object_add, Struct({"qom-type": STR, "id": STR}, anything=True)),
        "object-del": Entry(lambda call: tls.del_object(call.machine, call["id"]), Struct({"id": STR})),
        **dict.fromkeys(
            ("set-vcpu-dirty-limit", "cancel-vcpu-dirty-limit", "query-vcpu-dirty-limit"), _refusal(NO_DIRTY_RING)
        ),
        "calc-dirty-rate": Entry(
            lambda call: dirty_rate.calc(call.machine, call.arguments),
            Struct({"calc-time": INT}, {"calc-time-unit": _UNIT, "sample-pages": INT, "mode": Enum(MODES)}),
        ),
        "query-dirty-rate": Entry(
            lambda call: dirty_rate.query(call.machine, call.arguments),
            Struct({}, {"calc-time-unit": _UNIT}),
            _DIRTY_RATE,
        ),
        "x-verify": Entry(_verify, Struct({}, {"vcpus": BOOL}), _VERIFIED),
        "x-add-blocker": Entry(
            lambda call: {"id": call.machine.add_blocker(call["reason"])}, Struct({"reason": STR}), Struct({"id": INT})
        ),
        "x-del-blocker": Entry(lambda call: call.machine.del_blocker(call["id"]), Struct({"id": INT})),
        "x-block-prefault": Entry(_prefault, Struct({"block": STR, "offset": SIZE, "length": SIZE})),
    }
)
"""Every command that Python answers."""
