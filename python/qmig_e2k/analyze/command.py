"""`qmig-e2k analyze`: what the command line does with an analysis. Exit status: 0, or 1 for damage or differences."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmig_e2k.analyze import diff as comparison
from qmig_e2k.analyze import tree
from qmig_e2k.analyze.ram import extract
from qmig_e2k.analyze.stream import analyze
from qmig_e2k.analyze.values import text
from qmig_e2k.errors import migration_error
from qmig_e2k.limits import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qmig_e2k.limits import Limits

__all__ = ["run", "run_diff"]


def run(files: str, *, as_json: bool, extract_ram: Path | None, limits: Limits = DEFAULT) -> int:
    """Analyse one stream (`FILE[,FILE...]`), print it, and write its RAM if that is wanted."""
    with _named_files():
        made = analyze(split(files), limits=limits)
    if as_json:
        _print_json(made.record())
    else:
        _print_lines(tree.tree(made))
    if extract_ram is not None:
        with _named_files():
            extract(made, extract_ram)
    return _damage(files, made.error)


def run_diff(a: str, b: str, *, as_json: bool, limits: Limits = DEFAULT) -> int:
    """Compare two streams and print what differs."""
    with _named_files():
        if [Path(name).resolve() for name in split(a)] == [Path(name).resolve() for name in split(b)]:
            print(f"qmig-e2k analyze: {text(a)} is compared with itself", file=sys.stderr)
        one, other = analyze(split(a), limits=limits), analyze(split(b), limits=limits)
    found = comparison.diff(one, other)
    if as_json:
        _print_json(comparison.record(found))
    else:
        _print_lines(tree.differences(found))
    # both are told, whichever comes first
    damaged = [_damage(name, of.error) for name, of in ((a, one), (b, other))]
    return 1 if found or any(damaged) else 0


def split(files: str) -> list[str]:
    """The files of `FILE,FILE,...`, main channel first; a file whose name has a comma is itself.

    Raises:
        MigrationError: `invalid-argument`: a name is empty, or stands there twice.
    """
    if files and Path(files).exists():
        return [files]
    names = files.split(",")
    if not all(names):
        raise migration_error("invalid-argument", f"an empty file name in {files!r}; the form is FILE[,FILE...]")
    for index, name in enumerate(names):
        if Path(name).resolve() in [Path(other).resolve() for other in names[:index]]:
            raise migration_error("invalid-argument", f"{name} is named twice; each channel has a file of its own")
    return names


@contextmanager
def _named_files() -> Iterator[None]:
    """A system's error says which file it is about, and nothing in the language of programmers."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        raise OSError(f"{os.fspath(error.filename)}: {error.strerror}") from None


def _damage(files: str, error: dict[str, Any] | None) -> int:
    if error is None:
        return 0
    where = f"{error['path']}: " if error["path"] else ""
    message = text(f"{files}: {where}{error['message']} (at stream offset {error['offset']:#x})")
    print(f"qmig-e2k analyze: {message}", file=sys.stderr)
    return 1


def _print_json(record: dict[str, Any]) -> None:
    with _reader_may_leave():
        print(json.dumps(record, indent=2))


def _print_lines(lines: Iterable[tree.Line]) -> None:
    with _reader_may_leave():
        tree.show(lines)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """A reader such as `head` that has seen enough is no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
