"""What is moved: a model guest of the core, without an interpreter lock, and memory that it leaves alone.

Its guest proves that no write was lost or doubled, the rest is compared byte for byte; and whoever starts it tells the
`Owner`, who knows at every moment that nobody else runs it.
"""

from __future__ import annotations

import random
import threading
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qmig_e2k import RamBlock
from qmig_e2k._core import ModelGuest
from qmig_e2k.vm import Vm
from qmig_e2k.vmstate import VMStateDescription, array, uint64

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
BUSY_PAGES = 48
STILL_PAGES = 32
RATE = 400_000
"""Steps a second: every page of the guest is written again within a few milliseconds."""
STEPS = 2
"""Register of a model guest that counts its steps."""
CPU = VMStateDescription("busy-cpu", version_id=1, fields=[array("registers", uint64, ModelGuest.REGISTERS)])


class Owner:
    """Who runs the machine, and who has its storage: nobody, or one side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has: dict[str, str] = {"storage": "source"}
        self.faults: list[str] = []

    def take(self, what: str, side: str) -> None:
        with self._lock:
            other = self._has.get(what)
            if other not in (None, side):
                self.faults.append(f"{side} takes the {what} that the {other} has")
            self._has[what] = side

    def has(self, what: str) -> str | None:
        with self._lock:
            return self._has.get(what)

    def drop(self, what: str, side: str) -> None:
        with self._lock:
            if self._has.get(what) == side:
                del self._has[what]


class Busy:
    """The emulator of one side."""

    def __init__(self, side: str, owner: Owner, ram: RamBlock) -> None:
        self.side = side
        self._owner = owner
        self.guest = ModelGuest(ram, f"random,rate={RATE}", seed=7)
        self.registers = self.guest.registers(0)

    @property
    def steps(self) -> int:
        return self.guest.steps()

    def start(self) -> None:
        self._owner.take("machine", self.side)
        self.guest.set_registers(0, self.registers)
        self.guest.start()

    def stop(self) -> None:
        self.guest.stop()
        self.registers = self.guest.registers(0)
        self._owner.drop("machine", self.side)

    def rest(self) -> None:
        """Do no more steps, though the machine runs on."""
        self.guest.stop()
        self.registers = self.guest.registers(0)

    def inactivate_storage(self) -> None:
        self._owner.drop("storage", self.side)

    def activate_storage(self) -> None:
        self._owner.take("storage", self.side)


class Side:
    """One machine: `vm`, its emulator, and the memory that stays as it was."""

    def __init__(self, name: str, owner: Owner, still: bytes | None) -> None:
        self.ram = RamBlock("e2k.ram", BUSY_PAGES * PAGE)
        self.still = RamBlock("still", STILL_PAGES * PAGE)
        if still is not None:
            self.still.write(0, still)
        self.emulator = Busy(name, owner, self.ram)
        self.vm = Vm("e2k", self.emulator)
        for block in (self.ram, self.still):
            self.vm.add_ram(block.name, buffer=block)
        self.vm.register(CPU, self.emulator)

    def wrong(self, still: int, at_least: int) -> str | None:
        """What is wrong with the memory of this machine, which stands still: None if nothing is.

        Args:
            still: checksum of what was in the memory that nobody writes.
            at_least: steps that the guest had done before.
        """
        self.emulator.guest.set_registers(0, self.emulator.registers)  # it may have arrived and never run
        steps, equal, where = self.emulator.guest.verify()
        if not equal:
            return f"the guest's memory differs at {where:#x} after {steps} steps"
        if steps < at_least:
            return f"the guest has done {steps} steps, and had done {at_least}"
        if zlib.crc32(self.still.read(0, self.still.size)) != still:
            return "memory that nobody writes has changed"
        return None

    def close(self) -> None:
        self.vm.close()
        if (arrival := self.vm.machine.arrival) is not None:
            arrival._source.let_go()  # a guest that waits for a page that will never come
        self.emulator.guest.stop()


def still_content(seed: int) -> bytes:
    """Noise, text, constants and zeros, page by page."""
    numbers = random.Random(seed)
    makers = (
        numbers.randbytes,
        lambda n: (b"the quick brown fox %d " % numbers.getrandbits(20) * n)[:n],
        lambda n: b"\x5a" * n,
        bytes,
    )
    return b"".join(makers[page % len(makers)](PAGE) for page in range(STILL_PAGES))


@contextmanager
def sides(seed: int = 1) -> Iterator[tuple[Side, Side, Owner, int]]:
    """Source and destination, their owner, and the checksum of the memory that nobody writes."""
    owner, content = Owner(), still_content(seed)
    both = Side("source", owner, content), Side("destination", owner, None)
    try:
        yield *both, owner, zlib.crc32(content)
    finally:
        for side in both:
            side.close()
