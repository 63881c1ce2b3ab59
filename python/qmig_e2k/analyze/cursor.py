"""Bytes of a stored stream with random access, and a cursor over them for whoever knows a payload's layout."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from typing import TYPE_CHECKING

from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

WINDOW = 1 << 16
"""Bytes read ahead."""


class StoredFile:
    """One file, always seekable: what is not (a pipe) is copied to a temporary one first.

    Attributes:
        fd: its descriptor.
        length: bytes.
        held: bytes that really stand in it; the rest are holes.
        identity: device and inode.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        """Open a path, or keep bytes."""
        self.fd = _from_bytes(source) if isinstance(source, bytes) else _open(source)
        said = os.fstat(self.fd)
        self.length, self.held = said.st_size, min(said.st_size, said.st_blocks * 512)
        self.identity = (said.st_dev, said.st_ino)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; fewer only at the end."""
        made = os.pread(self.fd, length, offset)
        while len(made) < length and (more := os.pread(self.fd, length - len(made), offset + len(made))):
            made += more
        return made

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


def _from_bytes(data: bytes) -> int:
    fd = os.memfd_create("stream")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _open(path: str | os.PathLike[str]) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    if stat.S_ISDIR(kind):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    with os.fdopen(fd, "rb") as pipe, tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(pipe, copy, WINDOW)
        copy.flush()
        return os.dup(copy.fileno())


def open_all(sources: Iterable[str | os.PathLike[str] | bytes]) -> list[StoredFile]:
    """All of them, or none and the error."""
    opened: list[StoredFile] = []
    try:
        for source in sources:
            opened.append(StoredFile(source))  # noqa: PERF401 - what was opened must be known if the next one fails
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


class Cursor:
    """A place in a stored file that moves on as it is read.

    A read that the file is too short for is a `truncated` refusal at its first byte.
    """

    __slots__ = ("_at", "_base", "_file", "_window")

    def __init__(self, file: StoredFile, offset: int) -> None:
        """Standing at `offset`."""
        self._file = file
        self._base, self._at, self._window = offset, 0, b""

    @property
    def offset(self) -> int:
        """Stream offset of the next byte."""
        return self._base + self._at

    @property
    def left(self) -> int:
        """Bytes up to the end of the file."""
        return self._file.length - self.offset

    def peek(self, length: int) -> bytes:
        """Up to `length` coming bytes; fewer only at the end of the file."""
        if self._at + length > len(self._window):
            self._base, self._at = self.offset, 0
            self._window = self._file.read(self._base, max(length, WINDOW))
        return self._window[self._at : self._at + length]

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        # first the question whether they exist: a hostile length must not be allocated
        missing = length - self.left
        if missing > 0:
            count = "1 byte is" if missing == 1 else f"{missing} bytes are"
            raise Refusal(f"the stream ends inside this field: {count} missing", self.offset, "truncated")
        made = self.peek(length)
        self._at += length
        return made
