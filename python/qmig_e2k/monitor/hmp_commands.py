"""The commands of the human monitor that do something (spec/control-plane 7.4): names, arguments and units as QEMU's.

Those of 2.9 that later versions dropped are here too. Sizes without a suffix are MiB where QEMU's are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qmig_e2k.errors import migration_error
from qmig_e2k.migration import parameters
from qmig_e2k.migration.capabilities import NO_STORAGE
from qmig_e2k.migration.incoming import incoming
from qmig_e2k.migration.outgoing import migrate, resume_switchover
from qmig_e2k.migration.parameters import parse_size, parse_value
from qmig_e2k.migration.snapshots import delvm, loadvm, savevm
from qmig_e2k.monitor import dirty_rate, legacy
from qmig_e2k.monitor.hmp_line import Action, Argument, Leave, number, plain, switch

if TYPE_CHECKING:
    from qmig_e2k.migration.machine import Machine

__all__ = ["ACTIONS"]

_MEBIBYTES = frozenset({"max-bandwidth", "avail-switchover-bandwidth"})
"""Parameters whose bare numbers count MiB."""

Values = Mapping[str, Any]


def _migrate(machine: Machine, values: Values) -> list[str] | None:
    for option in "bi":
        if values[option]:
            raise migration_error("unsupported", f"'-{option}' is not supported: {NO_STORAGE}")
    if values["r"]:
        machine.control.resume(values["uri"])
    else:
        migrate(machine, values["uri"])
    return None if values["d"] else ["terminal does not allow synchronous migration, continuing detached"]


def _migrate_incoming(machine: Machine, values: Values) -> None:
    legacy.refuse_unexpected(machine)
    incoming(machine, values["uri"])


def _set_parameter(machine: Machine, values: Values) -> None:
    name = parameters.canonical(values["parameter"])
    unit = "M" if name in _MEBIBYTES else "B"
    machine.set_parameters({name: parse_value(name, values["value"], unit)})


def _set_size(setter: Callable[[Machine, int], None], unit: str = "M") -> Callable[[Machine, Values], None]:
    def run(machine: Machine, values: Values) -> None:
        try:
            size = parse_size(values["value"], unit)
        except ValueError as error:
            raise migration_error("invalid-argument", str(error)) from None
        setter(machine, size)

    return run


_DECIMAL = re.compile(r"[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})")  # no exponent: it could take hours
_SECONDS = {"ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": Fraction(1)}


def _set_downtime(machine: Machine, values: Values) -> None:
    word: str = values["value"]
    unit = next((unit for unit in _SECONDS if word.endswith(unit)), "")
    number = word.removesuffix(unit)
    if not _DECIMAL.fullmatch(number):
        raise migration_error("invalid-argument", f"{word!r} is no time: give seconds, or a number with ms, us or ns")
    legacy.set_downtime(machine, Fraction(number) * _SECONDS.get(unit, 1))


def _set_capability(machine: Machine, values: Values) -> None:
    machine.set_capabilities([(values["capability"], values["state"])])


def _savevm(machine: Machine, values: Values) -> None:
    savevm(machine, values["tag"])


def _loadvm(machine: Machine, values: Values) -> None:
    loadvm(machine, values["tag"])


def _delvm(machine: Machine, values: Values) -> None:
    delvm(machine, values["tag"])


def _quit(_machine: Machine, _values: Values) -> None:
    raise Leave("")


_URI = Argument("uri")
_VALUE = Argument("value")
_TAG = Argument("tag")

ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "calc_dirty_rate": Action(
            dirty_rate.calc_by_hand,
            "start a round of guest dirty rate measurement (using -r to specify dirty ring, which is refused, and "
            "-b to specify dirty bitmap as method of calculation)",
            (Argument("second", number), Argument("sample_pages_per_GB", number, optional=True)),
            "rb",
        ),
        "cont": Action(plain(lambda machine: machine.cont()), "resume emulation", short="c"),
        "delvm": Action(_delvm, "delete a VM snapshot from its tag", (_TAG,)),
        "loadvm": Action(_loadvm, "restore a VM snapshot from its tag", (_TAG,)),
        "migrate": Action(
            _migrate,
            "migrate to URI (using -d to not wait for completion; -r to resume a paused migration; -b and -i, block "
            "migration, are refused)",
            (_URI,),
            "dbir",
        ),
        "migrate_cancel": Action(plain(lambda machine: machine.control.cancel()), "cancel the current VM migration"),
        "migrate_continue": Action(
            lambda machine, values: resume_switchover(machine, values["state"]),
            "continue a migration that waits in the given state",
            (Argument("state"),),
        ),
        "migrate_incoming": Action(
            _migrate_incoming, "continue an incoming migration from an -incoming defer", (_URI,)
        ),
        "migrate_pause": Action(
            plain(lambda machine: machine.control.pause()), "pause a migration that is in postcopy"
        ),
        "migrate_recover": Action(
            lambda machine, values: machine.control.recover(values["uri"]),
            "continue a paused incoming postcopy migration through another address",
            (_URI,),
        ),
        "migrate_set_cache_size": Action(
            _set_size(legacy.set_cache_size), "set the size in bytes (default: MiB) of the cache of xbzrle", (_VALUE,)
        ),
        "migrate_set_capability": Action(
            _set_capability,
            "enable or disable a capability of migrations",
            (Argument("capability"), Argument("state", switch)),
        ),
        "migrate_set_downtime": Action(_set_downtime, "set the longest tolerated downtime in seconds", (_VALUE,)),
        "migrate_set_parameter": Action(
            _set_parameter, "set a parameter of migrations", (Argument("parameter"), _VALUE)
        ),
        "migrate_set_speed": Action(
            _set_size(legacy.set_speed), "set the greatest speed in bytes per second (default: MiB)", (_VALUE,)
        ),
        "migrate_start_postcopy": Action(
            plain(lambda machine: machine.control.start_postcopy()),
            "switch the present migration to postcopy; the capability postcopy-ram must be on on both sides",
        ),
        "quit": Action(_quit, "quit the emulator", short="q"),
        "savevm": Action(
            _savevm,
            "save a VM snapshot; one of that tag is replaced, and without a tag a new one is made",
            (Argument("tag", optional=True),),
        ),
        "stop": Action(plain(lambda machine: machine.pause()), "stop emulation", short="s"),
        "system_powerdown": Action(plain(lambda machine: machine.control.emit("POWERDOWN")), "send a power down event"),
        "system_reset": Action(plain(lambda machine: machine.reset()), "reset the system"),
    }
)
"""Every command, in the order of help."""
