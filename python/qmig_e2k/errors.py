"""Errors raised by the Python layer, with the same attributes as those of the core.

Exception tree (both classes live in the core, so one `except` catches either origin):

    MigrationError      a migration that failed or a call it refused
    └── StreamError     a stream that was refused, with the place in it

Attributes: `kind` (stable name, listed in the core's error module), `offset` (first byte of the refused element, or
None), `path` (place inside the stream's structure) and `message` (the sentence alone). `str(error)` says all of it.
"""

import logging
import threading
from copy import copy

from qmig_e2k._core import MigrationError, StreamError

__all__ = ["MigrationError", "StreamError", "as_migration_error", "begin", "migration_error", "stream_error", "twin"]

log = logging.getLogger(__name__)


def migration_error(kind: str, message: str) -> MigrationError:
    """A MigrationError to raise.

    Args:
        kind: stable name of the cause, e.g. `invalid-state`.
        message: one sentence with the remedy.
    """
    error = MigrationError(message)
    _fill(error, kind, message, None, "")
    return error


def stream_error(kind: str, message: str, *, offset: int | None = None, path: str = "") -> StreamError:
    """A StreamError to raise.

    Args:
        kind: stable name of the cause, e.g. `device-state`.
        message: one sentence; repeats neither kind, path nor offset.
        offset: stream offset of the first byte of the refused element or field.
        path: place in the stream's structure, e.g. `cpu/0/regs_lo[3]`.
    """
    text = f"{path}: {message}" if path else message
    if offset is not None:
        text += f" (at stream offset {offset:#x})"
    error = StreamError(text)
    _fill(error, kind, message, offset, path)
    return error


def begin(thread: threading.Thread) -> None:
    """Start a thread. Raises MigrationError (`no-memory`) if the system gives none: nothing has been done then."""
    try:
        thread.start()
    except RuntimeError as error:
        text = f"{error} ({thread.name}): there is no memory for its stack, or there are too many (ulimit -v and -u)"
        raise migration_error("no-memory", text) from error


def as_migration_error(error: BaseException) -> MigrationError:
    """`error` itself, or what reports it if it is none of ours: a mistake in somebody's handler, logged with its place.

    Its kind is `device-state`, and its cause the error.
    """
    if isinstance(error, MigrationError):
        return error
    log.error("unexpected error in a migration", exc_info=error)
    made = migration_error("device-state", f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def twin(error: MigrationError) -> MigrationError:
    """The same error without the frames it went through: for who keeps it, or raises it more than once."""
    made = copy(error)
    made.__cause__ = error.__cause__
    return made


def _fill(error: MigrationError, kind: str, message: str, offset: int | None, path: str) -> None:
    error.kind, error.message, error.offset, error.path = kind, message, offset, path
