"""Live migration for an emulated Elbrus-2000 machine, wire-compatible with QEMU."""

from typing import TYPE_CHECKING, Any

from qmig_e2k._core import Block as RamBlock
from qmig_e2k._core import MigrationError, StreamError, __version__

if TYPE_CHECKING:
    from qmig_e2k.vm import Vm

__all__ = ["MigrationError", "RamBlock", "StreamError", "Vm", "__version__"]


def __getattr__(name: str) -> Any:
    """`Vm`, imported when it is first used: it brings numpy, whose threads must not start before signals are masked."""
    if name != "Vm":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qmig_e2k.vm import Vm  # noqa: PLC0415  see above

    return Vm
