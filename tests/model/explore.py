"""Everything that can happen, and what must hold in all of it.

Never both: no state has the machine run at the source after it has run at the destination. No deadlock, and
recoverable: from every state that can be reached an end can be reached without another fault, by what the sides do and
an operator may ask for. An end is good if the machine runs on one side with all its memory; it may be stopped on both
only if the source has committed, the destination has never run it, and something has happened to it in between.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.protocol import ACCIDENTS, FAULTS, State

if TYPE_CHECKING:
    from model.protocol import Protocol

__all__ = ["Explored", "ViolationError", "ends_after_cut", "explore", "is_end", "name_of_end"]


class ViolationError(AssertionError):
    """A property does not hold; with the shortest way there."""


@dataclass
class Explored:
    """All states, and how each was first reached."""

    protocol: Protocol
    reached: dict[State, tuple[State, str] | None] = field(default_factory=dict)
    steps: int = 0
    ends: dict[str, State] = field(default_factory=dict)
    """One state for each kind of end."""

    def trace(self, state: State) -> list[str]:
        """The steps of a shortest way to a state."""
        found = []
        while (before := self.reached[state]) is not None:
            state, step = before
            found.append(step)
        return found[::-1]


def name_of_end(protocol: Protocol, now: State) -> str:
    """How it has ended; empty if this is no end."""
    if now.source == "dead":
        return "the source has quit"
    if now.destination == "dead":
        if now.source == "kept":
            return "the destination has quit; runs here"
        return "the destination has quit with the machine" if now.word == "committed" else ""
    if now.source == "kept" and not now.ran_there:
        return "runs here"
    whole = protocol.kind != "postcopy" or now.has == protocol.all_pages
    if now.runs_there and whole:
        if now.source == "done":
            return "runs there"
        if now.source == "unknown" and protocol.kind != "postcopy":
            return "runs there; the source has not heard so: ownership unknown"
    if now.word == "committed" and now.destination == "failed" and not now.ran_there and now.hurt:
        return "stopped on both sides: ownership unknown"
    return ""


def is_end(protocol: Protocol, now: State) -> bool:
    """A good end."""
    return bool(name_of_end(protocol, now))


def _always(protocol: Protocol, now: State) -> str:
    if now.wrong:
        return now.wrong
    if now.runs_here and now.ran_there:
        return "never both: the machine runs at the source after it ran at the destination"
    just = protocol.kind != "one-way" and now.source == "committed"
    if just and not now.has_state and now.destination != "dead":
        return "the source has committed while the destination did not have the machine's state"
    if now.source == "done" and now.destination == "failed" and not now.hurt:
        return "the machine is lost without a cause"
    return ""


def explore(protocol: Protocol, most: int = 2_000_000) -> Explored:
    """Try everything.

    Args:
        protocol: whose steps.
        most: states; more are an error of the model.

    Raises:
        ViolationError: a property does not hold; its text has the shortest trace.
    """
    found = Explored(protocol)
    start = State()
    found.reached[start] = None
    waiting = deque([start])
    backwards: dict[State, list[State]] = {}
    ends: list[State] = []
    while waiting:
        now = waiting.popleft()
        if wrong := _always(protocol, now):
            raise ViolationError(_text(found, now, wrong))
        if end := name_of_end(protocol, now):
            found.ends.setdefault(end, now)
            ends.append(now)
        for step, after in protocol.steps(now):
            found.steps += 1
            if step not in FAULTS:
                backwards.setdefault(after, []).append(now)
            if after not in found.reached:
                found.reached[after] = (now, step)
                waiting.append(after)
        assert len(found.reached) <= most, "the model has more states than was thought"
    hopeful = set(ends)
    while ends:
        for before in backwards.get(ends.pop(), ()):
            if before not in hopeful:
                hopeful.add(before)
                ends.append(before)
    if stuck := next((state for state in found.reached if state not in hopeful), None):
        raise ViolationError(_text(found, stuck, "no good end can be reached from here any more"))
    return found


def _text(found: Explored, now: State, what: str) -> str:
    steps = "\n".join(f"  {number:2} {step}" for number, step in enumerate(found.trace(now), 1))
    return f"{what}\n{steps}\n  {now}"


def ends_after_cut(protocol: Protocol, kind: str, way: str) -> set[str]:
    """How a migration may end to which nothing happens but one cut, just before the first message of a kind arrives.

    Args:
        protocol: whose steps; without recoveries.
        kind: of the message; it is under way, and never arrives.
        way: `forward` or `back`.
    """
    waiting, reached, ends = deque([State()]), {State()}, set()
    while waiting:
        now = waiting.popleft()
        if end := name_of_end(protocol, now):
            ends.add(end)
        for step, after in protocol.steps(now):
            if step in ACCIDENTS or (step in FAULTS and (now.hurt or not _cuts_before(now, after, kind, way))):
                continue
            arrived = not now.hurt and after.connected and len(getattr(after, way)) < len(getattr(now, way))
            if (arrived and getattr(now, way)[0][0] == kind) or after in reached:
                continue
            reached.add(after)
            waiting.append(after)
    return ends


def _cuts_before(now: State, after: State, kind: str, way: str) -> bool:
    """Of what is under way, just what comes before the message passes, and nothing else is lost."""
    kinds = [message[0] for message in getattr(now, way)]
    if kind not in kinds or after.source == "dead" or after.destination == "dead":
        return False
    passes = {name: len(getattr(now, name)) for name in ("forward", "second", "back")} | {way: kinds.index(kind)}
    return all(len(getattr(after, name)) == length for name, length in passes.items())
