"""The ways to migrate that are cut, and where in each the wire holds what: its control part and its pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qmig_e2k.testing import Way

Streams = dict[tuple[Way, int], bytes]
"""What passed one way of each link."""

RAM_END = b"\x03\x00\x00\x00\x02"
"""Type and id of the last RAM section."""
RAM_PART = b"\x02\x00\x00\x00\x02"
FIRST_DEVICE = b"\x05timer"
PACKAGE = b"\x08\x00\x07\x00\x04"
DISCARD = b"\x08\x00\x06"
FENCE = b"\x08\x00\x02\x00\x04"
FENCE_LENGTH = 9
"""The PING behind the devices; what follows is the byte that hands over."""


@dataclass(frozen=True)
class Mode:
    """One way to migrate.

    Attributes:
        name: in reports.
        capabilities: on both sides, besides `postcopy_ram`.
        parameters: of both sides.
        postcopy: it switches at once.
        recover: the wire that is cut is that of a recovery.
        tls: over TLS, where nothing can be seen from outside.
        links: connections that are cut.
    """

    name: str
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    postcopy: bool = False
    recover: bool = False
    tls: bool = False
    links: int = 1

    @property
    def anchors(self) -> tuple[bytes, ...]:
        """What the control parts behind the head begin with."""
        if self.tls:
            return ()
        if self.recover:
            return (RAM_END,)
        return (DISCARD, RAM_END) if self.postcopy else (RAM_END,)


TRICKLE = {"max_bandwidth": 64 << 10, "downtime_limit": 0, "max_postcopy_bandwidth": 64 << 10}
"""So that it is moved by postcopy, and its guest asks for what it needs."""
ROUNDS = {"max_bandwidth": 24 << 20, "downtime_limit": 1}
"""So that memory travels more than once."""

MODES = {
    mode.name: mode
    for mode in (
        Mode("precopy", parameters=ROUNDS),
        Mode("xbzrle", ("xbzrle",), ROUNDS),
        Mode("compress", ("compress",), {"compress_threads": 2, "decompress_threads": 2}),
        Mode("multifd", ("multifd",), {"multifd_channels": 2}, links=3),
        Mode("tls", tls=True),
        Mode("postcopy", parameters=TRICKLE, postcopy=True),
        Mode("preempt", ("postcopy_preempt",), TRICKLE, postcopy=True, links=2),
        Mode("recover", parameters=TRICKLE, postcopy=True, recover=True),
        Mode("recover-preempt", ("postcopy_preempt",), TRICKLE, postcopy=True, recover=True, links=2),
        Mode("tls-postcopy", parameters=TRICKLE, postcopy=True, tls=True),
    )
}

BEFORE = ("head", "channel", "memory", "switch", "devices")
"""Phases before the commit."""
PHASES = (*BEFORE, "hand-over", "postcopy", "end")


def phase(mode: Mode, streams: Streams, link: int, head: int) -> str:
    """How far the stream had come when its wire was cut.

    Args:
        mode: how the machine was moved; not by TLS, of which nothing can be seen.
        streams: what passed.
        link: which connection the cut was for.
        head: length of the mode's head.
    """
    if link and not mode.postcopy:
        return "channel"
    stream = streams["forward", 0]
    if len(stream) < head:
        return "head"
    if mode.recover:
        return "end" if RAM_END in stream else "postcopy"
    if mode.postcopy:
        end = package_end(stream)
        if end is None or len(stream) < end:
            return "switch" if DISCARD in stream else "memory"
        return "end" if RAM_END in stream[end:] else "postcopy"
    begin = stream.find(FIRST_DEVICE)
    if begin < 0:
        return "devices" if RAM_END in stream else "memory"
    at = stream.find(FENCE, begin)
    return "end" if 0 <= at < len(stream) - FENCE_LENGTH else "devices"


def package_end(stream: bytes) -> int | None:
    """Where the package of device state ends; None if not even its length is there."""
    begin = stream.find(PACKAGE)
    at = begin + len(PACKAGE)
    return None if begin < 0 or len(stream) < at + 4 else at + 4 + int.from_bytes(stream[at : at + 4])
