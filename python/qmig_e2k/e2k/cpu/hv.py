"""Hardware virtualization: shadow state of guest and host, and the intercept information.

A CPU that does not model it has zeros there, so that nothing travels. What is not zero travels whatever bit 24 of IDR
(hw_virt) says: no check of the specification ties the two together, so such a stream must be taken, and what was taken
must not be lost by the next save.
"""

from __future__ import annotations

from typing import Any

from qmig_e2k.e2k.cpu.parts import Part, array
from qmig_e2k.e2k.hooks import require
from qmig_e2k.e2k.registers import word, words
from qmig_e2k.vmstate import uint32, uint64


def _check(cpu: Any, _version: int) -> None:
    for count, name in ((cpu.intc_cu_num, "intc_info_cu"), (cpu.intc_mu_num, "intc_info_mu")):
        info = array(getattr(cpu, name))
        if count > len(info) or info[count:].any():
            require(False, "C36", "cpu %d: invalid intercept info", cpu.index, field=name)


HV = Part(
    "cpu/hv",
    words("hv_stacks", uint64, 8),
    word("sh_pshtp", uint64),
    word("sh_pcshtp", uint32),
    word("sh_wd", uint64),
    words("sh_oscud", uint64, 2),
    words("sh_osgd", uint64, 2),
    word("sh_oscutd", uint64),
    word("sh_oscuir", uint32),
    word("sh_osr0", uint64),
    word("sh_core_mode", uint32),
    words("virt_ctrl", uint64, 2),
    words("gid_gp_pptb", uint64, 2),
    words("sh_mmu", uint64, 5),
    word("intc_cu_num", uint32),
    words("intc_info_cu", uint64, 6),
    word("intc_mu_num", uint32),
    words("intc_info_mu", uint64, 77),
    word("g_preempt_tmr", uint64),
    since=6,
    check=_check,
)
