"""What the answer of `query-qmp-schema` says, followed from a command or event down to plain Python values."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]
SIMPLE = {"int": "int", "number": "number", "str": "str", "bool": "bool", "null": "null", "any": "any"}


class Schema:
    """The entries by name. A type becomes a word, a list of one, a set of an enum's names, or a dict of an object's
    members, in which optional ones end with `?`."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = {entry["name"]: entry for entry in entries}
        assert len(self.entries) == len(entries), "one entry for each name"

    def names(self, meta_type: str) -> set[str]:
        """Names of all entries of that kind."""
        return {name for name, entry in self.entries.items() if entry["meta-type"] == meta_type}

    def arguments(self, name: str) -> dict[str, Any]:
        """The arguments of a command, the data of an event."""
        found = self.type(self.entries[name]["arg-type"])
        assert isinstance(found, dict)
        return found

    def answer(self, command: str) -> Any:
        """The type of a command's answer."""
        return self.type(self.entries[command]["ret-type"])

    def type(self, name: str, above: tuple[str, ...] = ()) -> Any:
        """The type of that name; one that holds itself ends in its name."""
        if name in SIMPLE or name in above:
            return name
        entry, above = self.entries[name], (*above, name)
        if entry["meta-type"] == "array":
            return [self.type(entry["element-type"], above)]
        if entry["meta-type"] == "enum":
            return frozenset(entry["values"])
        if entry["meta-type"] == "alternate":
            return frozenset(str(self.type(member["type"], above)) for member in entry["members"])
        members = list(entry["members"])
        for variant in entry.get("variants", []):
            members += [{**member, "default": None} for member in self.entries[variant["type"]]["members"]]
        return {
            member["name"] + ("?" if "default" in member else ""): self.type(member["type"], above)
            for member in members
        }
