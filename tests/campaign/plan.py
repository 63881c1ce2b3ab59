"""Which bytes of a mode's wire are cut: every one of its control part, and a draw of those of its pages."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from campaign.cut import Run
from campaign.modes import DISCARD, FIRST_DEVICE, MODES, RAM_END, RAM_PART, Mode, Streams, package_end
from qmig_e2k.testing import Fault, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANDSHAKE = 1400
"""Bytes from the source that TLS needs before the stream begins, or a little more; and of its end, in records."""
CHANNEL = 700
"""Bytes at the beginning of a further connection in which all of its kinds of header come."""
DEVICES_BEGIN = 30
"""Bytes before the name of the first device, back to the last page."""
BACK = 900
"""Bytes of the way back that are all cut; page requests are alike."""


@dataclass(frozen=True)
class Shot:
    """One migration with one fault.

    Attributes:
        mode: name of the mode.
        fault: what happens.
        pages: it is one of those that were drawn.
        again: a migration that fails is tried once more.
        still: the guest does no steps meanwhile, so that the stream ends where the last one did.
    """

    mode: str
    fault: Fault
    pages: bool = False
    again: bool = False
    still: bool = False

    def plain(self) -> dict[str, Any]:
        """For a report, and for `parse`."""
        fault = asdict(self.fault) | {"since": self.fault.since.hex()}
        return asdict(self) | {"fault": fault}

    @staticmethod
    def parse(plain: dict[str, Any]) -> Shot:
        fault = plain["fault"] | {"since": bytes.fromhex(plain["fault"]["since"])}
        return Shot(**plain | {"fault": Fault(**fault)})


class Plan:
    """Everything that is done to one mode.

    Args:
        mode: which.
        seed: of all draws.
        certificates: folder of good ones.
        step: of the control part every so many bytes.
    """

    def __init__(self, mode: Mode, seed: int, certificates: Path | None, step: int = 1) -> None:
        self.mode = mode
        self._draw = random.Random(f"{seed} {mode.name}")
        self._step = step
        self._streams = self._undisturbed(certificates, still=False)
        self._resting = len(self._undisturbed(certificates, still=True)["forward", 0]) if mode.tls else 0
        self.head = self._head()

    def _undisturbed(self, certificates: Path | None, *, still: bool) -> Streams:
        """What passes when nothing happens; the shortest of three, so that most others have all that it has."""
        runs = [Run(self.mode, None, certificates=certificates, still=still)() for _ in range(3)]
        for run in runs:
            assert not run.wrong, run.wrong
        return min((run.streams for run in runs), key=lambda streams: len(streams["forward", 0]))

    def _head(self) -> int:
        stream = self._streams["forward", 0]
        if self.mode.tls:
            return min(HANDSHAKE, len(stream))
        return min(at for at in map(stream.find, (DISCARD, RAM_PART)) if at >= 0)

    def control(self) -> Iterator[Shot]:
        """Those of the control part, in the order of the stream."""
        for at in range(self.head):
            yield from self._shot(at)
        for anchor, before, length in self._tails():
            for at in range(-before, length):
                yield from self._shot(at, since=anchor)
        yield from self._resting_tail()
        for link in range(self.mode.links):
            for at in range(min(len(self._streams["back", link]), BACK)):
                yield from self._shot(at, "back", link)
            if link:
                for at in range(min(len(self._streams["forward", link]), CHANNEL)):
                    yield from self._shot(at, "forward", link)

    def _tails(self) -> Iterator[tuple[bytes, int, int]]:
        """Marks in the control parts behind the head, and how long they are before and after that."""
        stream = self._streams["forward", 0]
        if self.mode.tls:
            return
        if self.mode.postcopy and not self.mode.recover:
            yield DISCARD, len(DISCARD), (package_end(stream) or 0) - stream.find(DISCARD) - len(DISCARD)
        mark, before = (RAM_END, len(RAM_END)) if self.mode.postcopy else (FIRST_DEVICE, DEVICES_BEGIN)
        yield mark, before, len(stream) - stream.find(mark) - len(mark)

    def _resting_tail(self) -> Iterator[Shot]:
        """The end of a stream that cannot be read, of a length that is known."""
        for at in range(max(self._resting - HANDSHAKE, self.head), self._resting):
            yield from self._shot(at, still=True)

    def pages(self) -> Iterator[Shot]:
        """Offsets of the page part, over all links as their pages are; without end."""
        lengths = [len(self._streams["forward", link]) for link in range(self.mode.links)]
        while True:
            link = self._draw.choices(range(len(lengths)), lengths)[0]
            at = self._draw.randrange(self.head if link == 0 else 0, max(lengths[link], self.head + 1))
            yield Shot(self.mode.name, self._fault(at, "forward", link), pages=True, again=self._draw.random() < 0.1)

    def _shot(
        self, at: int, way: Way = "forward", link: int = 0, *, since: bytes = b"", still: bool = False
    ) -> Iterator[Shot]:
        if at % self._step:
            return
        fault = self._fault(at, way, link, since)
        yield Shot(self.mode.name, fault, again=self._draw.random() < 0.1, still=still)

    def _fault(self, at: int, way: Way, link: int, since: bytes = b"") -> Fault:
        kind: Any = self._draw.choice(("cut", "reset"))
        return Fault(kind, at, way, link, since, prompt=self._draw.random() < 0.5)


def mode_of(shot: Shot) -> Mode:
    return MODES[shot.mode]
