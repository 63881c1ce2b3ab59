"""`cpu_common`: what every QEMU CPU sends, whatever its architecture (spec/e2k-machine.md 2.2)."""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Preset
from qmig_e2k.e2k.hooks import after_load, before_save
from qmig_e2k.vmstate import VMStateDescription, bool_, int32, uint32

NO_EXCEPTION = -1
_INTERRUPT_EXIT = 0x01
"""A request bit that has had no meaning for long; old senders may still set it."""


class CpuCommon:
    """Generic part of a CPU.

    Attributes:
        index: CPU number, the instance id of its sections.
        halted: 1 while it waits to be started or woken.
        interrupt_request: pending requests, a bit each.
        exception_index: exception being delivered, -1: none.
        crash_occurred: the guest reported a crash.
    """

    def __init__(self, index: int) -> None:
        """A CPU in its reset state."""
        self.index = index
        self.reset()

    def reset(self) -> None:
        """Values after power-on: only the first CPU runs."""
        self.halted = int(self.index != 0)
        self.interrupt_request = 0
        self.exception_index = NO_EXCEPTION
        self.crash_occurred = False


def post_load(cpu: Any, version: int) -> object:
    """Forget what no longer means anything; flushing translations is the emulator's `after_load`."""
    cpu.interrupt_request &= ~_INTERRUPT_EXIT
    return after_load(cpu, version)


CPU_COMMON = VMStateDescription(
    "cpu_common",
    fields=[
        uint32("halted"),
        uint32("interrupt_request"),
        Preset("exception_index", lambda _: NO_EXCEPTION),
        Preset("crash_occurred", lambda _: False),
    ],
    pre_save=before_save,
    post_load=post_load,
    subsections=[
        VMStateDescription(
            "cpu_common/exception_index",
            fields=[int32("exception_index")],
            needed=lambda cpu: cpu.exception_index != NO_EXCEPTION,
        ),
        VMStateDescription(
            "cpu_common/crash_occurred",
            fields=[bool_("crash_occurred")],
            needed=lambda cpu: cpu.crash_occurred,
        ),
    ],
)
