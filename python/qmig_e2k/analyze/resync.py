"""Finding the end of a payload that nobody knows the layout of: by the section's footer (spec/stream.md 2.2, 2.3).

The five bytes may also stand inside the payload, so what follows must look like an element; and where it stands twice
nobody can say which one it is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from qmig_e2k.analyze.cursor import StoredFile

REACH = 64 << 20
"""Bytes behind the header in which a footer is looked for."""
STEP = 1 << 20
FOOTER = b"\x7e"
HEADER = 5 + 1 + 255 + 8
COMMANDS = range(1, 12)


def footer(section_id: int) -> bytes:
    """The footer of a section."""
    return FOOTER + struct.pack(">I", section_id)


def find_end(file: StoredFile, start: int, section_id: int, live: Collection[int], *, first: bool) -> int | None:
    """Offset of the footer of the section whose payload begins at `start`.

    Args:
        file: the stream.
        start: first byte of the payload.
        section_id: the section's.
        live: ids whose PART and END may follow.
        first: take the first place; for live handlers, whose next sections end alike.

    Returns:
        The only plausible place, or the first one; None: there is none, or there are several.
    """
    found: int | None = None
    for at in _places(file, start, footer(section_id)):
        if plausible(file, at + 5, live):
            if first:
                return at
            if found is not None:
                return None
            found = at
    return found


def _places(file: StoredFile, start: int, mark: bytes) -> Iterator[int]:
    for base in range(start, min(file.length, start + REACH), STEP):
        piece = file.read(base, STEP + len(mark) - 1)
        at = piece.find(mark)
        while at >= 0:
            yield base + at
            at = piece.find(mark, at + 1)


def plausible(file: StoredFile, at: int, live: Collection[int]) -> bool:
    """Whether an element, or the end of the file, may stand at `at`."""
    head = file.read(at, HEADER)
    if not head:
        return True
    kind, rest = head[0], head[1:]
    if kind == 0x00:
        return not rest or rest[0] == 0x06
    if kind in {0x01, 0x04}:
        # the file may end inside the name
        return len(rest) < 5 or (rest[4] > 0 and all(0x20 < byte < 0x7F for byte in rest[5 : 5 + rest[4]]))
    if len(rest) < 4:
        return kind in {0x02, 0x03, 0x08}
    if kind in {0x02, 0x03}:
        return int.from_bytes(rest[:4], "big") in live
    return kind == 0x08 and int.from_bytes(rest[:2], "big") in COMMANDS
