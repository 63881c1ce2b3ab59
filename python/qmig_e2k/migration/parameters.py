"""The parameters of a migration: types, defaults, ranges, and the checks between them.

A change is merged into a copy, the copy is checked as a whole, and only then is it applied (spec/control-plane 6).
Types are strict: a bool is no integer, an integer with a fraction is none either.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from qmig_e2k.errors import migration_error
from qmig_e2k.migration.capabilities import NO_DIRTY_RING, NO_STORAGE

__all__ = [
    "ALIASES",
    "NOBODY",
    "PARAMETERS",
    "REFUSED",
    "Parameter",
    "Parameters",
    "Value",
    "canonical",
    "parse_size",
    "parse_switch",
    "parse_value",
]

Value = bool | int | str
"""What a parameter can hold; sizes are bytes, rates bytes per second, times milliseconds."""

_U64 = 2**64 - 1


class _Nobody(str):
    """An empty text that was asked for."""

    __slots__ = ()


NOBODY = _Nobody()
"""`tls-authz` once it was set to `""`: as in QEMU nobody may come in then. Never set, or null, it lets everybody in."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        default: its value before anything was set; its type is the parameter's type.
        low: least allowed integer.
        high: greatest allowed integer.
        choices: the allowed strings; empty means any.
        unit: what `info migrate_parameters` prints after the value.
        shown: it has a line there; what QEMU 7.2 has not there has none.
        size: an integer, mostly of bytes, for which text may use the suffixes K M G T P E.
        nullable: JSON null is accepted and means the default.
        refused: why any value but the default is refused; None: it is not.
    """

    default: Value
    low: int = 0
    high: int = _U64
    choices: tuple[str, ...] = ()
    unit: str = ""
    shown: bool = True
    size: bool = False
    nullable: bool = False
    refused: str | None = None

    def fits(self, value: object) -> bool:
        """True if `value` has this parameter's type."""
        return type(value) is type(self.default)

    @property
    def wants(self) -> str:
        """The type and range in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "a boolean"
        if isinstance(self.default, int):
            unit = {"": "", "ms": " (milliseconds)"}.get(self.unit, f" ({self.unit})")
            return f"an integer from {self.low} to {self.high}{unit}"
        return "a string"


def _percent(default: int, low: int = 1, high: int = 99) -> Parameter:
    return Parameter(default, low, high)


_NO_CPR = "RAM is always sent, never left for the next process; migrate to a file, or save a snapshot"

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "announce-initial": Parameter(50, 0, 100_000, size=True, unit="ms"),
        "announce-max": Parameter(550, 0, 100_000, size=True, unit="ms"),
        "announce-rounds": Parameter(5, 0, 1000, size=True),
        "announce-step": Parameter(100, 1, 10_000, size=True, unit="ms"),
        "compress-level": Parameter(1, 0, 9),
        "compress-threads": Parameter(8, 1, 255),
        "compress-wait-thread": Parameter(default=True),
        "decompress-threads": Parameter(2, 1, 255),
        "throttle-trigger-threshold": _percent(50, high=100),
        "cpu-throttle-initial": _percent(20),
        "cpu-throttle-increment": _percent(10),
        "cpu-throttle-tailslow": Parameter(default=False),
        "max-cpu-throttle": _percent(99),
        "tls-creds": Parameter("", nullable=True),
        "tls-hostname": Parameter("", nullable=True),
        "max-bandwidth": Parameter(134_217_728, size=True, unit="bytes/second"),
        "avail-switchover-bandwidth": Parameter(0, size=True, unit="bytes/second", shown=False),
        "downtime-limit": Parameter(300, 0, 2_000_000, unit="ms"),
        "x-checkpoint-delay": Parameter(20_000, 0, 2**32 - 1, unit="ms"),
        "block-incremental": Parameter(default=False),
        "multifd-channels": Parameter(2, 1, 255),
        "multifd-compression": Parameter("none", choices=("none", "zlib", "zstd")),
        "multifd-zlib-level": Parameter(1, 0, 9, shown=False),
        "multifd-zstd-level": Parameter(1, 0, 20, shown=False),
        "zero-page-detection": Parameter("multifd", choices=("none", "legacy", "multifd"), shown=False),
        "xbzrle-cache-size": Parameter(67_108_864, 4096, 2**63, size=True, unit="bytes"),
        "max-postcopy-bandwidth": Parameter(0, size=True),
        "tls-authz": Parameter("", nullable=True),
        "mode": Parameter("normal", choices=("normal", "cpr-reboot", "cpr-transfer"), shown=False, refused=_NO_CPR),
        "x-deadline": Parameter(0, 0, 2**32 - 1, unit="ms", shown=False),
        "x-deadline-action": Parameter("cancel", choices=("cancel", "postcopy", "force"), shown=False),
        "x-postcopy-keep-runstate": Parameter(default=False, shown=False),
    }
)
"""Every parameter, in the order of `info migrate_parameters`."""

ALIASES: Mapping[str, str] = MappingProxyType({"x-multifd-channels": "multifd-channels"})
"""Spellings of earlier QEMU versions."""


REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "block-bitmap-mapping": NO_STORAGE,
        "vcpu-dirty-limit": NO_DIRTY_RING,
        "x-vcpu-dirty-limit-period": NO_DIRTY_RING,
    }
)
"""QEMU's parameters that this machine has no use for, and why; `query-migrate-parameters` does not show them."""


def canonical(name: str) -> str:
    """The present name of parameter `name`.

    Raises MigrationError: `invalid-argument` if there is none, `unsupported` for one that only QEMU has.
    """
    name = ALIASES.get(name, name)
    if name in REFUSED:
        raise migration_error("unsupported", f"parameter {name!r} cannot be set: {REFUSED[name]}")
    if name not in PARAMETERS:
        raise migration_error("invalid-argument", f"there is no migration parameter {name!r}")
    return name


class Parameters:
    """The parameters of one machine. Not locked: the machine's owner serialises changes."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {name: parameter.default for name, parameter in PARAMETERS.items()}

    def __getitem__(self, name: str) -> Value:
        return self._values[canonical(name)]

    def values(self) -> dict[str, Value]:
        """A copy of all parameters by name."""
        return dict(self._values)

    def checked(self, changes: Mapping[str, object]) -> dict[str, Value]:
        """All parameters as they would be after `changes`.

        Raises:
            MigrationError: `invalid-argument` for an unknown name, a wrong type or a value out of range; `unsupported`
                for one that cannot be had.
        """
        merged = dict(self._values)
        for given, value in changes.items():
            name = canonical(given)
            parameter = PARAMETERS[name]
            if value is None and parameter.nullable:
                merged[name] = parameter.default
                continue
            if not isinstance(value, (bool, int, str)) or not parameter.fits(value):
                raise migration_error("invalid-argument", f"parameter {name!r} must be {parameter.wants}")
            merged[name] = NOBODY if name == "tls-authz" and value == "" else value
        for name, value in merged.items():
            _check(name, value)
        if int(merged["max-cpu-throttle"]) < int(merged["cpu-throttle-initial"]):
            raise migration_error(
                "invalid-argument", "parameter 'max-cpu-throttle' must not be below 'cpu-throttle-initial'"
            )
        return merged

    def update(self, changes: Mapping[str, object]) -> None:
        """Apply `changes` as a whole, or raise as `checked` does and change nothing."""
        self._values = self.checked(changes)


def _check(name: str, value: Value) -> None:
    parameter = PARAMETERS[name]
    if parameter.refused is not None and value != parameter.default:
        raise migration_error("unsupported", f"parameter {name!r} cannot be set: {parameter.refused}")
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        ok = parameter.low <= value <= parameter.high
        if name == "xbzrle-cache-size":
            ok = ok and value & (value - 1) == 0
    else:
        ok = not parameter.choices or value in parameter.choices
    if not ok:
        power = " and a power of two" if name == "xbzrle-cache-size" else ""
        raise migration_error("invalid-argument", f"parameter {name!r} must be {parameter.wants}{power}")


_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)([BKMGTPE]?)", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})")
_SWITCH = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}


def parse_switch(text: str) -> bool | None:
    """What `on`, `off` and QEMU's other words for them say; None for any other text."""
    return _SWITCH.get(text)


def parse_value(name: str, text: str, unit: str = "B") -> Value:
    """A parameter's value from text, which the human monitor and the command line have; its range is not looked at.

    Args:
        name: the parameter, by its present name.
        text: a word; integers decimal or with 0x.
        unit: in what a bare number counts if the parameter is a size, as for `parse_size`.

    Raises:
        MigrationError: `invalid-argument`.
    """
    parameter = PARAMETERS[name]
    if isinstance(parameter.default, str):
        return text
    value: Value | None = None
    if isinstance(parameter.default, bool):
        value = parse_switch(text)
    elif parameter.size:
        try:
            value = parse_size(text, unit)
        except ValueError as error:
            raise migration_error("invalid-argument", f"parameter {name!r}: {error}") from None
    elif _INTEGER.fullmatch(text):
        value = int(text, 16 if "x" in text.lower() else 10)
    if value is None:
        wants = "on or off" if isinstance(parameter.default, bool) else parameter.wants
        raise migration_error("invalid-argument", f"parameter {name!r} must be {wants}, not {text[:40]!r}")
    return value


def parse_size(text: str, unit: str = "B") -> int:
    """Bytes from text such as `128M` or `1.5G`; a bare number counts in `unit` (a suffix letter).

    Raises:
        ValueError: if `text` is no size, or beyond 64 bits.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no size: give a number with at most one of the suffixes K M G T P E")
    exact = Fraction(match[1]) * 1024 ** "BKMGTPE".index((match[2] or unit).upper())
    if (match[2] or unit).upper() == "B" and exact.denominator > 1:
        raise ValueError(f"{text!r} is no size: a byte has no parts")
    value = int(exact)
    if value > _U64:
        raise ValueError(f"{text!r} is beyond 64 bits")
    return value
