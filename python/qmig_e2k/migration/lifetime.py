"""Ends what still runs when the main thread is over.

The workers of this package are ordinary threads, so that none is torn down in the middle of a machine; but a listener
that nobody ever connects to
would then keep a finished program alive. A small watcher, which the interpreter does not wait for, closes whatever is
open at that moment. A thread that waits for a page of a machine that was given up cannot be ended by anything but the
process, which then ends with status 1. If it has the interpreter's lock not even the watcher can do that: a thread of
the core does, which misses the beats of a thread of this file.
"""

import os
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import Protocol

from qmig_e2k._core import Incoming, Life

__all__ = ["close_with_program", "end_with_program", "guard"]


class Closable(Protocol):
    """Something with an idempotent `close`, callable from any thread."""

    def close(self) -> None:
        """End it."""


class Closing(Closable, Protocol):
    """The same, of a machine."""

    @property
    def stuck(self) -> int:
        """For how many pages somebody waits, although they will never come."""


GRACE_S = 5.0
"""What a finished program with stuck threads leaves to its other ones."""

FROZEN_S = 10.0
"""How long an interpreter may stand still while a thread waits for a page that will never come."""

_BEAT_S = 0.1
"""Between signs of life; many in FROZEN_S, for a busy interpreter gives each thread its turn late."""

_POLL_S = 1.0
"""Between looks whether the program ends."""

_open: "weakref.WeakSet[Closing]" = weakref.WeakSet()
_stuck: list[Closing] = []
_lock = threading.Lock()
_watcher: threading.Thread | None = None
_life: Life | None = None


def close_with_program(thing: Closing) -> None:
    """Close `thing` when the main thread has ended, if it is still there."""
    with _lock:
        _open.add(thing)
    _begin()


def end_with_program(thing: Closing) -> None:
    """`thing` is closed, but threads wait for its pages: the process ends when all others have ended."""
    with _lock:
        _stuck.append(thing)
    _begin()


def guard(source: Incoming) -> None:
    """The machine of `source` is about to be given up: who stops the interpreter in a page of it ends the process.

    Raises MigrationError (`io`) if there is no thread for that.
    """
    global _life  # noqa: PLW0603  one interpreter per process
    with _lock:
        if _life is None:
            life = Life()
            threading.Thread(target=_beat, args=(life,), name="life", daemon=True).start()
            _life = life
    source.guard(_life, FROZEN_S)


def _beat(life: Life) -> None:
    while True:
        life.beat()
        time.sleep(_BEAT_S)


def _begin() -> None:
    global _watcher  # noqa: PLW0603  one watcher per process
    with _lock:
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_watch, name="lifetime", daemon=True)
            _watcher.start()


def _watch() -> None:
    main = threading.main_thread()
    # an executor's threads are waited for before the main thread counts as ended
    while main.is_alive() and not (_stuck and getattr(threading, "_SHUTTING_DOWN", False)):
        main.join(_POLL_S)
    for thing in _things():
        thing.close()
    # where only daemons are stuck the program ends by itself meanwhile, and as it wants to
    end = time.monotonic() + GRACE_S
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(max(end - time.monotonic(), 0))
    time.sleep(max(end - time.monotonic(), 0))
    _end_if_stuck()


def _end_if_stuck() -> None:
    pages = sum(thing.stuck for thing in _things())
    if pages:
        message = f"threads wait for {pages} pages of a machine that was given up: the process ends without them"
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or none
                stream.flush()
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())
        os._exit(1)


def _things() -> list[Closing]:
    with _lock:
        return list({*_open, *_stuck})
