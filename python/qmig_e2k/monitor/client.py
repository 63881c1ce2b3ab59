"""A small blocking QMP client, for the demo, the benchmarks and scripts: one socket, one command at a time.

Programs that want more (asyncio, several commands under way) use the PyPI package `qemu.qmp`; both work with this
project's servers and with QEMU's.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

Event = dict[str, Any]


def stamp(event: Event) -> float:
    """When the server emitted `event`, in seconds since the epoch on its wall clock."""
    at: dict[str, int] = event["timestamp"]
    return at["seconds"] + at["microseconds"] / 1e6


class QmpError(Exception):
    """An error reply: `error_class` is QMP's class, the text its description."""

    def __init__(self, error_class: str, text: str) -> None:
        super().__init__(text)
        self.error_class = error_class


class QmpClient:
    """A negotiated connection to a QMP server at `unix:PATH` or `tcp:HOST:PORT`.

    Args:
        address: Where the server listens.
        deadline: Seconds to wait for the server to appear, and for each answer.
        alive: Called while waiting for the server; False means that it will never come.
        oob: Negotiate `exec-oob`, so that `execute_oob` works.

    Raises:
        ConnectionError: The server did not appear, or closed the connection.
        TimeoutError: No answer within the deadline.
    """

    def __init__(
        self, address: str, *, deadline: float = 30.0, alive: Callable[[], bool] = lambda: True, oob: bool = False
    ) -> None:
        self._deadline = deadline
        self._events: list[Event] = []
        self._buffer = b""
        self._socket = _connect(address, deadline, alive)
        self._message(time.monotonic() + deadline)
        self.execute("qmp_capabilities", {"enable": ["oob"]} if oob else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
        """Run one command and return its value; `more` are arguments with `_` for `-`.

        Raises:
            QmpError: The server answered with an error.
        """
        return self._request("execute", command, {**(arguments or {}), **_dashed(more)})

    def execute_oob(self, command: str, **arguments: Any) -> Any:
        """Run a command that waits for no other one, also where the server's ordinary commands are stuck.

        Raises:
            QmpError: The server answered with an error.
        """
        return self._request("exec-oob", command, _dashed(arguments))

    def _request(self, how: str, command: str, arguments: dict[str, Any]) -> Any:
        self._socket.sendall(json.dumps({how: command, "arguments": arguments}).encode())
        end = time.monotonic() + self._deadline
        while True:
            message = self._message(end)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(message["error"]["class"], message["error"]["desc"])
            else:
                return message["return"]

    def event(self, timeout: float = 0.0) -> Event | None:
        """The next event, waiting at most `timeout` seconds."""
        if not self._events:
            try:
                self._events.append(self._message(time.monotonic() + timeout))
            except TimeoutError:
                return None
        return self._events.pop(0)

    def wait_event(self, name: str, deadline: float = 60.0, **data: Any) -> Event:
        """The next event `name` whose data holds `data`; earlier events are dropped.

        Raises:
            TimeoutError: It did not come within `deadline` seconds.
        """
        end = time.monotonic() + deadline
        while (left := end - time.monotonic()) > 0:
            found = self.event(left)
            if found and found["event"] == name and all(found.get("data", {}).get(k) == v for k, v in data.items()):
                return found
        message = f"no event {name} {data or ''} within {deadline:g} s"
        raise TimeoutError(message)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _message(self, end: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if not select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
                message = "the QMP server does not answer"
                raise TimeoutError(message)
            data = self._socket.recv(1 << 16)
            if not data:
                message = "the QMP server closed the connection"
                raise ConnectionError(message)
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        parsed: dict[str, Any] = json.loads(line)
        return parsed


def _dashed(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


def _connect(address: str, deadline: float, alive: Callable[[], bool]) -> socket.socket:
    kind, _, rest = address.partition(":")
    end = time.monotonic() + deadline
    while True:
        try:
            if kind == "unix":
                made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    made.connect(rest)
                except OSError:
                    made.close()
                    raise
                return made
            host, _, port = rest.rpartition(":")
            return socket.create_connection((host, int(port)), timeout=deadline)
        except OSError as error:
            if not alive() or time.monotonic() >= end:
                message = f"no QMP server at {address}: {error.strerror}"
                raise ConnectionError(message) from error
            time.sleep(0.005)
