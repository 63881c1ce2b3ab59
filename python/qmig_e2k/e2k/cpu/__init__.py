"""The e2k CPU: one file per group of registers, each with its fields, reset values and load checks.

Registers hold raw architectural words; arrays are numpy arrays whose identity never changes. The order of the groups
in `GROUPS` is the order on the wire. Layout: spec/e2k-machine.md 2.

The hooks use only attributes: every register under the name of its field (but the field `tags` is `reg_tags`), and
`index`, `model` (a `CpuModel`) and `tags` (whether there are any). Any object that has them can be saved and loaded.
"""

from qmig_e2k.e2k.cpu.common import CPU_COMMON, CpuCommon
from qmig_e2k.e2k.cpu.state import CPU, GROUPS, Cpu

__all__ = ["CPU", "CPU_COMMON", "GROUPS", "Cpu", "CpuCommon"]
