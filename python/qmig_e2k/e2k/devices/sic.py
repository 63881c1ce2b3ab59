"""System interface controller of one node: routing, links, memory controllers, power (spec/e2k-machine.md 3.5).

Registers are raw words. A subsection's registers have its name as a prefix where the bare name is another's too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.devices.controllers import first_with
from qmig_e2k.e2k.hooks import CheckError, after_load, before_save, require
from qmig_e2k.e2k.registers import Group, word, words
from qmig_e2k.vmstate import VMStateDescription, uint32, uint64

if TYPE_CHECKING:
    from qmig_e2k.e2k.models import CpuModel
    from qmig_e2k.e2k.registers import Words32, Words64

log = logging.getLogger(__name__)

NODES = 4
"""Nodes that a routing table has room for."""
MC_WORDS = 192

_ROUTES = (("rt_mlo", 0x07FF_07FF), ("rt_pcim", 0x07FF_07FF), ("rt_pciio", 0x0FFF_0FFF))
"""Routing words and their unused bits."""
_PCICFGB_UNUSED = 0xFFE0_0007
_MSI_WINDOW = 1 << 20
"""Size of the MSI window in bytes; it begins at a multiple."""

BODY = Group(
    words("rt_lcfg", uint32, NODES, reset=(0xB, 0x30, 0x30, 0x30)),
    words("rt_mhi", uint32, NODES, reset=0x0000_FFFF),
    words("rt_mlo", uint32, NODES, reset=0x0000_F800),
    words("rt_pcim", uint32, NODES, reset=0x0000_F800),
    words("rt_pciio", uint32, NODES, reset=0x0000_F000),
    words("rt_pcimp_b", uint32, NODES, reset=0xFFFF_FFFF),
    words("rt_pcimp_e", uint32, NODES),
    word("rt_pcicfgb", uint32, reset=0x40),
    word("rt_msi", uint64),
    word("rt_ln", uint32),
    words("rt_ioapic", uint32, NODES),
    word("rt_ioapicintb", uint32),
    word("rt_pcicfged", uint32),
    word("rt_lapicintb", uint32),
    word("st_p", uint32),
    words("st_core", uint32, 16),
    word("pwr_mgr", uint32),
    word("io_vid", uint32),
    word("io_csr", uint32),
    word("io_str", uint32),
    word("iol_csr", uint32),
)
PREPIC = Group(
    word("ctrl", uint32, attr="prepic_ctrl"),
    word("id", uint32, attr="prepic_id"),
    word("ctrl2", uint32, attr="prepic_ctrl2"),
    word("err_stat", uint32, attr="prepic_err_stat"),
    word("err_int", uint32, attr="prepic_err_int"),
    word("err_msg", uint64, attr="prepic_err_msg"),
    word("mcr", uint32, attr="prepic_mcr"),
    word("mid", uint32, attr="prepic_mid"),
    words("mar", uint64, 2, attr="prepic_mar"),
    words("linp", uint32, 6, attr="prepic_linp"),
)
HC = Group(
    word("hc_ctrl", uint32),
    word("hc_mcr", uint32),
    word("hc_mid", uint32),
    words("hc_mar", uint64, 2),
    word("ioapic_eoi", uint32),
)
MC = Group(words("mc", uint32, MC_WORDS))
HMU = Group(words("hmu", uint32, 57))
IC = Group(words("ir", uint32, 2, attr="ic_ir"), words("mr", uint32, 2, attr="ic_mr"))
MON = Group(
    word("sccfg", uint32),
    word("sic_mcr", uint32),
    words("sic_mar", uint64, 2),
    word("sic_int", uint32),
)
PCS = Group(words("pcs_ctrl", uint32, 10))
BC = Group(words("bc", uint32, 31))
RDMA = Group(word("vid", uint32, attr="rdma_vid"), word("cs", uint32, attr="rdma_cs"))
IPCC = Group(words("csr", uint32, 3, attr="ipcc_csr"), words("str", uint32, 3, attr="ipcc_str"))
PMC = Group(
    word("freq_cfg", uint32),
    word("freq_steps", uint32),
    word("freq_c2", uint32),
    words("core_ctrl", uint32, 16),
    words("core_sleep", uint32, 16),
)
L3 = Group(word("l3_ctrl", uint32, reset=0x3F_00F8), words("l3", uint32, 8))
LINK1 = Group(
    words("rt_ioapic", uint32, NODES, attr="link1_rt_ioapic"),
    word("io_vid", uint32, attr="link1_io_vid"),
    word("io_csr", uint32, attr="link1_io_csr"),
    word("io_str", uint32, attr="link1_io_str"),
    word("iol_csr", uint32, attr="link1_iol_csr"),
    word("rdma_vid", uint32, attr="link1_rdma_vid"),
    word("rdma_cs", uint32, attr="link1_rdma_cs"),
)
_GROUPS = (BODY, PREPIC, HC, MC, HMU, IC, MON, PCS, BC, RDMA, IPCC, PMC, L3, LINK1)


class Sic:
    """The SIC of one node.

    Attributes:
        node: its node, the instance id.
        model: CPU model.
        nodes: nodes of the machine; more than one: `e2k-sic/ipcc` travels.
        links: IO links of the node; two: `e2k-sic/link1` travels.
        rt_lcfg: link configuration of each node.
        rt_mhi: high memory of each node, begin 15:0, end 31:16 in 4 GiB.
        rt_mlo, rt_pcim: low memory and PCI memory, begin 15:11, end 31:27 in 128 MiB.
        rt_pciio: PCI ports, begin 15:12, end 31:28 in 4 KiB.
        rt_pcimp_b, rt_pcimp_e: prefetchable PCI memory.
        rt_pcicfgb: PCI configuration space, begin 20:3 in 1 GiB.
        rt_msi: address of the MSI window.
        rt_ln, rt_ioapic, rt_ioapicintb, rt_pcicfged, rt_lapicintb: other routing.
        st_p, st_core, pwr_mgr: state of node and cores, power.
        io_vid, io_csr, io_str, iol_csr: IO link.
        prepic_*: PREPIC; `prepic_linp` is the node's own interrupt lines.
        hc_*, ioapic_eoi: host controller.
        mc: memory controllers, their words one controller after the other.
        hmu: home memory units (ISA v6).
        ic_*, sccfg, sic_mcr, sic_mar, sic_int: interrupts and monitors of the SIC itself.
        pcs_ctrl, bc, rdma_*: clocks, buffer controller, RDMA.
        ipcc_csr, ipcc_str: links to other processors.
        freq_*, core_ctrl, core_sleep: power management controller.
        l3_ctrl, l3: L3 cache.
        link1_*: second IO link.
    """

    rt_lcfg: Words32
    rt_mhi: Words32
    rt_mlo: Words32
    rt_pcim: Words32
    rt_pciio: Words32
    rt_pcimp_b: Words32
    rt_pcimp_e: Words32
    rt_pcicfgb: int
    rt_msi: int
    rt_ln: int
    rt_ioapic: Words32
    rt_ioapicintb: int
    rt_pcicfged: int
    rt_lapicintb: int
    st_p: int
    st_core: Words32
    pwr_mgr: int
    io_vid: int
    io_csr: int
    io_str: int
    iol_csr: int
    prepic_ctrl: int
    prepic_id: int
    prepic_ctrl2: int
    prepic_err_stat: int
    prepic_err_int: int
    prepic_err_msg: int
    prepic_mcr: int
    prepic_mid: int
    prepic_mar: Words64
    prepic_linp: Words32
    hc_ctrl: int
    hc_mcr: int
    hc_mid: int
    hc_mar: Words64
    ioapic_eoi: int
    mc: Words32
    hmu: Words32
    ic_ir: Words32
    ic_mr: Words32
    sccfg: int
    sic_mcr: int
    sic_mar: Words64
    sic_int: int
    pcs_ctrl: Words32
    bc: Words32
    rdma_vid: int
    rdma_cs: int
    ipcc_csr: Words32
    ipcc_str: Words32
    freq_cfg: int
    freq_steps: int
    freq_c2: int
    core_ctrl: Words32
    core_sleep: Words32
    l3_ctrl: int
    l3: Words32
    link1_rt_ioapic: Words32
    link1_io_vid: int
    link1_io_csr: int
    link1_io_str: int
    link1_iol_csr: int
    link1_rdma_vid: int
    link1_rdma_cs: int

    def __init__(self, model: CpuModel, node: int = 0, *, nodes: int = 1, links: int = 1) -> None:
        """The SIC of `node` in its reset state."""
        self.model = model
        self.node = node
        self.nodes = nodes
        self.links = links
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        for group in _GROUPS:
            group.reset(self)


def _has_hmu(sic: Any) -> bool:
    return bool(sic.model.isa >= 6)


def _has_neighbours(sic: Any) -> bool:
    return bool(getattr(sic, "nodes", 1) > 1)


def _has_link1(sic: Any) -> bool:
    return bool(getattr(sic, "links", 1) > 1)


def memory_controller_words(model: CpuModel) -> int:
    """How many of the words in `mc` a model has: one block for all up to ISA v5, one for each controller since v6."""
    return model.mc_block * (model.mc_count if model.isa >= 6 else 1) // 4


def check_mc(sic: Sic, _version: int) -> None:
    """post_load of `e2k-sic/mc`: S02."""
    have = memory_controller_words(sic.model)
    beyond = first_with(sic.mc[have:], 0xFFFF_FFFF)
    if beyond is not None:
        index = have + beyond
        text = f"sic {sic.node}: memory controller word {index} not present"
        raise CheckError("S02", text, f"mc[{index}]")


def check_hmu(sic: Sic, _version: int) -> None:
    """post_load of `e2k-sic/hmu`: an older ISA has none, and could not hand it on (G7)."""
    text = "sic %d: subsection %s not valid for ISA v%u"
    require(_has_hmu(sic), "G7", text, sic.node, "e2k-sic/hmu", sic.model.isa)


def check_ipcc(sic: Sic, _version: int) -> None:
    """post_load of `e2k-sic/ipcc`: one node alone has no neighbours."""
    require(_has_neighbours(sic), "G7", "sic %d: subsection %s not valid for one node", sic.node, "e2k-sic/ipcc")


def check_link1(sic: Sic, _version: int) -> None:
    """post_load of `e2k-sic/link1`: there must be a second link."""
    require(_has_link1(sic), "G7", "sic %d: subsection %s not valid for one IO link", sic.node, "e2k-sic/link1")


def _trace_overlaps(sic: Sic) -> None:
    """S04, soft: a window of PCI memory that lies over one of low RAM."""
    ram, pci = (
        [(word >> 11 & 0x1F, word >> 27) for word in map(int, words) if word >> 11 & 0x1F <= word >> 27]
        for words in (sic.rt_mlo, sic.rt_pcim)
    )
    for begin, end in pci:
        if any(begin <= ram_end and ram_begin <= end for ram_begin, ram_end in ram):
            log.debug("sic %d: PCI memory at %#x overlaps RAM", sic.node, begin << 27)


def loaded(sic: Sic, version: int) -> object:
    """post_load: S01, S03, S04.

    Moving the windows of PCI and MSI, where a model lets them move, is the emulator's `after_load`.
    """
    reserved = "sic %d: reserved bits in %s"
    for name, unused in _ROUTES:
        index = first_with(getattr(sic, name), unused)
        if index is not None:
            raise CheckError("S01", reserved % (sic.node, name), f"{name}[{index}]")
    require(sic.rt_pcicfgb & _PCICFGB_UNUSED == 0, "S01", reserved, sic.node, "rt_pcicfgb", field="rt_pcicfgb")
    require(sic.rt_msi % _MSI_WINDOW == 0, "S03", "sic %d: bad MSI window", sic.node, field="rt_msi")
    if log.isEnabledFor(logging.DEBUG):
        _trace_overlaps(sic)
    return after_load(sic, version)


SIC = VMStateDescription(
    "e2k-sic",
    fields=BODY.FIELDS,
    pre_save=before_save,
    post_load=loaded,
    reads=("node", "model.isa"),
    may_read=("nodes", "links"),
    subsections=[
        PREPIC.subsection("e2k-sic/prepic"),
        HC.subsection("e2k-sic/hc"),
        MC.subsection("e2k-sic/mc", post_load=check_mc),
        HMU.subsection("e2k-sic/hmu", when=_has_hmu, post_load=check_hmu),
        IC.subsection("e2k-sic/ic"),
        MON.subsection("e2k-sic/mon"),
        PCS.subsection("e2k-sic/pcs"),
        BC.subsection("e2k-sic/bc"),
        RDMA.subsection("e2k-sic/rdma"),
        VMStateDescription("e2k-sic/ipcc", fields=IPCC.FIELDS, needed=_has_neighbours, post_load=check_ipcc),
        PMC.subsection("e2k-sic/pmc"),
        L3.subsection("e2k-sic/l3"),
        VMStateDescription("e2k-sic/link1", fields=LINK1.FIELDS, needed=_has_link1, post_load=check_link1),
    ],
)
