"""Text of the JSON description, byte for byte as each QEMU generation writes it (spec/stream.md 2.6.2)."""

from __future__ import annotations

import re
from typing import Any

from qmig_e2k.vmstate import Members

_SPECIAL = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE = re.compile(r'["\\\x00-\x1f\x7f-\U0010ffff]')


def description_text(document: Any, *, loose: bool) -> bytes:
    """The text of a document of dicts, `Members`, lists, strings, integers and booleans.

    Args:
        document: what to write.
        loose: the style of 2.9, with a space inside brackets and before colons and no escapes; else that of 7.2.
    """
    parts: list[str] = []
    (_Loose if loose else _Tight)().put(document, parts)
    return "".join(parts).encode("utf-8", "surrogateescape")


class _Tight:
    """7.2 and later."""

    object_marks = ("{", "}")
    array_marks = ("[", "]")
    colon = ": "

    def put(self, value: Any, parts: list[str]) -> None:
        if isinstance(value, str):
            parts.append(self.quote(value))
        elif isinstance(value, dict | Members):
            self._members(list(value.items()) if isinstance(value, dict) else value, parts)
        elif isinstance(value, list | tuple):
            opening, closing = self.array_marks
            parts.append(opening)
            for index, element in enumerate(value):
                if index:
                    parts.append(", ")
                self.put(element, parts)
            parts.append(closing)
        elif isinstance(value, bool):
            parts.append("true" if value else "false")
        elif isinstance(value, int):
            parts.append(str(value))
        else:
            raise TypeError(f"a description holds no {type(value).__name__}")

    def _members(self, members: list[tuple[str, Any]], parts: list[str]) -> None:
        opening, closing = self.object_marks
        parts.append(opening)
        for index, (name, value) in enumerate(members):
            parts.append(f"{', ' if index else ''}{self.quote(name)}{self.colon}")
            self.put(value, parts)
        parts.append(closing)

    def quote(self, text: str) -> str:
        return f'"{_ESCAPE.sub(_escape, text)}"'


class _Loose(_Tight):
    """2.9 and earlier."""

    object_marks = ("{ ", " }")
    array_marks = ("[ ", " ]")
    colon = " : "

    def quote(self, text: str) -> str:
        return f'"{text}"'


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if char in _SPECIAL:
        return _SPECIAL[char]
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        # a lone surrogate stands for a byte that was no UTF-8
        return "\\uFFFD"
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 | code >> 10:04X}\\u{0xDC00 | code & 0x3FF:04X}"
    return f"\\u{code:04X}"
