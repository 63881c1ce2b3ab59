"""Text of the JSON description, byte for byte as each QEMU generation writes it (spec/stream.md 2.6.2).

It is made during the downtime, so what never changes is put in words once and remembered.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from qmig_e2k.vmstate import Members
from qmig_e2k.vmstate.json import ConstantList, ConstantObject

_SPECIAL = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE = re.compile(r'["\\\x00-\x1f\x7f-\U0010ffff]')


def description_text(document: Any, *, loose: bool) -> bytes:
    """The text of a document of dicts, `Members`, lists, strings, integers and booleans.

    Args:
        document: what to write.
        loose: the style of 2.9, with a space inside brackets and before colons and no escapes; else that of 7.2.
    """
    return (_LOOSE if loose else _TIGHT).text(document).encode("utf-8", "surrogateescape")


class _Tight:
    """7.2 and later."""

    object_marks = ("{", "}")
    array_marks = ("[", "]")
    colon = ": "

    def text(self, value: Any) -> str:
        """The text of any part."""
        if isinstance(value, str):
            return self.quote(value)
        if isinstance(value, ConstantObject | ConstantList):
            text = value.texts.get(self)
            if text is None:
                text = value.texts[self] = self._composed(value)
            return text
        return self._composed(value)

    def _composed(self, value: Any) -> str:
        if isinstance(value, dict | Members):
            opening, closing = self.object_marks
            members = value.items() if isinstance(value, dict) else value
            inner = ", ".join([f"{self.quote(name)}{self.colon}{self.text(member)}" for name, member in members])
        elif isinstance(value, list | tuple):
            opening, closing = self.array_marks
            inner = ", ".join([self.text(element) for element in value])
        elif isinstance(value, bool):
            return "true" if value else "false"
        elif isinstance(value, int):
            return str(value)
        else:
            raise TypeError(f"a description holds no {type(value).__name__}")
        return f"{opening}{inner}{closing}"

    def quote(self, text: str) -> str:
        """A string."""
        return _escaped(text)


class _Loose(_Tight):
    """2.9 and earlier."""

    object_marks = ("{ ", " }")
    array_marks = ("[ ", " ]")
    colon = " : "

    def quote(self, text: str) -> str:
        return f'"{text}"'


_TIGHT, _LOOSE = _Tight(), _Loose()


@lru_cache(4096)
def _escaped(text: str) -> str:
    return f'"{_ESCAPE.sub(_escape, text)}"'


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
