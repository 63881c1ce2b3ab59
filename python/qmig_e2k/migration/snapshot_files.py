"""Snapshots as files of one directory: what there is, and how a new one takes its place as a whole or not at all.

A snapshot is an ordinary stream in a file; its description ends with when it was made, so that a file which was cut off
shows at once. It is written under a name that begins with a dot, and gets its own when it is on disk: whatever happens
on the way, what stood under that name before is there and whole. A draft is locked as long as its writer lives, so the
next one to come clears away what a dead one has left.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote

from qmig_e2k.errors import migration_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Draft", "Snapshot", "SnapshotDirectory"]

_SUFFIX = ".qmig"
_DRAFT = ".draft"
_NAME_MAX = 255
"""Bytes of a file name."""
_PLAIN = " !+,=@~"
"""What stands for itself in a file name beside letters, digits, `_`, `.` and `-`; anything else is written as %XX."""
_MARK = re.compile(rb'"x-snapshot" ?: \{ ?"date" ?: (\d{1,19}), "vm-clock" ?: (-?\d{1,19}) ?\} ?\}\Z')
_MARK_MAX = 128
"""Bytes at the end of a file in which its mark stands."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot.

    Attributes:
        tag: its name.
        size: bytes of its file.
        date: when it was made.
        vm_clock: time of the guest then, in ns.
    """

    tag: str
    size: int
    date: datetime
    vm_clock: int


def mark(vm_clock: int) -> Mapping[str, object]:
    """What the description of a snapshot made now has as its last member.

    Args:
        vm_clock: time of the guest in ns.
    """
    return {"x-snapshot": {"date": time.time_ns(), "vm-clock": vm_clock}}


class SnapshotDirectory:
    """The snapshots of one directory, which is made if it is not there; others may use it at the same time.

    Raises:
        MigrationError: `io` if it cannot be made or is no directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        with _named(f"the snapshot directory {self.path}"):
            if not self.path.is_dir():
                self.path.mkdir(exist_ok=True)
                with suppress(PermissionError):  # it may be written and not read
                    _sync(self.path.parent)  # or a crash of the host takes it, with all that was saved into it

    def list(self) -> list[Snapshot]:
        """All whole snapshots, the oldest first. Raises MigrationError (`io`)."""
        found = []
        with _named(f"the snapshot directory {self.path}"), os.scandir(self.path) as entries:
            for entry in entries:
                tag = unquote(entry.name.removesuffix(_SUFFIX), errors="replace")
                if _readable(tag) and _file_name(tag) == entry.name:
                    with suppress(OSError), _opened(self.path / entry.name) as fd:
                        if (snapshot := _look(tag, fd)) is not None:
                            found.append(snapshot)
        return sorted(found, key=lambda snapshot: (snapshot.date, snapshot.tag))

    def __contains__(self, tag: str) -> bool:
        return os.path.lexists(self._place(tag))

    @contextmanager
    def open(self, tag: str) -> Iterator[int]:
        """A descriptor of snapshot `tag`, at its first byte, for the `with` block.

        Raises:
            MigrationError: `io`: there is none, it cannot be read, or it is not whole; `invalid-argument` as `check`.
        """
        place = self._place(tag)
        with _named(f"snapshot {tag!r}"), _opened(place, self._missing(tag)) as fd:
            if _look(tag, fd) is None:
                raise migration_error("io", f"snapshot {tag!r} is not whole: {place} was cut off, or is none")
            yield fd

    def delete(self, tag: str) -> None:
        """Remove snapshot `tag`. Raises MigrationError as `open`."""
        with _named(f"snapshot {tag!r}"):
            try:
                self._place(tag).unlink()
            except FileNotFoundError:
                raise self._missing(tag) from None
            _sync(self.path)

    def check(self, tag: str) -> None:
        """Raises MigrationError (`invalid-argument`) if no snapshot can have this name."""
        self._place(tag)

    def draft(self, *tags: str, replace: bool = True) -> Draft:
        """A new file, which becomes the snapshot of the first of `tags` when it is kept.

        Args:
            tags: its name, and others to take if there is one of that name already.
            replace: it takes the place of one that has its name; there is but one name then.

        Raises:
            MigrationError: `io`, also if something else than a file stands in its place; `invalid-argument`.
        """
        places = {tag: self._place(tag) for tag in tags}
        for tag, place in places.items():
            if place.is_dir() and not place.is_symlink():
                raise migration_error("io", f"snapshot {tag!r} has no place: {place} is a directory; move it away")
        with _named(f"a file in {self.path}"):
            self._clear()
            while True:
                path = self.path / f".{secrets.token_hex(8)}{_DRAFT}"
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:
                    return Draft(fd, path, places, replace=replace)
                os.close(fd)  # somebody took it for a dead one's before it was locked

    def _clear(self) -> None:
        """Remove the drafts of writers that are gone."""
        for path in self.path.glob(f".*{_DRAFT}"):
            if not re.fullmatch(r"\.[0-9a-f]{16}", path.stem) or path.is_symlink() or not path.is_file():
                continue  # somebody else's
            with suppress(OSError), _opened(path) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _place(self, tag: str) -> Path:
        if not _readable(tag):
            raise migration_error("invalid-argument", f"{tag!r} cannot name a snapshot: it is empty or not printable")
        name = _file_name(tag)
        if len(name) > _NAME_MAX:
            raise migration_error("invalid-argument", f"the snapshot name {tag[:40]!r}... is too long for a file name")
        return self.path / name

    def _missing(self, tag: str) -> Exception:
        return migration_error("io", f"there is no snapshot {tag!r} in {self.path}")


class Draft:
    """A file that nobody sees yet. Leaving the `with` block removes it unless it was kept.

    Attributes:
        fd: what to write to, for the `with` block.
        tag: the snapshot that it has become, from `keep` on, whether or not that succeeds to the end; None before.
    """

    def __init__(self, fd: int, path: Path, places: Mapping[str, Path], *, replace: bool) -> None:
        self.fd = fd
        self.tag: str | None = None
        self._path = path
        self._places = places
        self._replace = replace

    def keep(self) -> str:
        """What was written, and is on disk, becomes a snapshot; returns its name.

        Raises:
            MigrationError: `io`; `invalid-argument` if all names are taken by others that are not to be replaced.
        """
        for tag, place in self._places.items():
            with _named(f"the snapshot {place}"):
                if self._replace:
                    self._path.replace(place)
                else:
                    try:
                        place.hardlink_to(self._path)
                    except FileExistsError:
                        continue
            self.tag = tag
            with _named(f"whether it outlives a crash of the host is not known: {place.parent}"):
                _sync(place.parent)
            return tag
        raise migration_error("invalid-argument", "a snapshot of that name already exists")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):  # the next writer takes it for a dead one's
                self._path.unlink()
        finally:
            os.close(self.fd)


def _sync(directory: Path) -> None:
    """What was made and renamed in it is on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _readable(tag: str) -> bool:
    return bool(tag) and tag.isprintable()


def _file_name(tag: str) -> str:
    name = quote(tag, safe=_PLAIN, errors="surrogatepass")
    return f"{'%2E' + name[1:] if name.startswith('.') else name}{_SUFFIX}"


def _look(tag: str, fd: int) -> Snapshot | None:
    """What a file says of itself at its end; None if it is no whole snapshot."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        return None
    found = _MARK.search(os.pread(fd, _MARK_MAX, max(about.st_size - _MARK_MAX, 0)))
    if found is None:
        return None
    date, clock = (int(number) for number in found.groups())
    seconds, rest = divmod(date, 10**9)
    made = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return Snapshot(tag, about.st_size, made, clock)


@contextmanager
def _opened(path: Path, missing: Exception | None = None) -> Iterator[int]:
    try:
        # a FIFO of that name has nobody to wait for
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if missing is None:
            raise
        raise missing from None
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """What the system refuses becomes a MigrationError (`io`) that says what it was about."""
    try:
        yield
    except OSError as error:
        raise migration_error("io", f"{what}: {error.strerror or error}") from error
