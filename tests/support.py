"""What tests of every layer share: waiting with a deadline, and where things are. No test sleeps for a guessed time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
STREAMS = REPOSITORY / "tests" / "streams"


def wait_until(predicate: Callable[[], T], seconds: float = 20.0, what: str = "the condition") -> T:
    """Polls until `predicate()` is true and returns its value; fails the test after `seconds`, naming `what`."""
    end = time.monotonic() + seconds
    pause = 0.0005
    while True:
        if value := predicate():
            return value
        if time.monotonic() >= end:
            raise AssertionError(f"{what} did not happen within {seconds:g} s (last value: {value!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
