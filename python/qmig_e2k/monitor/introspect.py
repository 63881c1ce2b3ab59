"""`query-qmp-schema`: commands, events and their types in the form in which QEMU describes its own.

Types other than the built-in ones have numbers for names, as there: clients follow them from the commands and events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qmig_e2k.monitor import schema
from qmig_e2k.monitor.schema import Array, Enum, Int, Kind, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["describe"]

_BUILT_IN = {"str": "string", "int": "int", "number": "number", "bool": "boolean", "null": "null", "any": "value"}
_SIMPLE = ((schema.STR, "str"), (schema.BOOL, "bool"), (schema.NUMBER, "number"))


class _Described(Protocol):
    """What the tables of commands have in common."""

    @property
    def arguments(self) -> Struct: ...
    @property
    def returns(self) -> Kind: ...
    @property
    def oob(self) -> bool: ...


def describe(commands: Mapping[str, _Described], events: Mapping[str, Struct]) -> list[dict[str, Any]]:
    """Everything about `commands` and `events`, each type once."""
    types = _Types()
    found: list[dict[str, Any]] = []
    for name, command in sorted(commands.items()):
        entry = {
            "name": name,
            "meta-type": "command",
            "arg-type": types.name(command.arguments),
            "ret-type": types.name(command.returns),
        }
        found.append(entry | ({"allow-oob": True} if command.oob else {}))
    for name, data in sorted(events.items()):
        found.append({"name": name, "meta-type": "event", "arg-type": types.name(data)})
    return found + types.entries


class _Types:
    """Types by the numbers that are their names; equal ones share one."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = [
            {"name": name, "meta-type": "builtin", "json-type": json} for name, json in _BUILT_IN.items()
        ]
        self._names: dict[str, str] = {}

    def name(self, kind: Kind) -> str:
        """The name of the type of `kind`, which is described if it is new."""
        for simple, name in _SIMPLE:
            if kind is simple:
                return name
        if isinstance(kind, Int):
            return "int"
        if isinstance(kind, Array):
            item = self.name(kind.item)
            return self._described(f"[{item}]", {"meta-type": "array", "element-type": item})
        if isinstance(kind, Enum):
            members = [{"name": name} for name in kind.names]
            return self._described(None, {"meta-type": "enum", "values": list(kind.names), "members": members})
        if kind is schema.STR_OR_NULL:
            return self._described(None, {"meta-type": "alternate", "members": [{"type": "str"}, {"type": "null"}]})
        if isinstance(kind, Struct):
            always = [{"name": name, "type": self.name(part)} for name, part in kind.members.items()]
            maybe = [{"name": name, "type": self.name(part), "default": None} for name, part in kind.optional.items()]
            return self._described(None, {"meta-type": "object", "members": always + maybe})
        return "any"

    def _described(self, name: str | None, entry: dict[str, Any]) -> str:
        key = repr(entry)
        if key not in self._names:
            self._names[key] = name or str(len(self._names))
            self.entries.append({"name": self._names[key], **entry})
        return self._names[key]
