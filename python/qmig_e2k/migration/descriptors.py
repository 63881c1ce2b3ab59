"""Descriptors that change hands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from qmig_e2k._core import check_uri
from qmig_e2k.errors import migration_error

__all__ = ["closed_on_error", "inherited", "refuse_unwanted"]


@contextmanager
def closed_on_error(fd: int | None) -> Iterator[None]:
    """Close `fd`, which was handed over to us, if the block fails before it has handed it on."""
    try:
        yield
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise


def refuse_unwanted(uri: str, fd: int | None) -> None:
    """Raises MigrationError (`invalid-argument`, `bad-uri`) if a descriptor comes with a URI that takes none."""
    if fd is not None and not uri.startswith("fd:"):
        if uri != "defer":
            check_uri(uri)
        raise migration_error("invalid-argument", f"{uri} takes no descriptor: use fd:NAME with fd=, or leave fd= out")


def inherited(uri: str) -> int | None:
    """The descriptor that an `fd:NUMBER` URI means, None for other URIs.

    It must have been left to this process by the program that started it. All descriptors that we open ourselves are
    closed by an exec, so that none of them can be meant.

    Raises:
        MigrationError: `invalid-argument`: there is no such descriptor.
    """
    number = uri.removeprefix("fd:")
    if number == uri or not (number.isascii() and number.isdecimal()):
        return None
    fd = int(number)
    try:
        usable = fd not in (1, 2) and os.get_inheritable(fd)
    except (OSError, OverflowError):
        usable = False
    if not usable:
        raise migration_error(
            "invalid-argument", f"{uri}: no descriptor {number} was inherited; start this program with it left open"
        )
    return fd
