"""Shapes of QMP values, and the strict check of a command's arguments against them.

The check happens before any side effect: a wrong JSON type, a missing or unknown member, an unknown enum value and an
integer out of range are all
refused (spec/control-plane 7.2). Names are case sensitive and `-` is not `_`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "ANYTHING",
    "BOOL",
    "INT",
    "NO_ARGUMENTS",
    "NUMBER",
    "SIZE",
    "STR",
    "STR_OR_NULL",
    "Array",
    "CommandError",
    "Enum",
    "Int",
    "Kind",
    "Struct",
]


class CommandError(Exception):
    """A command that is answered with an error.

    Attributes:
        error_class: QMP error class.
    """

    def __init__(self, text: str, error_class: str = "GenericError") -> None:
        super().__init__(text)
        self.error_class = error_class


class Kind:
    """One kind of value. `check` raises CommandError that names the parameter."""

    wants = "any value"

    def accepts(self, value: object) -> bool:  # noqa: ARG002  any value
        """True if `value` has this kind; kinds with parts override `check` instead."""
        return True

    def check(self, value: object, name: str) -> None:
        """Raise CommandError unless `value`, the parameter `name`, has this kind."""
        if not self.accepts(value):
            raise CommandError(f"parameter '{name}' expects {self.wants}")


class _Str(Kind):
    wants = "a string"

    def accepts(self, value: object) -> bool:
        return isinstance(value, str)


class _StrOrNull(Kind):
    wants = "a string or null"

    def accepts(self, value: object) -> bool:
        return value is None or isinstance(value, str)


class _Bool(Kind):
    wants = "a boolean"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)


class _Number(Kind):
    wants = "a number"

    def accepts(self, value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Int(Kind):
    """An integer from `low` to `high`."""

    low: int = -(2**63)
    high: int = 2**63 - 1

    @property
    def wants(self) -> str:  # type: ignore[override]
        """The range in words."""
        return f"an integer from {self.low} to {self.high}"

    def accepts(self, value: object) -> bool:
        """True for an integer in range; a bool is none."""
        return type(value) is int and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Enum(Kind):
    """One of `names`."""

    names: tuple[str, ...]

    def check(self, value: object, name: str) -> None:
        """Raise CommandError unless `value` is one of the names."""
        STR.check(value, name)
        if value not in self.names:
            raise CommandError(f"parameter '{name}' does not accept value '{value}'")


@dataclass(frozen=True, slots=True)
class Array(Kind):
    """A list of `item`."""

    item: Kind

    def check(self, value: object, name: str) -> None:
        """Raise CommandError unless `value` is a list of items."""
        if not isinstance(value, list):
            raise CommandError(f"parameter '{name}' expects a list")
        for k, item in enumerate(value):
            self.item.check(item, f"{name}[{k}]")


@dataclass(frozen=True, slots=True)
class Struct(Kind):
    """An object with these members; those in `optional` may be absent, others only present if `anything` may."""

    members: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    anything: bool = False

    def check(self, value: object, name: str = "") -> None:
        """Raise CommandError unless `value` is an object of this shape."""
        if not isinstance(value, dict):
            raise CommandError(f"parameter '{name}' expects an object" if name else "arguments must be an object")
        prefix = f"{name}." if name else ""
        for member in value:
            if not self.anything and member not in self.members and member not in self.optional:
                raise CommandError(f"parameter '{prefix}{member}' is unexpected")
        for member, kind in self.members.items():
            if member not in value:
                raise CommandError(f"parameter '{prefix}{member}' is missing")
            kind.check(value[member], prefix + member)
        for member, kind in self.optional.items():
            if member in value:
                kind.check(value[member], prefix + member)


STR: Kind = _Str()
STR_OR_NULL: Kind = _StrOrNull()
BOOL: Kind = _Bool()
NUMBER: Kind = _Number()
INT: Kind = Int()
SIZE: Kind = Int(0, 2**64 - 1)
NO_ARGUMENTS = Struct({})
ANYTHING = Struct({}, anything=True)
