"""Live migration for an emulated Elbrus-2000 machine, wire-compatible with QEMU."""

from qmig_e2k._core import Block as RamBlock
from qmig_e2k._core import MigrationError, StreamError, __version__
from qmig_e2k.vm import Vm

__all__ = ["MigrationError", "RamBlock", "StreamError", "Vm", "__version__"]
