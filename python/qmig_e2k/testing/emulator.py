"""The smallest emulator there is: threads that write counters into RAM, and one device."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from qmig_e2k.vmstate import VMStateDescription, uint64

if TYPE_CHECKING:
    from qmig_e2k._core import Block

__all__ = ["COUNTER", "TinyEmulator"]

COUNTER = VMStateDescription("tiny-counter", version_id=1, fields=[uint64("value")])
"""State of a TinyEmulator's device."""


class TinyEmulator:
    """One Python vCPU that counts: it writes `value` into page `value % pages`, again and again.

    RAM then tells whether a write was lost: page k holds the greatest value v < `value` with v % pages == k (`check`).

    Attributes:
        value: number of the next write; the state of the device `COUNTER`.
        log: the calls that were made on it, in order.
        failures: names of calls that shall raise, for tests.
    """

    PAGE = 4096

    def __init__(self, ram: Block) -> None:
        self._words = ram.numpy().view(np.uint64)
        self._pages = ram.size // self.PAGE
        self.value = 1
        self.log: list[str] = []
        self.failures: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the vCPU."""
        self._note("start")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="tiny-vcpu")
        self._thread.start()

    def stop(self) -> None:
        """Stop the vCPU; it has finished its write when this returns."""
        self._note("stop")
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def reset(self) -> None:
        """The device as it was at power-on."""
        self._note("reset")
        self.value = 1

    def inactivate_storage(self) -> None:
        """Nothing to hand over."""
        self._note("inactivate_storage")

    def activate_storage(self) -> None:
        """Nothing to take."""
        self._note("activate_storage")

    def check(self) -> None:
        """Compare every page with what `value` says; the machine is stopped.

        Raises:
            AssertionError: a page differs.
        """
        step = self.PAGE // 8
        for page in range(self._pages):
            last = (self.value - 1) - (self.value - 1 - page) % self._pages
            found = int(self._words[page * step])
            assert found == max(last, 0), f"page {page} holds {found}, not {max(last, 0)} (value {self.value})"

    def _run(self) -> None:
        step = self.PAGE // 8
        while not self._stopping.is_set():
            self._words[self.value % self._pages * step] = self.value
            self.value += 1

    def _note(self, call: str) -> None:
        self.log.append(call)
        if call in self.failures:
            raise RuntimeError(f"{call} fails, as asked")
