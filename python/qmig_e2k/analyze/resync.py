"""Finding the end of a payload that nobody knows the layout of: by the section's footer (spec/stream.md 2.2, 2.3).

The five bytes may also stand inside the payload, so what follows must look like an element; and where it stands twice
nobody can say which one it is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from qmig_e2k.limits import DEFAULT
from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from qmig_e2k.analyze.cursor import StoredFile
    from qmig_e2k.limits import Limits

PLACE = 4096
"""Bytes that a place where the footer seems to stand counts for: what follows it must be looked at, too."""
FIRST_STEP = 1 << 12
STEP = 1 << 20
FOOTER = b"\x7e"
HEADER = 5 + 1 + 255 + 8
COMMANDS = range(1, 12)


def footer(section_id: int) -> bytes:
    """The footer of a section."""
    return FOOTER + struct.pack(">I", section_id)


class Search:
    """Looks for the ends of payloads in one stream."""

    def __init__(self, file: StoredFile, limits: Limits = DEFAULT) -> None:
        """Nothing was looked for yet."""
        self._file = file
        self._limits = limits
        self._left = limits.search

    def find_end(
        self, start: int, section_id: int, live: Collection[int], *, first: bool, before: int | None = None
    ) -> int | None:
        """Offset of the footer of the section whose payload begins at `start`.

        Args:
            start: first byte of the payload.
            section_id: the section's.
            live: ids whose PART and END may follow.
            first: take the first place; for live handlers, whose next sections end alike.
            before: end of the package that the section is in, if it is not over yet.

        Returns:
            The only plausible place, or the first one; None: there is none, or there are several.

        Raises:
            Refusal: `limit-exceeded`: all searches in this stream have read too much.
        """
        found: int | None = None
        end = min(self._file.length, start + self._limits.search_reach)
        if before is not None and before > start:
            end = min(end, before)
        for at in self._places(start, end, footer(section_id)):
            if plausible(self._file, at + 5, live):
                if first:
                    return at
                if found is not None:
                    return None
                found = at
        return found

    def _places(self, start: int, end: int, mark: bytes) -> Iterator[int]:
        # most sections are short, so the first pieces are
        base, step = start, FIRST_STEP
        while base < end:
            piece = self._file.read(base, min(step + len(mark) - 1, end - base))
            self._spend(len(piece), start)
            at = piece.find(mark)
            while at >= 0:
                self._spend(PLACE, start)
                yield base + at
                at = piece.find(mark, at + 1)
            base, step = base + step, min(2 * step, STEP)

    def _spend(self, count: int, start: int) -> None:
        self._left -= count
        if self._left < 0:
            text = f"the ends of unknown sections were looked for in {self._limits.search >> 20} MiB, and no further"
            raise Refusal(text, start, "limit-exceeded")


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
