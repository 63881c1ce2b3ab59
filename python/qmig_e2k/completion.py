"""Completion of the command line, by argcomplete: the shell asks this program for the words that may come next."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

__all__ = ["SHELLS", "answer", "show", "suggest"]

SHELLS = ("bash", "zsh", "fish")


def suggest(action: argparse.Action, words: Callable[[], Iterable[str]]) -> None:
    """Words to offer for a value that is not one of a fixed list."""
    action.completer = lambda **_: words()  # type: ignore[attr-defined]  # argcomplete looks for it


def answer(parser: argparse.ArgumentParser) -> int:
    """Answer the shell, which asks in its environment, and end the process; the exit status if that cannot be done."""
    if found := _argcomplete():
        found.autocomplete(parser)
    return 1


def show(shell: str) -> int:
    """Print what `shell`, one of SHELLS, has to read; returns the exit status."""
    if found := _argcomplete():
        print(found.shellcode(["qmig-e2k"], shell=shell))
        return 0
    return 1


def _argcomplete() -> Any:
    """The module, or None after a word about what is missing."""
    try:
        import argcomplete  # noqa: PLC0415  an extra that may be missing
    except ImportError:
        print("qmig-e2k: completion needs argcomplete: pip install 'qmig_e2k[cli]'", file=sys.stderr)
        return None
    return argcomplete
