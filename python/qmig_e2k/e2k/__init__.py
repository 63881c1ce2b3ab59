"""The e2k machine: CPU, devices and machine types."""

from qmig_e2k.e2k.full import OPTIONS, Device
from qmig_e2k.e2k.machines import ALIASES, MACHINE_TYPES, BlockSpec, Machine, build, resolve
from qmig_e2k.e2k.models import MODELS, CpuModel

__all__ = [
    "ALIASES",
    "MACHINE_TYPES",
    "MODELS",
    "OPTIONS",
    "BlockSpec",
    "CpuModel",
    "Device",
    "Machine",
    "build",
    "resolve",
]
