"""Every load check of the CPU is provoked exactly: one value of a legal stream changes, one code comes back.

spec/e2k-machine.md 2.6.2.
"""

from __future__ import annotations

import logging

import pytest

from cpu_streams import changed, cpu, load, refusal, save, split, values
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.testing.cpu_state import fill

Edit = tuple[str, str, int, int]
BAD_SEGMENT, BAD_STACK, BAD_USER = 1 << 57, 1 << 48, 1 << 57


def edit(field: str, value: int, index: int = 0, name: str = "cpu") -> Edit:
    return (name, field, index, value)


HARD: list[tuple[str, str, str, str, list[Edit]]] = [
    # code, model, text after "cpu 1: ", path after "cpu/1", changes
    ("C01", "e8c", "ISA v5 in stream, model is v4", "/isa", [edit("isa", 5)]),
    ("C02", "e8c", "IDR 0xa208 does not match 0xa207", "/idr", [edit("idr", 0xA208)]),
    ("C02", "e8c", "IDR 0x2207 does not match 0xa207", "/idr", [edit("idr", 0x2207)]),
    ("C02", "e8c", "IDR 0x10a207 does not match 0xa207", "/idr", [edit("idr", 0x10A207)]),
    ("C02", "e8c", "IDR 0x2000a207 does not match 0xa207", "/idr", [edit("idr", 0x2000A207)]),
    ("C04", "e8c", "register file form 1 not supported", "/rf_form", [edit("rf_form", 1)]),
    ("C04", "e8c", "register file form 2 not supported", "/rf_form", [edit("rf_form", 2)]),
    ("C05", "e8c", "bad instruction address 0x1000000000000", "/ip", [edit("ip", 1 << 48)]),
    ("C05", "e8c", "bad instruction address 0x4", "/nip", [edit("nip", 4)]),
    ("C06", "e8c", "reserved bits in PSR", "/psr", [edit("psr", 0x80)]),
    ("C07", "e8c", "reserved bits in UPSR", "/upsr", [edit("upsr", 0x800)]),
    ("C07", "e2c+", "reserved bits in UPSR", "/upsr", [edit("upsr", 0x100)]),
    ("C08", "e2c+", "reserved bits in CORE_MODE", "/core_mode", [edit("core_mode", 2)]),
    ("C08", "e2s", "reserved bits in CORE_MODE", "/core_mode", [edit("core_mode", 0x20)]),
    ("C08", "e8c", "reserved bits in CORE_MODE", "/core_mode", [edit("core_mode", 1)]),
    ("C08", "e8c2", "reserved bits in CORE_MODE", "/core_mode", [edit("core_mode", 0x40)]),
    ("C08", "e16c", "reserved bits in CORE_MODE", "/core_mode", [edit("core_mode", 0x80)]),
    ("C08", "v7", "reserved bits in CORE_MODE", "/core_mode", [edit("core_mode", 0x200)]),
    ("C09", "e8c", "window out of range (base 0 size 1792 psize 1808)", "/wd", [edit("wd", 0x700 << 16 | 0x710 << 32)]),
    ("C09", "e8c", "window out of range (base 0 size 1800 psize 0)", "/wd", [edit("wd", 0x708 << 16)]),
    ("C09", "e8c", "window out of range (base 0 size 1808 psize 0)", "/wd", [edit("wd", 0x710 << 16)]),
    ("C09", "e8c", "window out of range (base 1792 size 0 psize 0)", "/wd", [edit("wd", 0x700)]),
    ("C09", "e8c", "window out of range (base 0 size 16 psize 0)", "/wd", [edit("wd", 1 << 11 | 1 << 20)]),
    ("C09", "e8c", "window out of range (base 0 size 0 psize 0)", "/wd", [edit("wd", 1 << 50)]),
    ("C10", "e8c", "dirty windows in normal form", "", [edit("wd", 16 | 0x100 << 16)]),
    ("C10", "e8c", "dirty windows in normal form", "", [edit("pshtp", 1)]),
    ("C10", "e8c", "dirty windows in normal form", "", [edit("pcshtp", 1)]),
    ("C10", "e8c", "dirty windows in normal form", "", [edit("cwd", 1)]),
    ("C11", "e8c", "based register window outside register file", "/br", [edit("br", 3 << 6 | 4 << 12)]),
    ("C11", "e8c", "based register window outside register file", "/br", [edit("br", 2 << 18 | 3 << 23)]),
    ("C11", "e8c", "based register window outside register file", "/br", [edit("br", 63 | 49 << 6)]),
    ("C11", "e8c", "based register window outside register file", "/br", [edit("br", 1 << 28)]),
    ("C13", "e8c", "reserved bits in BGR", "/bgr", [edit("bgr", 0x800)]),
    ("C14", "e8c", "bad stack descriptor", "/psp_lo", [edit("psp_lo", BAD_STACK)]),
    ("C14", "e8c", "bad stack descriptor", "/pcsp_lo", [edit("pcsp_lo", 1 << 55)]),
    ("C15", "e8c", "PSP index 0x1020 beyond size 0x1000", "/psp_hi", [edit("psp_hi", 0x1000 << 32 | 0x1020)]),
    ("C15", "e8c", "PCSP index 0x20 beyond size 0x0", "/pcsp_hi", [edit("pcsp_hi", 0x20)]),
    ("C16", "e8c", "PSP index 0x8 misaligned", "/psp_hi", [edit("psp_hi", 0x1000 << 32 | 8)]),
    ("C16", "e8c", "PCSP index 0x10 misaligned", "/pcsp_hi", [edit("pcsp_hi", 0x1000 << 32 | 16)]),
    ("C18", "e8c", "bad user stack descriptor", "/usd_lo", [edit("usd_lo", BAD_USER)]),
    ("C18", "e8c", "bad user stack descriptor", "/usd_hi", [edit("usd_hi", 8 << 32)]),
    ("C20", "e8c", "reserved bits in CUD", "/cud[0]", [edit("cud", BAD_SEGMENT)]),
    ("C20", "e8c", "reserved bits in GD", "/gd[0]", [edit("gd", 1 << 63)]),
    ("C20", "e8c", "reserved bits in OSCUD", "/oscud[0]", [edit("oscud", 1 << 48)]),
    ("C20", "e8c", "reserved bits in OSGD", "/osgd[0]", [edit("osgd", 1 << 61)]),
    *(
        (
            "C20",
            "e8c",
            f"reserved bits in {name}",
            f"/cpu/segments.seg[{2 * i}]",
            [edit("seg", 1 << 57, 2 * i, "cpu/segments")],
        )
        for i, name in enumerate(("CS", "DS", "ES", "FS", "GS", "SS"))
    ),
    ("C21", "e8c", "reserved bits in CUIR", "/cuir", [edit("cuir", 0x20000)]),
    ("C21", "e8c", "reserved bits in TR", "/tr", [edit("tr", 0x8000)]),
    ("C21", "e8c", "reserved bits in TSD", "/tsd", [edit("tsd", 1 << 15)]),
    ("C21", "e8c", "reserved bits in CUTD", "/cutd", [edit("cutd", 16)]),
    ("C21", "e8c", "reserved bits in CUTD", "/cutd", [edit("cutd", 1 << 48)]),
    ("C22", "e8c", "reserved bits in loop registers", "/lsr", [edit("lsr", 1 << 61)]),
    ("C22", "e8c", "reserved bits in loop registers", "/ilcr", [edit("ilcr", 1 << 37)]),
    ("C23", "e8c", "CTPR1 invalid (tag 6 opc 0)", "/ctpr[0]", [edit("ctpr", 6 << 54)]),
    ("C23", "e8c", "CTPR2 invalid (tag 0 opc 2)", "/ctpr[1]", [edit("ctpr", 2 << 57, 1)]),
    ("C23", "e8c", "CTPR3 invalid (tag 5 opc 3)", "/ctpr[2]", [edit("ctpr", 1 << 48 | 5 << 54 | 3 << 57, 2)]),
    ("C24", "e8c", "invalid FP control word", "/cpu/fp.pfpfr", [edit("pfpfr", 1 << 6, 0, "cpu/fp")]),
    ("C24", "e8c", "invalid FP control word", "/cpu/fp.pfpfr", [edit("pfpfr", 1 << 25, 0, "cpu/fp")]),
    ("C24", "e8c", "invalid FP control word", "/cpu/fp.fpcr", [edit("fpcr", 0x033F, 0, "cpu/fp")]),
    ("C24", "e8c", "invalid FP control word", "/cpu/fp.fpcr", [edit("fpcr", 0x017F, 0, "cpu/fp")]),
    ("C24", "e8c", "invalid FP control word", "/cpu/fp.fpcr", [edit("fpcr", 0x1037F, 0, "cpu/fp")]),
    ("C24", "e8c", "invalid FP control word", "/cpu/fp.fpsr", [edit("fpsr", 0x10000, 0, "cpu/fp")]),
    ("C25", "e8c", "subsection cpu/tags not valid for ISA v4", "/cpu/tags.tags", [edit("tags", 0x10, 9, "cpu/tags")]),
    ("C25", "e8c", "subsection cpu/qp_hi not valid for ISA v4", "/cpu/qp_hi", [edit("regs_hi", 0, 0, "cpu/qp_hi")]),
    ("C25", "e8c2", "subsection cpu/fx_ext not valid for ISA v5", "/cpu/fx_ext", [edit("fx", 0, 0, "cpu/fx_ext")]),
    ("C27", "e8c", "invalid AASR 0x10", "/cpu/aau.aasr", [edit("aasr", 0x10, 0, "cpu/aau")]),
    ("C27", "e8c", "invalid AASR 0x400", "/cpu/aau.aasr", [edit("aasr", 0x400, 0, "cpu/aau")]),
    ("C27", "e8c", "invalid AASR 0x100", "/cpu/aau.aasr", [edit("aasr", 2 << 7, 0, "cpu/aau")]),
    ("C27", "e8c", "invalid AASR 0x380", "/cpu/aau.aasr", [edit("aasr", 7 << 7, 0, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD0", "/cpu/aau.aad[0]", [edit("aad", 3 << 54, 0, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD31", "/cpu/aau.aad[62]", [edit("aad", 7 << 54, 62, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD5", "/cpu/aau.aad[10]", [edit("aad", 1 << 53, 10, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD5", "/cpu/aau.aad[10]", [edit("aad", 1 << 61, 10, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD15", "/cpu/aau.aasti[15]", [edit("aasti", 1 << 32, 15, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD2", "/cpu/aau.aaind[2]", [edit("aaind", 1 << 63, 2, "cpu/aau")]),
    ("C28", "e8c", "invalid AAD7", "/cpu/aau.aaincr[7]", [edit("aaincr", 1 << 40, 7, "cpu/aau")]),
    ("C29", "e8c", "invalid AAU state", "/cpu/aau.aaincr[0]", [edit("aaincr", 2, 0, "cpu/aau")]),
    ("C29", "e8c", "invalid AAU state", "/cpu/aau.aalda[63]", [edit("aalda", 8, 63, "cpu/aau")]),
    ("C29", "e8c", "invalid AAU state", "/cpu/aau.aalda[0]", [edit("aalda", 0x80, 0, "cpu/aau")]),
    ("C30", "e8c", "inconsistent prefetch area 0", "/cpu/aau_prefetch", [edit("instr", 1, 0, "cpu/aau_prefetch")]),
    (
        "C30",
        "e8c",
        "inconsistent prefetch area 63",
        "/cpu/aau_prefetch",
        [edit("instr", 0, 63, "cpu/aau_prefetch"), edit("cdi", 1, 63, "cpu/aau_prefetch")],
    ),
    (
        "C30",
        "e8c",
        "inconsistent prefetch area 7",
        "/cpu/aau_prefetch",
        [
            edit("instr", 0, 7, "cpu/aau_prefetch"),
            edit("cdi", 0, 7, "cpu/aau_prefetch"),
            edit("ldi", 1, 7, "cpu/aau_prefetch"),
        ],
    ),
    (
        "C30",
        "e8c",
        "inconsistent prefetch area 9",
        "/cpu/aau_prefetch",
        [edit("instr", 1 << 25, 9, "cpu/aau_prefetch"), edit("ldi", 1 << 32, 9, "cpu/aau_prefetch")],
    ),
    ("C31", "e8c", "invalid trap info", "/cpu/trap.nr_tirs", [edit("nr_tirs", -2, 0, "cpu/trap")]),
    ("C31", "e8c", "invalid trap info", "/cpu/trap.nr_tirs", [edit("nr_tirs", 19, 0, "cpu/trap")]),
    ("C31", "e8c", "invalid trap info", "/cpu/trap.sbbp_pos", [edit("sbbp_pos", 32, 0, "cpu/trap")]),
    ("C31", "e8c", "invalid trap info", "/cpu/trap.tir_hi[4]", [edit("tir_hi", 5 << 56, 4, "cpu/trap")]),
    ("C31", "e8c", "invalid trap info", "/cpu/trap.tir_hi[4]", [edit("tir_hi", 4 << 56 | 1 << 50, 4, "cpu/trap")]),
    ("C31", "e8c", "invalid trap info", "/cpu/trap.tir_hi[18]", [edit("nr_tirs", 17, 0, "cpu/trap")]),
    (
        "C31",
        "e8c",
        "invalid trap info",
        "/cpu/trap.tir_lo[18]",
        [edit("nr_tirs", 17, 0, "cpu/trap"), edit("tir_hi", 0, 18, "cpu/trap")],
    ),
    ("C32", "e8c", "invalid MMU register PID", "/cpu/mmu.pid", [edit("pid", 0x1000, 0, "cpu/mmu")]),
    ("C32", "e8c", "invalid MMU register U_PPTB", "/cpu/mmu.u_pptb", [edit("u_pptb", 0x800, 0, "cpu/mmu")]),
    ("C32", "e8c", "invalid MMU register U_PPTB", "/cpu/mmu.u_pptb", [edit("u_pptb", 1 << 40, 0, "cpu/mmu")]),
    ("C32", "e16c", "invalid MMU register U_PPTB", "/cpu/mmu.u_pptb", [edit("u_pptb", 1 << 48, 0, "cpu/mmu")]),
    ("C32", "e8c", "invalid MMU register TRAP_POINT", "/cpu/mmu.trap_point", [edit("trap_point", 256, 0, "cpu/mmu")]),
    ("C32", "e16c", "invalid MMU register TRAP_POINT", "/cpu/mmu.trap_point", [edit("trap_point", 512, 0, "cpu/mmu")]),
    ("C32", "e8c", "invalid MMU register TRAP_COUNT", "/cpu/mmu.trap_count", [edit("trap_count", 4, 0, "cpu/mmu")]),
    ("C32", "e8c", "invalid MMU register TRAP_COUNT", "/cpu/mmu.trap_count", [edit("trap_count", 33, 0, "cpu/mmu")]),
    ("C32", "e16c", "invalid MMU register OS_PPTB", "/cpu/mmu_v6.os_pptb", [edit("os_pptb", 8, 0, "cpu/mmu_v6")]),
    ("C32", "e16c", "invalid MMU register OS_PPTB", "/cpu/mmu_v6.os_pptb", [edit("os_pptb", 1 << 48, 0, "cpu/mmu_v6")]),
    ("C33", "e8c", "reserved bits in MMU_CR", "/cpu/mmu.cr", [edit("cr", 0x10000, 0, "cpu/mmu")]),
    ("C34", "e8c", "invalid DAM entry 31", "/cpu/dam.dam[31]", [edit("dam", 1 << 59, 31, "cpu/dam")]),
    ("C35", "e8c", "invalid debug register", "/cpu/debug.dibcr", [edit("dibcr", 0x1000, 0, "cpu/debug")]),
    ("C35", "e16c", "invalid debug register", "/cpu/debug.dibsr", [edit("dibsr", 0x200, 0, "cpu/debug")]),
    ("C35", "v7", "invalid debug register", "/cpu/debug.dibsr", [edit("dibsr", 0x1000, 0, "cpu/debug")]),
    ("C35", "e16c", "invalid debug register", "/cpu/monitors.dimtp[0]", [edit("dimtp", 16, 0, "cpu/monitors")]),
    ("C36", "e16c", "invalid intercept info", "/cpu/hv.intc_info_cu", [edit("intc_cu_num", 7, 0, "cpu/hv")]),
    ("C36", "e16c", "invalid intercept info", "/cpu/hv.intc_info_cu", [edit("intc_cu_num", 5, 0, "cpu/hv")]),
    ("C36", "e16c", "invalid intercept info", "/cpu/hv.intc_info_mu", [edit("intc_mu_num", 78, 0, "cpu/hv")]),
    ("C36", "e16c", "invalid intercept info", "/cpu/hv.intc_info_mu", [edit("intc_mu_num", 0, 0, "cpu/hv")]),
    ("C37", "e8c", "subsection cpu/loop64 not valid for ISA v4", "/cpu/loop64", [edit("lsr1", 0, 0, "cpu/loop64")]),
    (
        "C37",
        "e8c2",
        "subsection cpu/ctpr_hi not valid for ISA v5",
        "/cpu/ctpr_hi",
        [edit("ctpr_hi", 0, 0, "cpu/ctpr_hi")],
    ),
    ("C37", "e8c2", "subsection cpu/mmu_v6 not valid for ISA v5", "/cpu/mmu_v6", [edit("os_vab", 0, 0, "cpu/mmu_v6")]),
    ("C37", "e8c2", "subsection cpu/os_v6 not valid for ISA v5", "/cpu/os_v6", [edit("oscuir", 0, 0, "cpu/os_v6")]),
    ("C37", "e8c2", "subsection cpu/hv not valid for ISA v5", "/cpu/hv", [edit("sh_wd", 0, 0, "cpu/hv")]),
    ("C37", "e16c", "subsection cpu/v7 not valid for ISA v6", "/cpu/v7", [edit("osr1", 0, 0, "cpu/v7")]),
    ("C38", "e8c", "invalid RNDPR", "/cpu/clocks.rndpr", [edit("rndpr", 1 << 17, 0, "cpu/clocks")]),
    ("C38", "e8c", "invalid RNDPR", "/cpu/clocks.rndpr", [edit("rndpr", 1 << 50, 0, "cpu/clocks")]),
]


@pytest.mark.parametrize(("code", "model", "text", "path", "edits"), HARD)
def test_a_hard_check_refuses_and_leaves_the_state_as_it_was(
    code: str, model: str, text: str, path: str, edits: list[Edit]
) -> None:
    source, target = cpu(model, 1), cpu(model, 1)
    fill(source, 21)
    fill(target, 22)
    raw, before = save(source), values(target)
    assert refusal(cpu(model, 1), raw) is None
    error = refusal(target, changed(raw, *edits))
    assert error is not None
    assert (error.message, error.path, error.kind) == (f"cpu 1: {text}", f"cpu/1{path}", "device-state")
    assert error.offset is not None
    assert isinstance(error.__cause__, CheckError)
    assert error.__cause__.code == code
    assert values(target) == before


def test_tags_need_tag_mode() -> None:
    source = cpu()
    source.reg_tags[3] = 5
    error = refusal(cpu(tags=False), save(source))
    assert error is not None
    assert (error.message, error.path) == ("cpu 0: tagged registers but tags are disabled", "cpu/0/cpu/tags")
    assert isinstance(error.__cause__, CheckError)
    assert error.__cause__.code == "C26"


def test_no_hard_check_is_without_a_test() -> None:
    soft = {"C03", "C12", "C17", "C19"}
    assert {row[0] for row in HARD} | soft | {"C26"} == {f"C{number:02}" for number in range(1, 39)}


SOFT: list[tuple[str, list[Edit]]] = [
    ("C03", [edit("idr", 0x2307)]),
    ("C03", [edit("idr", 0x1207)]),
    ("C12", [edit("br", 7 | 0 << 6), edit("wd", 0x70 << 16)]),
    ("C17", [edit("psp_lo", 8)]),
    ("C17", [edit("pcsp_hi", 0x1001 << 32)]),
    ("C17", [edit("pcsp_hi", 0x1000 << 32 | 0x1000)]),
    ("C19", [edit("usd_lo", 0xC000)]),
    ("C38", [edit("rndpr", 0, 0, "cpu/clocks")]),
    ("C38", [edit("rndpr", 0x1FFFF, 0, "cpu/clocks")]),
]


@pytest.mark.parametrize(("code", "edits"), SOFT)
def test_a_soft_check_only_says_so(code: str, edits: list[Edit], caplog: pytest.LogCaptureFixture) -> None:
    source, target = cpu(), cpu()
    plain = save(source)
    raw = changed(plain, *edits)
    with caplog.at_level(logging.DEBUG, "qmig_e2k.e2k.cpu"):
        load(cpu(), plain)
        assert not caplog.records
        load(target, raw)
    assert code in [record.message[:3] for record in caplog.records]
    assert save(target) == raw


LEGAL: list[tuple[str, list[Edit]]] = [
    ("e8c", [edit("wd", 0x700 << 16 | 0x700 << 32 | 3 << 48)]),
    ("e8c", [edit("br", 48 | 63 << 6 | 63 << 12 | 31 << 18 | 31 << 23)]),
    ("e8c", [edit("psp_hi", 0x1000 << 32 | 0x1000), edit("pcsp_lo", 0xFF << 56)]),
    ("e8c", [edit("psr", 0x7F), edit("upsr", 0x7FF), edit("core_mode", 0x1E), edit("bgr", 0x7FF)]),
    ("e2c+", [edit("upsr", 0x6FF)]),
    ("e16c", [edit("core_mode", 0x7E)]),
    ("v7", [edit("core_mode", 0x1FE), edit("dibsr", 0xFFF, 0, "cpu/debug")]),
    ("e8c", [edit("cuir", 0x1FFFF), edit("tr", 0x7FFF), edit("tsd", 0x7FFF_0000_7FFF), edit("cutd", (1 << 48) - 32)]),
    ("e8c", [edit("lsr", (1 << 61) - 1), edit("ilcr", 0x1F_001F_FFFF_FFFF)]),
    ("e8c", [edit("ctpr", 5 << 54 | 3 << 57 | 3 << 59 | 0xFFFF_FFFF_FFFF, 2)]),
    ("e8c2", [edit("tags", 0xFF, 255, "cpu/tags"), edit("aasti", 1 << 63, 0, "cpu/aau")]),
    ("e8c", [edit("trap_count", 30, 0, "cpu/mmu"), edit("u2_pptb", 0x18, 0, "cpu/mmu")]),
    ("e8c", [edit("u_pptb", (1 << 40) - 4096, 0, "cpu/mmu"), edit("trap_point", 512, 0, "cpu/mmu")]),
    ("e16c", [edit("os_pptb", (1 << 48) - 4096, 0, "cpu/mmu_v6")]),
    ("e8c", [edit("dam", (1 << 59) - 1, 0, "cpu/dam")]),
    ("e8c", [edit("aad", 6 << 54 | 15 << 57 | (1 << 48) - 1, 0, "cpu/aau"), edit("aad", (1 << 64) - 1, 1, "cpu/aau")]),
]


@pytest.mark.parametrize(("model", "edits"), LEGAL)
def test_the_last_legal_value_loads(model: str, edits: list[Edit]) -> None:
    source, target = cpu(model), cpu(model)
    fill(source, 4)
    raw = changed(save(source), *edits)
    load(target, raw)
    assert split(save(target)) == split(raw)
