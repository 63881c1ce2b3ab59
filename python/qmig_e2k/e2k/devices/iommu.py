"""IOMMU of one IO link, with the embedded units of some models (spec/e2k-machine.md 3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words64

PRIORITY = 1
"""Behind the PCI buses, before all other devices: its notifiers must be there when they load."""
_MDL_E2C3 = 0x0C

BODY = Group(
    word("ctrl", uint32),
    word("ptbar", uint64),
    word("dtbar", uint64),
    word("err", uint64),
    word("err_info", uint64),
    word("flush_pending", uint32),
)
MON = Group(word("mcr", uint32), word("mid", uint32), words("mar", uint64, 2))
V6 = Group(word("cmd_c", uint64), word("cmd_d", uint64))
EDBC = Group(
    word("ctrl", uint32, attr="edbc_ctrl"),
    word("ba", uint64, attr="edbc_ba"),
    word("dtba", uint64, attr="edbc_dtba"),
    word("err", uint64, attr="edbc_err"),
    word("err_info", uint64, attr="edbc_err_info"),
)
EMBEDDED = Group(words("unit", uint64, 70))
_GROUPS = (BODY, MON, V6, EDBC, EMBEDDED)


class Iommu:
    """The IOMMU of one IO link.

    Attributes:
        model: CPU model.
        node, link: where it is; its instance id is `instance`, node * 2 + link.
        ctrl: translation enable and mode.
        ptbar, dtbar: page and device table base. Up to ISA v5 the halves of ptbar are two bases of their own.
        err, err_info: last fault.
        flush_pending: a flush under way; always 0 in an emulator that flushes at once.
        mcr, mid, mar: monitors.
        cmd_c, cmd_d: flush commands of ISA v6.
        edbc_*: the embedded devices' unit.
        unit: 7 embedded units of 10 words each (e2c3).
    """

    ctrl: int
    ptbar: int
    dtbar: int
    err: int
    err_info: int
    flush_pending: int
    mcr: int
    mid: int
    mar: Words64
    cmd_c: int
    cmd_d: int
    edbc_ctrl: int
    edbc_ba: int
    edbc_dtba: int
    edbc_err: int
    edbc_err_info: int
    unit: Words64

    def __init__(self, model: CpuModel, node: int = 0, link: int = 0) -> None:
        """The IOMMU of `link` at `node` in its reset state."""
        self.model = model
        self.node = node
        self.link = link
        self.reset()

    @property
    def instance(self) -> int:
        """Instance id of its section."""
        return self.node * 2 + self.link

    def reset(self) -> None:
        """Values after power-on."""
        for group in _GROUPS:
            group.reset(self)


def _is_v6(iommu: Any) -> bool:
    return bool(iommu.model.isa >= 6)


def _has_embedded(iommu: Any) -> bool:
    return bool(iommu.model.mdl == _MDL_E2C3)


IOMMU = VMStateDescription(
    "e2k-iommu",
    fields=BODY.FIELDS,
    priority=PRIORITY,
    subsections=[
        MON.subsection("e2k-iommu/mon"),
        V6.subsection("e2k-iommu/v6", when=_is_v6),
        EDBC.subsection("e2k-iommu/edbc", when=_has_embedded),
        EMBEDDED.subsection("e2k-iommu/embedded", when=_has_embedded),
    ],
)
