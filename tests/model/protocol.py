"""Source, destination and what is between them: every step that one of them may take.

One connection carries the stream (`forward`) and the return path (`back`); with preempt a second one brings the pages
that were asked for. Messages are lost by a cut only: then each way loses any tail of what is under way, and what is
sent later is lost, too. When a side notices that is its own affair. Deadlines, errors of an emulator and commands of
an operator are steps that may be taken or not.

A guard is a check that the code makes. `Protocol(without={...})` leaves some out: a property must then fail, or nobody
needs the guard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

Message = tuple[str, int]
"""Kind and number: of a PING, of a page, or the set of pages that a bitmap tells."""

GUARDS = {
    "cancel-asks-the-word": "a cancel, or a destination's refusal, does not touch a machine that is committed",
    "commit-asks-the-word": "the commit is a compare-and-swap: a cancel that came first keeps the machine",
    "fence": "the commit waits for the PONG that says that the destination has everything",
    "run-is-withheld": "the last bytes of the package (RUN) are sent after the commit",
    "stays-stopped": "after the commit a failure does not start the machine again",
    "settle": "the destination takes no cancel once it has answered the fence",
    "run-asks": "RUN is not obeyed after the listen thread has given the machine back",
    "settled": "no SHUT 2 from whoever has started the machine",
    "pause": "a connection lost after the commit is a pause, not a failure",
    "bitmap": "after a pause the source sends what the destination says that it lacks",
    "quiet": "both receivers are quiet before the bitmap is told",
    "whole": "SHUT 0 is said when every page is there, not at the end of the stream",
    "witness": "a destination that is complete still answers a source that has not heard so",
}
FAULTS = {"cut", "source quits", "destination quits"}
"""Steps that nobody has to take for an end to be reached."""
ACCIDENTS = {
    "cancel",
    "source fails",
    "destination is cancelled",
    "destination cannot load",
    "destination cannot start",
    "listen thread fails",
}
"""What does not happen if nobody wills it and no emulator fails; after a cut the sides fail for that."""


class State(NamedTuple):
    """Both sides and the wires; each field a small value, so that states can be compared and counted."""

    source: str = "running"
    """running, stopped, sent, answered, committed, wait, pages, ended, paused, asking, resuming; and how it ends: kept
    (the machine runs on here), unknown (stopped, ownership unknown), done, dead."""
    word: str = "mine"
    """mine, committed, withdrawn."""
    cancelled: bool = False
    """A cancel was accepted: the source is bound to run the machine."""
    todo: int = 0
    """Set of pages that the source has yet to send."""
    connected: bool = True
    forward: tuple[Message, ...] = ()
    second: tuple[Message, ...] = ()
    back: tuple[Message, ...] = ()
    destination: str = "loading"
    """loading, ready (has answered the fence), listening, may-run (RUN obeyed), live, late (complete); failed, dead."""
    link: str = "up"
    """The destination's view in postcopy: up, paused, waiting (listens for the source), recover."""
    has_state: bool = False
    """All device state is at the destination."""
    given_back: bool = False
    """The destination has said, or meant to say, that it will not run the machine."""
    has: int = 0
    """Set of pages that the destination has."""
    asked: int = 0
    """Set of pages that were asked for over this connection."""
    ended: bool = False
    """The destination has read the end of the stream."""
    ran_there: bool = False
    hurt: bool = False
    """A cut, a process that ended, a machine that could not be loaded or started: then it may have to stay stopped."""
    wrong: str = ""
    """What no order of events may lead to, and has."""

    @property
    def runs_here(self) -> bool:
        """The source's machine runs."""
        return self.source in {"running", "kept"}

    @property
    def runs_there(self) -> bool:
        """The destination's does."""
        return self.destination in {"live", "late"} or (self.destination == "ready" and self.ran_there)


@dataclass(frozen=True)
class Protocol:
    """The steps of one sort of migration: `precopy`, `one-way` (no return path) or `postcopy`, of so many pages."""

    kind: str
    pages: int = 1
    preempt: bool = False
    without: frozenset[str] = frozenset()

    @property
    def all_pages(self) -> int:
        """The set of all pages."""
        return (1 << self.pages) - 1

    def steps(self, now: State) -> Iterator[tuple[str, State]]:
        """Every step that may come next, with its name."""
        if now.wrong:
            return
        yield from self._faults(now)
        yield from self._source(now)
        if self.kind == "postcopy":
            yield from self._source_late(now)
            yield from self._destination_postcopy(now)
        else:
            yield from self._destination_precopy(now)

    def _guards(self, name: str) -> bool:
        assert name in GUARDS
        return name not in self.without

    # what may befall both

    def _faults(self, now: State) -> Iterator[tuple[str, State]]:
        if now.connected:
            for torn in _torn(now):
                yield "cut", torn
        for torn in _torn(now) if now.source != "dead" else ():
            yield "source quits", torn._replace(source="dead")
        for torn in _torn(now) if now.destination != "dead" else ():
            yield "destination quits", torn._replace(destination="dead")

    def _fail(self, now: State, *, cut: bool = True) -> Iterator[State]:
        """The source fails: it keeps the machine if it can, and hangs up."""
        keeps = now.word != "committed" or now.cancelled or not self._guards("stays-stopped")
        word = "withdrawn" if now.word == "mine" else now.word
        after = now._replace(source="kept" if keeps else "unknown", word=word)
        yield from _hung_up(after) if cut else (after,)

    # the source

    def _source(self, now: State) -> Iterator[tuple[str, State]]:
        before = now.source in {"running", "stopped", "sent", "answered"}
        if before or now.source in {"committed", "wait", "pages", "ended", "paused", "asking", "resuming"}:
            mine = now.word == "mine" or (now.word == "committed" and not self._guards("cancel-asks-the-word"))
            if mine and not now.cancelled:
                yield "cancel", now._replace(word="withdrawn", cancelled=True)
        if before:
            for after in self._fail(now):
                yield "source fails" if now.connected else "source loses the connection", after
            if (heard := _next(now, "back")) and heard[0][0] in {"shut 1", "shut 2"}:
                for after in self._fail(heard[1]):
                    yield "source hears a refusal", after
        elif now.cancelled and now.source not in {"kept", "unknown", "done", "dead"}:
            for after in self._fail(now):  # only without a guard
                yield "source ends the cancelled migration", after
        match now.source:
            case "running":
                yield "source stops the machine", now._replace(source="stopped")
            case "stopped" if self.kind == "one-way":
                yield "source sends all but the end", _send(now, "state")._replace(source="answered")
            case "stopped":
                after = _send(_send(now, "package" if self.kind == "postcopy" else "state"), "ping")
                if self.kind == "postcopy" and not self._guards("run-is-withheld"):
                    after = _send(after, "run")
                yield "source sends the fence", after._replace(source="sent" if self._guards("fence") else "answered")
            case "sent" if (heard := _next(now, "back")) and heard[0][0] == "pong":
                yield "source hears PONG", heard[1]._replace(source="answered")
            case "answered" if now.word == "mine" or not self._guards("commit-asks-the-word"):
                yield "commit", now._replace(source="committed", word="committed")
            case "committed" if self.kind == "postcopy":
                after = now if not self._guards("run-is-withheld") else _send(now, "run")
                yield "source sends RUN", after._replace(source="pages", todo=self.all_pages)
            case "committed" if self.kind == "one-way":
                yield "source sends EOF", _send(now, "eof")._replace(source="done")
            case "committed":
                yield "source sends EOF", _send(now, "eof")._replace(source="wait")
            case "wait":
                if (heard := _next(now, "back")) and heard[0][0] == "shut 0":
                    yield "source hears SHUT 0", heard[1]._replace(source="done")
                elif heard[0][0]:
                    for after in self._fail(heard[1]):
                        yield "source hears SHUT 1", after
        if self.kind != "postcopy" and now.source in {"committed", "wait"} and not now.connected:
            for after in self._fail(now, cut=False):
                yield "source loses the connection", after

    def _source_late(self, now: State) -> Iterator[tuple[str, State]]:
        """After the commit."""
        if now.source not in {"committed", "pages", "ended", "paused", "asking", "resuming"}:
            return
        if now.source == "paused":
            if now.link == "waiting" and now.destination not in {"dead", "failed"}:
                fresh = now._replace(
                    connected=True, forward=(), back=(), link="recover", source="asking", asked=0, ended=False
                )
                fresh = fresh._replace(second=now.second if not self._guards("quiet") else ())
                yield "resume", _send(fresh, "which?")
            return
        if not now.connected and now.source == "committed":
            yield "source takes back what has not left", now._replace(source="kept", word="withdrawn")
        elif not now.connected:
            if self._guards("pause"):
                yield "source pauses", now._replace(source="paused", back=())
            else:
                for after in self._fail(now, cut=False):
                    yield "source fails instead of pausing", after
        heard = _next(now, "back")
        match heard[0], now.source:
            case ("shut 2", _), "committed" | "pages" | "ended":
                for after in _hung_up(heard[1]._replace(source="kept", word="withdrawn")):
                    yield "source takes the machine back", after
            case ("request", page), "pages" | "ended":
                after = heard[1]
                if now.todo & page and now.source == "pages":
                    after = _send(after, "page", page, "second" if self.preempt else "forward")._replace(
                        todo=now.todo & ~page
                    )
                yield "source serves a request", after
            case ("have", has), "asking":
                todo = self.all_pages & ~has if self._guards("bitmap") else now.todo
                yield "source hears what is there", _send(heard[1], "resume")._replace(source="resuming", todo=todo)
            case ("ack", _), "resuming":
                yield "source goes on", heard[1]._replace(source="pages")
            case ("shut 0", _), "ended":
                yield "source hears SHUT 0", heard[1]._replace(source="done")
            case ("pong" | "request" | "ack", _), _:
                yield "source passes a message over", heard[1]
        if now.source == "pages" and now.todo:
            page = now.todo & -now.todo
            yield "source sends a page", _send(now, "page", page)._replace(todo=now.todo & ~page)
        if now.source == "pages" and not now.todo:
            yield "source sends the end", _send(now, "end")._replace(source="ended")

    # the destination

    def _destination_precopy(self, now: State) -> Iterator[tuple[str, State]]:
        if now.destination not in {"loading", "ready"} or now.ran_there:
            return
        blind = self.kind == "one-way"  # whatever happens here, the source cannot hear of it
        if now.destination == "loading" or not self._guards("settle"):
            for after in _hung_up(now._replace(destination="failed", hurt=now.hurt or blind)):
                yield "destination is cancelled", after
        if not now.connected and not now.forward:
            yield "destination loses the connection", now._replace(destination="failed")
        heard = _next(now, "forward")
        match heard[0][0]:
            case "state":
                yield "destination loads the devices", heard[1]._replace(has_state=True)
                for after in _hung_up(_say(now, "shut 1")._replace(destination="failed", hurt=now.hurt or blind)):
                    yield "destination cannot load", after
            case "ping":
                yield "destination answers the fence", _say(heard[1], "pong")._replace(destination="ready")
            case "eof":
                yield "destination runs", _say(heard[1], "shut 0")._replace(destination="live", ran_there=True)
                yield "destination cannot start", _say(heard[1], "shut 1")._replace(destination="failed", hurt=True)

    def _destination_postcopy(self, now: State) -> Iterator[tuple[str, State]]:
        if now.destination in {"failed", "dead"}:
            return
        if now.destination in {"loading", "ready"}:
            yield from self._destination_early(now)
            return
        if now.destination == "listening":
            if now.given_back and self._guards("run-asks"):
                yield "destination does not run", now._replace(destination="failed")
            else:
                yield "destination obeys RUN", now._replace(destination="may-run")
                if not now.given_back:
                    gone = now._replace(given_back=True, hurt=True)
                    yield "listen thread fails", _say(gone, "shut 2")
        if now.destination == "may-run":
            yield "destination runs", now._replace(destination="live", ran_there=True)
        if now.destination == "may-run" or (now.destination == "live" and not self._guards("settled")):
            yield (
                "destination cannot start",
                _say(now, "shut 2")._replace(destination="failed", given_back=True, hurt=True),
            )
        if not now.given_back:
            yield from self._destination_late(now)

    def _destination_early(self, now: State) -> Iterator[tuple[str, State]]:
        if now.destination == "loading" or not self._guards("settle"):
            for after in _hung_up(now._replace(destination="failed")):
                yield "destination is cancelled", after
        if not now.connected and not now.forward:
            yield "destination loses the connection", now._replace(destination="failed")
        heard = _next(now, "forward")
        match heard[0][0]:
            case "package":
                yield "destination has the package", heard[1]._replace(has_state=True)
            case "ping":
                yield "destination answers the fence", _say(heard[1], "pong")._replace(destination="ready")
            case "run":
                yield "destination listens", heard[1]._replace(destination="listening")

    def _destination_late(self, now: State) -> Iterator[tuple[str, State]]:
        """The listen thread, through all connections."""
        if now.link == "paused" and now.destination != "listening":
            if now.destination != "late" or self._guards("witness"):
                yield "recover", now._replace(link="waiting")
        elif now.link in {"up", "recover"} and not now.connected:
            if now.destination == "listening":
                yield "listen thread gives the machine back", now._replace(given_back=True)
            else:
                stale = now.second if not self._guards("quiet") else ()
                yield "destination pauses", now._replace(link="paused", forward=(), second=stale, asked=0)
        for way in ("forward", "second"):
            if (heard := _next(now, way)) and heard[0][0] == "page" and (now.link == "up" or way == "second"):
                page, after = heard[0][1], heard[1]
                twice = now.has & page and now.destination != "late"
                yield (
                    "a page is placed",
                    after._replace(has=now.has | page, wrong="a page arrived twice" if twice else ""),
                )
        if now.link not in {"up", "recover"} or not now.connected:
            return
        heard = _next(now, "forward")
        match heard[0][0], now.link:
            case "which?", "recover":
                yield "destination tells what it has", _say(heard[1], "have", now.has)
            case "resume", "recover":
                yield "destination goes on", _say(heard[1], "ack")._replace(link="up")
            case "end", "up":
                yield "destination reads the end", heard[1]._replace(ended=True)
        whole = now.has == self.all_pages or not self._guards("whole")
        if now.ended and whole and now.destination in {"live", "late"} and now.link == "up":
            yield "destination is complete", _say(now, "shut 0")._replace(destination="late", ended=False)
        if now.link == "up" and now.destination in {"live", "may-run"} and not now.ended:
            for page in (1 << number for number in range(self.pages)):
                if not (now.has | now.asked) & page:
                    yield "destination asks for a page", _say(now, "request", page)._replace(asked=now.asked | page)


def _send(now: State, kind: str, number: int = 0, way: str = "forward") -> State:
    if not now.connected:
        return now
    return now._replace(**{way: (*getattr(now, way), (kind, number))})


def _say(now: State, kind: str, number: int = 0) -> State:
    return _send(now, kind, number, "back")


def _next(now: State, way: str) -> tuple[Message, State]:
    """The first message of a way, and the state without it; one of no kind if there is none."""
    waiting: tuple[Message, ...] = getattr(now, way)
    return (waiting[0], now._replace(**{way: waiting[1:]})) if waiting else (("", 0), now)


def _torn(now: State) -> Iterator[State]:
    """The connection is cut, and with it any tail of what is under way."""
    for state in _hung_up(now):
        yield state._replace(hurt=True)


def _hung_up(now: State) -> Iterator[State]:
    """One side closes: the same, but it is no accident."""
    if not now.connected:
        yield now
        return
    for first in range(len(now.forward) + 1):
        for second in range(len(now.second) + 1):
            for back in range(len(now.back) + 1):
                yield now._replace(
                    connected=False, forward=now.forward[:first], second=now.second[:second], back=now.back[:back]
                )
