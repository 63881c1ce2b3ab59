"""Tells a program what happens to its machine, as QMP clients are told by events (spec/control-plane 2.4, 2.5)."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k._core import Control

__all__ = ["Notifier"]

log = logging.getLogger(__name__)


class Notifier:
    """Calls a function for each event, in order, in a thread of its own: nothing of a migration ever waits for it.

    A context manager; `close` ends it, after what has happened until then was told.
    """

    def __init__(
        self, control: Control, call: Callable[[str, dict[str, Any]], object], over: Callable[[Notifier], object]
    ) -> None:
        """`over` is called by `close`."""
        self._events = control.subscribe()
        self._call = call
        self._over = over
        self._thread = threading.Thread(target=self._run, name="notifier")
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events that were dropped because 4096 others waited for the function to return."""
        return self._events.lost

    def _run(self) -> None:
        while (event := self._events.next()) is not None:
            name, data, _ = event
            try:
                self._call(name, {} if data is None else json.loads(data))
            except Exception:
                log.exception("a notifier failed with event %s", name)

    def close(self) -> None:
        """Tell what waits to be told, then nothing more. Idempotent; the function itself may call it."""
        self._over(self)
        self._events.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
