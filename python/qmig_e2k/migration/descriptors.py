"""Descriptors that change hands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["closed_on_error"]


@contextmanager
def closed_on_error(fd: int | None) -> Iterator[None]:
    """Close `fd`, which was handed over to us, if the block fails before it has handed it on."""
    try:
        yield
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise
