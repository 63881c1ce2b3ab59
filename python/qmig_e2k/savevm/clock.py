"""The virtual clock of a machine and its `timer` section."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qmig_e2k.vmstate import VMStateDescription, int64, unused

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.savevm.profile import Profile


class VirtualClock:
    """Time of the guest in ns: runs while the machine runs, goes on at the destination where it stopped.

    Attributes:
        cpu_ticks_offset: what is added to the host's tick counter while running; the ticks themselves while stopped.
        cpu_clock_offset: the same for the clock, in ns.
    """

    def __init__(self, host: Callable[[], int] = time.monotonic_ns) -> None:
        """A stopped clock at 0; `host` gives the host's time in ns (also used as its tick counter)."""
        self._host = host
        self.running = False
        self.reset()

    def reset(self) -> None:
        """Back to 0."""
        start = self._host() if self.running else 0
        self.cpu_ticks_offset = self.cpu_clock_offset = -start
        self.dummy = 0

    def now(self) -> int:
        """Virtual time in ns."""
        return self.cpu_clock_offset + (self._host() if self.running else 0)

    def start(self) -> None:
        """The machine runs. Idempotent."""
        if not self.running:
            host = self._host()
            self.cpu_ticks_offset -= host
            self.cpu_clock_offset -= host
            self.running = True

    def stop(self) -> None:
        """The machine is stopped. Idempotent."""
        if self.running:
            host = self._host()
            self.cpu_ticks_offset += host
            self.cpu_clock_offset += host
            self.running = False


def timer_description(profile: Profile) -> VMStateDescription:
    """Description of a `VirtualClock`, which must be stopped while it travels."""
    return VMStateDescription(
        "timer",
        version_id=2,
        minimum_version_id=1,
        fields=[
            int64("cpu_ticks_offset"),
            unused(8) if profile.facts.timer_hole else int64("dummy"),
            int64("cpu_clock_offset", version=2),
        ],
    )
