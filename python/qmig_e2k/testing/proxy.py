"""A relay between source and destination that cuts the wire after a given number of bytes, stops reading, or delays."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Proxy"]

_CHUNK = 4 << 20
"""Each turn may wait for the interpreter lock: small pieces would make a network that a busy guest outruns."""


class Proxy:
    """Relays one TCP connection after the other.

    Args:
        port: where the destination listens, on 127.0.0.1.
        cut_forward: bytes from the source that arrive before the wire is cut; None: all.
        cut_back: the same for bytes from the destination.
        stall: instead of cutting, hold the bytes back until `release`.
        delay: seconds that every byte takes longer, in either direction; bytes follow each other as closely as before.

    Attributes:
        forwarded: bytes passed towards the destination.
        returned: bytes passed towards the source.
        reached: set when a limit was reached.
    """

    def __init__(
        self,
        port: int,
        *,
        cut_forward: int | None = None,
        cut_back: int | None = None,
        stall: bool = False,
        delay: float = 0.0,
    ) -> None:
        self._target = port
        self._delay = delay
        self._limits = (cut_forward, cut_back)
        self._stall = stall
        self._released = threading.Event()
        self.reached = threading.Event()
        self.forwarded = 0
        self.returned = 0
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    @property
    def uri(self) -> str:
        """Where the source shall connect to."""
        return f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"

    def release(self) -> None:
        """Let bytes that were held back go on."""
        self._released.set()

    def cut(self) -> None:
        """Cut the connection now, in both directions."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

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
        for end in self._open:
            end.close()

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
                return
            with self._lock:
                self._open += [source, destination]
            ways = (
                (source, destination, self._limits[0], self._sent),
                (destination, source, self._limits[1], self._back),
            )
            for way in ways:
                thread = threading.Thread(target=self._relay, args=way, name="proxy")
                self._threads.append(thread)
                thread.start()

    def _sent(self, count: int) -> None:
        self.forwarded += count

    def _back(self, count: int) -> None:
        self.returned += count

    def _relay(
        self, source: socket.socket, target: socket.socket, limit: int | None, count: Callable[[int], None]
    ) -> None:
        left = limit
        receive = self._late(source) if self._delay else source.recv
        with contextlib.suppress(OSError):
            while data := receive(_CHUNK if left is None else min(_CHUNK, left + 1)):
                if left is not None and len(data) > left:
                    target.sendall(data[:left])
                    count(left)
                    self.reached.set()
                    if not self._stall:
                        self.cut()
                        return
                    self._released.wait()
                    data, left = data[left:], None
                target.sendall(data)
                count(len(data))
                if left is not None:
                    left -= len(data)
            target.shutdown(socket.SHUT_WR)

    def _late(self, source: socket.socket) -> Callable[[int], bytes]:
        """Receives from `source`, each piece `delay` after it came."""
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            data = b"more"
            while data:
                try:
                    data = source.recv(_CHUNK)
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
