"""What tests of every layer share: waiting with a deadline, and where things are. No test sleeps for a guessed time."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PAGE = 4096

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


def yardsticks(action: Callable[[], object]) -> float:
    """CPU time of `action` in units of a bare loop's, which takes 1.4 ms where the aims of this project were set.

    So a limit holds on a machine of any speed and load. The best of fifteen, taken in turns.
    """

    def loop() -> None:
        total = 0
        for number in range(50_000):
            total += number & 3

    def cost(work: Callable[[], object]) -> float:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun

    times = [(cost(action), cost(loop)) for _ in range(15)]
    return min(each for each, _ in times) / min(loop for _, loop in times)


def mixed_ram(size: int, seed: int = 1) -> bytes:
    """Random, text, constant and zero pages in runs of one to fifty; the first and the last page are random."""
    numbers = random.Random(seed)
    makers = (
        numbers.randbytes,
        lambda length: (b"The quick brown fox, %d. " % numbers.getrandbits(32) * length)[:length],
        lambda length: bytes([numbers.randrange(1, 256)]) * length,
        bytes,
    )
    made = bytearray(numbers.randbytes(PAGE))
    while len(made) < size - PAGE:
        made += numbers.choice(makers)(min(numbers.randint(1, 50) * PAGE, size - PAGE - len(made)))
    return bytes(made + numbers.randbytes(PAGE))


def assert_same_memory(found: bytes, wanted: bytes) -> None:
    """Fails naming the first page that differs; pytest's own comparison of megabytes would take minutes."""
    assert len(found) == len(wanted)
    if found == wanted:
        return
    wrong = [at for at in range(0, len(wanted), PAGE) if found[at : at + PAGE] != wanted[at : at + PAGE]]
    raise AssertionError(f"{len(wrong)} of {len(wanted) // PAGE} pages differ, the first at {wrong[0]:#x}")


def written(memory: bytes) -> bool:
    """Whether no page of `memory` is zero."""
    return bool(np.frombuffer(memory, np.uint8).reshape(-1, PAGE).any(axis=1).all())
