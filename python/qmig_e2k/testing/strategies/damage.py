"""One thing wrong with valid bytes, as it happens on the wire, in a file, or on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from qmig_e2k.testing.strategies.streams import Stream, streams

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEAR = 40
"""Bytes from where something begins that its header can reach over."""
_EXTREME = [
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff" * 8,
    b"\x80" + bytes(7),
    b"\0\0\0\1" + bytes(4),
]


@st.composite
def damaged(draw: st.DrawFn, data: bytes, near: Sequence[int] = ()) -> bytes:
    """`data` with one byte changed, cut off somewhere, with bytes put in or left out, or with an extreme number in it.

    Args:
        draw: hypothesis' own.
        data: what is whole.
        near: offsets of what matters more: half of the damage is done within the next 40 bytes behind one of them.
    """
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if near:
        behind = draw(st.sampled_from(list(near))) + draw(st.integers(0, _NEAR))
        place = draw(st.sampled_from([place, min(behind, max(len(data) - 1, 0))]))
    how = draw(st.sampled_from(["change", "cut", "insert", "drop", "extreme"]))
    if how == "cut":
        return data[:place]
    if how == "insert":
        return data[:place] + draw(st.binary(min_size=1, max_size=12)) + data[place:]
    if how == "drop":
        return data[:place] + data[place + draw(st.integers(1, 12)) :]
    if how == "extreme":
        number = draw(st.sampled_from(_EXTREME))
        return data[:place] + number + data[place + len(number) :]
    changed = bytearray(data[place : place + 1])
    for at in range(len(changed)):
        changed[at] ^= draw(st.integers(1, 255))
    return data[:place] + changed + data[place + 1 :]


@dataclass(repr=False)
class Damaged:
    """A stream with one thing wrong.

    Attributes:
        stream: the whole one.
        data: its bytes, damaged.
        how: what was done.
    """

    stream: Stream
    data: bytes
    how: str

    @property
    def first(self) -> int:
        """Where it differs first."""
        whole = self.stream.data
        both = zip(whole, self.data, strict=False)
        return next((at for at, (a, b) in enumerate(both) if a != b), min(len(whole), len(self.data)))

    def __repr__(self) -> str:
        """Where it differs, and not all of its pages."""
        at = self.first
        return f"Damaged({self.how}, from {at:#x} on {self.data[at : at + 40].hex()}, {self.stream})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every field


@st.composite
def damaged_streams(draw: st.DrawFn, whole: st.SearchStrategy[Stream] | None = None) -> Damaged:
    """A stream with one thing wrong: bytes as by `damaged`, or an element left out, doubled or moved.

    Args:
        draw: hypothesis' own.
        whole: what is damaged; None: `streams()`.
    """
    stream = draw(streams() if whole is None else whole)
    how = draw(st.sampled_from(["bytes", "bytes", "bytes", "left out", "doubled", "moved"]))
    if how == "bytes":
        return Damaged(stream, draw(damaged(stream.data, stream.offsets)), how)
    elements = list(stream.elements)
    at = draw(st.integers(0, len(elements) - 1))
    element = elements[at]
    if how != "doubled":
        del elements[at]
    if how != "left out":
        elements.insert(draw(st.integers(0, len(elements))), element)
    return Damaged(stream, b"".join(elements), f"element {at} {how}")
