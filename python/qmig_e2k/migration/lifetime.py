"""Ends what still runs when the main thread is over.

The workers of this package are ordinary threads, so that none is torn down in the middle of a machine; but a listener
that nobody ever connects to
would then keep a finished program alive. A small watcher, which the interpreter does not wait for, closes whatever is
open at that moment.
"""

import threading
import weakref
from typing import Protocol

__all__ = ["close_with_program"]


class Closable(Protocol):
    """Something with an idempotent `close`, callable from any thread."""

    def close(self) -> None:
        """End it."""


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


def close_with_program(thing: Closable) -> None:
    """Close `thing` when the main thread has ended, if it is still there."""
    global _watcher  # noqa: PLW0603  one watcher per process
    with _lock:
        _open.add(thing)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_watch, name="lifetime", daemon=True)
            _watcher.start()


def _watch() -> None:
    threading.main_thread().join()
    with _lock:
        things = list(_open)
    for thing in things:
        thing.close()
