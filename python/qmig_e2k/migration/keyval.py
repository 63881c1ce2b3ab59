"""QEMU's way to write an object into one word of a command line: `TYPE,name=value,rules.0.match=CN=x,,O=y`.

A comma in a value is doubled; names with dots are objects in objects, and lists where they are counted from 0.
"""

import re
from typing import Any

__all__ = ["parse"]

_PART = re.compile("(?:[^,]|,,)+")


def parse(text: str, implied: str) -> dict[str, Any]:
    """The values of `text` as strings, in dicts and lists.

    Args:
        text: the word.
        implied: what the first value is called if it comes without a name.

    Raises:
        ValueError: it cannot be parsed; says where.
    """
    top: dict[str, Any] = {}
    for place, part in enumerate(_PART.findall(text)):
        name, equals, value = part.replace(",,", ",").partition("=")
        if not equals:
            if place:
                raise ValueError(f"expected NAME=VALUE, not {part!r}")
            name, value = implied, name
        _put(top, name, value)
    return {name: _listed(name, value) for name, value in top.items()}


def _put(top: dict[str, Any], name: str, value: str) -> None:
    *path, last = name.split(".")
    here = top
    for key in path:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise ValueError(f"{name!r}: {key!r} has a value already")  # noqa: TRY004  it is about text
    if not last or last in here:
        raise ValueError(f"{name!r} is given twice" if last else f"{name!r} is no name")
    here[last] = value


def _listed(name: str, value: Any) -> Any:
    """Dicts of which the keys count become lists."""
    if not isinstance(value, dict):
        return value
    parts = {key: _listed(f"{name}.{key}", part) for key, part in value.items()}
    if not any(key.isdecimal() for key in parts):
        return parts
    wanted = [str(number) for number in range(len(parts))]
    if set(parts) != set(wanted):
        raise ValueError(f"{name!r} is a list: its members are {name}.0, {name}.1 and so on, none left out")
    return [parts[key] for key in wanted]
