"""The lock that orders stop, start, save, load and reset of a machine, and does not keep anybody for ever.

Whoever stops a guest holds it; if that guest waits for a page that will never come, so does its holder.
"""

import threading

from qmig_e2k.errors import migration_error

__all__ = ["MachineLock"]

_POLL = 0.2
"""Seconds between looks whether the machine was given up."""


class MachineLock:
    """A recursive lock.

    Attributes:
        given_up: the machine was given up, and its guest has not stopped: who waits for the lock fails.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.given_up = False

    def acquire(self) -> None:
        """Take it, however long that takes."""
        self._lock.acquire()

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def check(self) -> None:
        """Raises MigrationError (`invalid-state`) once the machine was given up."""
        if self.given_up:
            raise migration_error("invalid-state", "the machine was given up while its memory was incomplete")

    def __enter__(self) -> None:
        """Take it. Raises as `check`, instead of waiting for ever."""
        while not self._lock.acquire(timeout=_POLL):
            self.check()
        try:
            self.check()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
