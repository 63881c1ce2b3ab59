"""What JSON descriptions are made of: dicts, lists, strings and numbers, and the special kinds of this file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Members(list[tuple[str, Any]]):
    """A JSON object whose member names may repeat (lists of several elements, spec/stream.md 2.6.1)."""


class ConstantList(list[Any]):
    """A list that never changes and is not to be changed: its text is made once.

    Attributes:
        texts: text by style, filled by whoever writes descriptions.
    """

    __slots__ = ("texts",)

    def __init__(self, values: Iterable[Any]) -> None:
        super().__init__(values)
        self.texts: dict[Any, str] = {}


class ConstantObject(dict[str, Any]):
    """An object that never changes and is not to be changed: its text is made once.

    Attributes:
        texts: as in `ConstantList`.
    """

    __slots__ = ("texts",)

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__(members)
        self.texts: dict[Any, str] = {}


JsonObject = dict[str, Any] | Members
