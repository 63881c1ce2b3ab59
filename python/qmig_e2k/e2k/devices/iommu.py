"""IOMMU of one IO link, with the embedded units of some models (spec/e2k-machine.md 3.6)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.hooks import after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words64

log = logging.getLogger(__name__)

PRIORITY = 1
"""Behind the PCI buses, before all other devices: its notifiers must be there when they load."""
_MDL_E2C3 = 0x0C
"""The only model here with embedded units."""
_PAGE = 4096

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
        node, link: where it is; its instance id is node * 2 + link.
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

    def reset(self) -> None:
        """Values after power-on."""
        for group in _GROUPS:
            group.reset(self)


def _is_v6(iommu: Any) -> bool:
    return bool(iommu.model.isa >= 6)


def _has_embedded(iommu: Any) -> bool:
    return bool(iommu.model.mdl == _MDL_E2C3)


def _number(iommu: Any) -> int:
    """The instance id, which the texts name."""
    return int(iommu.node * 2 + getattr(iommu, "link", 0))


def check_v6(iommu: Iommu, _version: int) -> None:
    """post_load of `e2k-iommu/v6`: an older ISA has no such commands, and could not hand them on (G7)."""
    text = "iommu %d: subsection %s not valid for ISA v%u"
    require(_is_v6(iommu), "G7", text, _number(iommu), "e2k-iommu/v6", iommu.model.isa)


def check_edbc(iommu: Iommu, _version: int) -> None:
    """post_load of `e2k-iommu/edbc`."""
    _require_embedded(iommu, "e2k-iommu/edbc")


def check_embedded(iommu: Iommu, _version: int) -> None:
    """post_load of `e2k-iommu/embedded`."""
    _require_embedded(iommu, "e2k-iommu/embedded")


def _require_embedded(iommu: Iommu, name: str) -> None:
    text = "iommu %d: subsection %s not valid for CPU model %s"
    require(_has_embedded(iommu), "G7", text, _number(iommu), name, iommu.model.name)


def loaded(iommu: Iommu, version: int) -> object:
    """post_load: M01, M02.

    Dropping cached translations is the emulator's `after_load`.
    """
    number = _number(iommu)
    if _is_v6(iommu):
        for name in ("ptbar", "dtbar"):
            base = getattr(iommu, name)
            require(base >> iommu.model.physical_bits == 0, "M01", "iommu %d: bad table base", number, field=name)
            if base % _PAGE:
                log.debug("iommu %d: %s %#x is not aligned to a page", number, name, base)
    require(iommu.flush_pending == 0, "M02", "iommu %d: flush outstanding", number, field="flush_pending")
    return after_load(iommu, version)


IOMMU = VMStateDescription(
    "e2k-iommu",
    fields=BODY.FIELDS,
    pre_save=before_save,
    post_load=loaded,
    priority=PRIORITY,
    reads=("node", "model.isa"),
    may_read=("link",),
    subsections=[
        MON.subsection("e2k-iommu/mon"),
        V6.subsection("e2k-iommu/v6", when=_is_v6, post_load=check_v6),
        EDBC.subsection("e2k-iommu/edbc", when=_has_embedded, post_load=check_edbc),
        EMBEDDED.subsection("e2k-iommu/embedded", when=_has_embedded, post_load=check_embedded),
    ],
)
