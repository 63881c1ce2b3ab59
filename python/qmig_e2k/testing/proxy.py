"""A relay between source and destination that does to the wire whatever a network can: the link's fault injector.

    with Proxy(port, faults=[Fault("cut", at=70, way="back")], piece=1) as proxy:
        migration = source.vm.migrate(proxy.uri)

It stands between any two processes. Each connection of a migration (main, multifd, preempt) is a link with two ways,
`forward` from the source and `back` to it. What may happen to their bytes:

- `Fault`: at a chosen byte the wire is cut or reset, goes silent, or changes the byte;
- `delay`: all bytes come later; `piece`: they come a few at a time, so that every read and every write is short;
- `reorder`: the links overtake each other, each in its own order.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Fault", "Proxy", "Way"]

Way = Literal["forward", "back"]

_CHUNK = 4 << 20
"""Each turn may wait for the interpreter lock: small pieces would make a network that a busy guest outruns."""
_SMALL_BUFFER = 4096
"""Bytes that wait here for a proxy of small pieces: the writer is made to write in pieces, too."""
_OVERTAKE = 8
"""By how many pieces of other connections a piece may be overtaken."""
_OVERTAKE_SECONDS = 0.005
"""How long it waits for them: there may be none."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER by which `close` sends RST and drops what was not sent."""


@dataclass(frozen=True)
class Fault:
    """What happens to a wire, and when.

    Attributes:
        kind: `cut` ends the connections in order (FIN), `reset` at once (RST); `stall` holds all that follows back
            until `Proxy.release`; `corrupt` changes one byte and lets the rest pass.
        at: bytes that pass before it.
        way: whose bytes count.
        link: which connection, in the order in which the source made them; None: whichever gets so far first.
        since: `at` counts behind the first time that these bytes pass; less than 0: before that, as far as they
            come in one piece.
        prompt: cut or stall as soon as `at` bytes have passed; else when one more wants to, so that answers to those
            that passed arrive.
        alone: a cut spares the other links.
        mask: bits of the byte that `corrupt` flips.
    """

    kind: Literal["cut", "reset", "stall", "corrupt"] = "cut"
    at: int = 0
    way: Way = "forward"
    link: int | None = None
    since: bytes = b""
    prompt: bool = False
    alone: bool = False
    mask: int = 0xFF


@dataclass
class _Due:
    """A fault of one way, and the byte of it where it happens; None: `since` has not passed."""

    fault: Fault
    at: int | None


class _Flow:
    """One way of one link."""

    def __init__(self, link: _Link, way: Way, source: socket.socket, target: socket.socket) -> None:
        self.link = link
        self.way = way
        self.source = source
        self.target = target
        self.count = 0
        self.kept = bytearray()
        self._due: list[_Due] = []
        self._tail = b""

    def add(self, fault: Fault) -> None:
        """Expect a fault from here on; the thread of this way sees it with the next bytes."""
        if fault.way == self.way and fault.link in (None, self.link.number):
            self._due.append(_Due(fault, None if fault.since else self.count + fault.at))

    def look(self, data: bytes) -> None:
        """Search what comes next for the marks that faults wait for."""
        waiting = [due for due in self._due if due.at is None]
        if not waiting:
            return
        seen = self._tail + data
        for due in waiting:
            found = seen.find(due.fault.since)
            if found >= 0:
                behind = found + len(due.fault.since) - len(self._tail)
                due.at = self.count + behind + due.fault.at
        self._tail = seen[-max(len(due.fault.since) for due in waiting) :]

    def first(self) -> tuple[Fault, int] | None:
        """The next fault, and the bytes that pass before it."""
        due = min((due for due in self._due if due.at is not None), key=lambda due: due.at or 0, default=None)
        return None if due is None or due.at is None else (due.fault, max(due.at - self.count, 0))

    def drop(self, fault: Fault) -> None:
        """It has happened."""
        self._due = [due for due in self._due if due.fault is not fault]


class _Link:
    """One connection through the proxy; whichever of its two threads ends last closes it."""

    def __init__(self, number: int, source: socket.socket, destination: socket.socket) -> None:
        self.number = number
        self.flows = (
            _Flow(self, "forward", source, destination),
            _Flow(self, "back", destination, source),
        )
        self.over = False
        self._reset = False
        self._ends = (source, destination)
        self._running = len(self.flows)
        self._lock = threading.Lock()

    def cut(self, *, reset: bool = False) -> None:
        """Both ways end; with `reset` neither side is told before its connection is gone."""
        with self._lock:
            self.over = True
            self._reset = self._reset or reset
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RD if self._reset else socket.SHUT_RDWR)

    def ended(self) -> None:
        """A thread of this link has ended."""
        with self._lock:
            self._running -= 1
            if self._running:
                return
            for end in self._ends:
                if self._reset:
                    with contextlib.suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.close()


class _Shuffle:
    """Lets pieces of several links overtake each other, the same way for the same seed and order of arrival."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  nothing is secret here
        self._moved = threading.Condition()
        self._pieces = 0

    def wait(self) -> None:
        """Wait for one's turn."""
        with self._moved:
            if self._random.random() < 0.5:
                due = self._pieces + self._random.randint(1, _OVERTAKE)
                self._moved.wait_for(lambda: self._pieces >= due, _OVERTAKE_SECONDS)
            self._pieces += 1
            self._moved.notify_all()


class Proxy:
    """Relays any number of TCP connections, and does to them what it was told.

    Args:
        port: where the destination listens, on 127.0.0.1.
        cut_forward: bytes from the source that arrive before the wire is cut; None: all. Short for a `Fault`.
        cut_back: the same for bytes from the destination.
        stall: instead of cutting, hold the bytes back until `release`.
        delay: seconds that every byte takes longer, in either direction; bytes follow each other as closely as before.
        faults: what else happens, each of them once on each link that it is for.
        piece: bytes that are passed on at a time; 0: as they come.
        reorder: seed by which links overtake each other; None: they do not.
        record: keep what passes, for `passed`.
        on_fault: called by a thread of the proxy just before a fault happens.

    Attributes:
        forwarded: bytes passed towards the destination, on all links.
        returned: bytes passed towards the source.
        reached: set when a fault happened.
        links: how many connections were made.
    """

    def __init__(
        self,
        port: int,
        *,
        cut_forward: int | None = None,
        cut_back: int | None = None,
        stall: bool = False,
        delay: float = 0.0,
        faults: Iterable[Fault] = (),
        piece: int = 0,
        reorder: int | None = None,
        record: bool = False,
        on_fault: Callable[[Fault], object] | None = None,
    ) -> None:
        kind: Literal["cut", "stall"] = "stall" if stall else "cut"
        limits: tuple[tuple[Way, int | None], ...] = (("forward", cut_forward), ("back", cut_back))
        self._faults = [Fault(kind, at, way) for way, at in limits if at is not None] + list(faults)
        self._target = port
        self._delay = delay
        self._piece = piece
        self._shuffle = None if reorder is None else _Shuffle(reorder)
        self._record = record
        self._on_fault = on_fault
        self._released = threading.Event()
        self.reached = threading.Event()
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        if piece:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    @property
    def uri(self) -> str:
        """Where the source shall connect to."""
        return f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def forwarded(self) -> int:
        """Bytes passed towards the destination, on all links."""
        return sum(link.flows[0].count for link in self._links)

    @property
    def returned(self) -> int:
        """Bytes passed towards the source, on all links."""
        return sum(link.flows[1].count for link in self._links)

    @property
    def links(self) -> int:
        """How many connections were made."""
        return len(self._links)

    def passed(self, way: Way = "forward", link: int = 0) -> bytes:
        """What has passed one way of a link, of a proxy that records; nothing for a link that was never made."""
        links = self._links[link : link + 1]
        return bytes(links[0].flows[way == "back"].kept) if links else b""

    def arm(self, fault: Fault) -> None:
        """Expect one more fault; its bytes count from now on."""
        with self._lock:
            self._faults.append(fault)
            for link in self._links:
                for flow in link.flows:
                    flow.add(fault)

    def release(self) -> None:
        """Let bytes that were held back go on."""
        self._released.set()

    def cut(self, *, reset: bool = False) -> None:
        """Cut all connections now, in both directions."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut(reset=reset)

    def close(self) -> None:
        """Cut, stop listening, end the threads."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()  # what it has accepted is cut, too
        self.cut()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            try:
                destination = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                source.close()
                continue
            for end in (source, destination):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                link = _Link(len(self._links), source, destination)
                self._links.append(link)
                for flow in link.flows:
                    for fault in self._faults:
                        flow.add(fault)
            for flow in link.flows:
                thread = threading.Thread(target=self._relay, args=(flow,), name="proxy")
                self._threads.append(thread)
                thread.start()

    def _relay(self, flow: _Flow) -> None:
        """The thread of one way."""
        try:
            receive = self._late(flow.source) if self._delay else flow.source.recv
            while data := receive(self._piece or _CHUNK):
                if flow.link.over:
                    return
                flow.look(data)
                if not self._pass(flow, data):
                    return
            if not flow.link.over:
                flow.target.shutdown(socket.SHUT_WR)
        except ConnectionResetError:
            flow.link.cut(reset=True)
        except OSError:
            pass  # nobody there: what comes the other way is passed on to its end
        finally:
            flow.link.ended()

    def _pass(self, flow: _Flow, data: bytes) -> bool:
        """Pass `data` on, with what happens to it; False if this was the end of the wire."""
        while data:
            first = flow.first()
            if first is None or first[1] > len(data):
                self._send(flow, data)
                return True
            fault, room = first
            self._send(flow, data[:room])
            data = data[room:]
            if not data and not (fault.prompt and fault.kind != "corrupt"):
                return True
            flow.drop(fault)
            if self._on_fault is not None:
                self._on_fault(fault)
            self.reached.set()
            if fault.kind == "corrupt":
                data = bytes([data[0] ^ fault.mask]) + data[1:]
            elif fault.kind == "stall":
                self._released.wait()
            else:
                reset = fault.kind == "reset"
                flow.link.cut(reset=reset) if fault.alone else self.cut(reset=reset)
                return False
        return True

    def _send(self, flow: _Flow, data: bytes) -> None:
        if not data:
            return
        if self._shuffle is not None:
            self._shuffle.wait()
        # First: whoever has read it and looks, or arms a fault, finds it counted.
        flow.count += len(data)
        if self._record:
            flow.kept += data
        flow.target.sendall(data)

    def _late(self, source: socket.socket) -> Callable[[int], bytes]:
        """Receives from `source`, each piece `delay` after it came."""
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            data = b"more"
            while data:
                try:
                    data = source.recv(self._piece or _CHUNK)
                except OSError:
                    data = b""
                waiting.put((time.monotonic() + self._delay, data))

        def receive(_: int) -> bytes:
            due, data = waiting.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            return data

        reader = threading.Thread(target=read, name="proxy")
        self._threads.append(reader)
        reader.start()
        return receive
