"""Where the oracle's bytes come from, and how it says no (spec/stream.md 0.2, 0.3)."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818 - the answer of a reader, no accident
    """The stream is refused.

    Attributes:
        kind: name of the cause, from docs/reference/errors.md.
        offset: of the first byte of the refused element or field.
        channel: number of the file it stands in: 0 the main channel.
    """

    def __init__(self, kind: str, offset: int, channel: int = 0) -> None:
        super().__init__(f"{kind} at {offset:#x}" + (f" of channel {channel - 1}" if channel else ""))
        self.kind, self.offset, self.channel = kind, offset, channel


class Source:
    """A file read from begin to end. Every read of a field takes all of it or refuses it at its first byte."""

    def __init__(self, data: bytes, channel: int = 0) -> None:
        self.data, self.channel, self.at = data, channel, 0

    def refused(self, kind: str, offset: int) -> Refused:
        return Refused(kind, offset, self.channel)

    def left(self) -> int:
        return max(len(self.data) - self.at, 0)

    def peek(self, length: int) -> bytes:
        """The next bytes, fewer at the end."""
        return self.data[self.at : self.at + length]

    def raw(self, length: int) -> bytes:
        if length > self.left():
            raise self.refused("truncated", self.at)
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        """Unsigned, big-endian."""
        return int.from_bytes(self.raw(length), "big")

    def text(self) -> bytes:
        """A counted string; length and bytes are one field."""
        begin = self.at
        length = self.number(1)
        if length > self.left():
            raise self.refused("truncated", begin)
        return self.raw(length)
