"""Two machines in one process, ready to migrate from one to the other."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qmig_e2k._core import Block
from qmig_e2k.testing.emulator import COUNTER, TinyEmulator
from qmig_e2k.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.migration.handle import Arrival

__all__ = ["Side", "pair"]


@dataclass
class Side:
    """One machine with its emulator and RAM."""

    vm: Vm
    emulator: TinyEmulator
    ram: Block

    def listen(self, uri: str = "tcp:127.0.0.1:0") -> tuple[str, Arrival]:
        """Wait for a migration; returns the URI for the source, with the port that was chosen, and the handle."""
        arrival = self.vm.incoming(uri)
        assert arrival is not None
        if uri.startswith("tcp:"):
            address = arrival.addresses[0]
            uri = f"tcp:{address['host']}:{address['port']}"
        return uri, arrival


def _side(machine: str, size: int, **options: Any) -> Side:
    ram = Block("ram" if machine == "none" else "e2k.ram", size)
    emulator = TinyEmulator(ram)
    vm = Vm(machine, emulator, **options)
    vm.add_ram(ram.name, buffer=ram)
    if machine != "none":
        vm.register(COUNTER, emulator)
    return Side(vm, emulator, ram)


@contextmanager
def pair(machine: str = "e2k", size: int = 1 << 20, **options: Any) -> Iterator[tuple[Side, Side]]:
    """Source and destination, neither running yet; both are stopped and closed at the end.

    Args:
        machine: machine type; on `none` the emulator's counter does not travel.
        size: bytes of RAM on either side.
        options: for `Vm`, on either side.
    """
    sides = _side(machine, size, **options), _side(machine, size, **options)
    try:
        yield sides
    finally:
        for side in sides:
            side.vm.close()
            side.emulator.failures.clear()
            side.emulator.stop()
