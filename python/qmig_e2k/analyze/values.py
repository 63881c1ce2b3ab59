"""How values look to people: sizes with a unit, registers and addresses in hex, arrays and buffers folded."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
INLINE = 8
"""Elements or runs of an array that stand in one line."""
ROW = 4
BUFFER_ROW = 32
SIGNED = frozenset(["int8", "int16", "int32", "int64", "int32 equal", "int32 le", "summary"])
_TEXT = re.compile(rb"[\x20-\x7e]{2,}\0+")


def size(count: int) -> str:
    """`24 bytes`, `16 MiB`, `1.6 MiB`."""
    unit, value = 0, float(count)
    while value >= 1024 and unit < len(UNITS) - 1:
        unit, value = unit + 1, value / 1024
    number = f"{value:.1f}".removesuffix(".0")
    return f"{number} {'byte' if count == 1 else UNITS[unit]}"


def text(raw: str) -> str:
    """A name from a stream, safe to print: what is not printable is escaped."""
    if raw.isprintable():
        return raw
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in raw)


def number(value: int, kind: str) -> str:
    """Signed ones as decimal, times with their unit, others as hex from ten on."""
    if kind == "timer":
        return "not armed" if value == -1 else f"{value} ns"
    return str(value) if kind in SIGNED or value < 10 else f"{value:#x}"


def one(value: Any, kind: str) -> str:
    """Any value that is no structure, in one line; long arrays and buffers are cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return number(value, kind)
    if isinstance(value, str):
        return f'"{text(value)}"' if kind in {"capability", "summary"} else buffer(value)[0]
    if isinstance(value, list):
        rows = array(value, kind)
        return rows[0] if len(rows) == 1 else f"{len(value)} elements"
    return text(str(value))


def buffer(raw: str) -> list[str]:
    """Bytes given in hex, folded: in one line, or in rows with their offsets."""
    if not re.fullmatch(r"(?:[0-9a-f]{2})*", raw):
        return [text(raw)]
    data = bytes.fromhex(raw)
    if len(set(data)) == 1:
        return [f"{len(data)} × {data[0]:02x}"]
    if _TEXT.fullmatch(data):
        return [f'"{data.rstrip(bytes(1)).decode()}", {len(data)} bytes']
    if len(data) <= BUFFER_ROW:
        return [raw or "no bytes"]
    return _rows([raw[at : at + 2 * BUFFER_ROW] for at in range(0, len(raw), 2 * BUFFER_ROW)], BUFFER_ROW, len(data))


def array(values: Sequence[Any], kind: str) -> list[str]:
    """Numbers, folded: `256 × 0`, a few runs in one line, or rows with their indices."""
    if not values:
        return ["none"]
    shown = [one(value, kind) for value in values]
    runs = [(word, len(list(group))) for word, group in groupby(shown)]
    if len(runs) <= INLINE:
        return [", ".join(word if count == 1 else f"{count} × {word}" for word, count in runs)]
    width = max(map(len, shown))
    rows = [" ".join(f"{word:>{width}}" for word in shown[at : at + ROW]) for at in range(0, len(shown), ROW)]
    return _rows(rows, ROW, len(shown))


def _rows(rows: list[str], step: int, count: int) -> list[str]:
    """Rows with the index of their first element; of equal ones only the first."""
    width = len(f"{count - 1:x}")
    made: list[str] = []
    at = 0
    for row, group in groupby(rows):
        same = len(list(group))
        made.append(f"[{at:#0{width + 2}x}] {row}")
        if same > 1:
            made.append(f"  {'':{width}}   the same up to {min(at + same * step, count) - 1:#x}")
        at += same * step
    return made
