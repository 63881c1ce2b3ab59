"""The e2k CPU: one file per group of registers, each with its fields, reset values and load checks.

Registers hold raw architectural words; arrays are numpy arrays whose identity never changes. The order of the groups
here is the order on the wire. Layout: spec/e2k-machine.md 2.
"""

from qmig_e2k.e2k.cpu.common import CPU_COMMON, CpuCommon
from qmig_e2k.e2k.cpu.state import CPU, Cpu

__all__ = ["CPU", "CPU_COMMON", "Cpu", "CpuCommon"]
