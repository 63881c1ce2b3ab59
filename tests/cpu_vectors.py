"""Golden vectors of the CPU (spec/e2k-machine.md 7: 1 to 11, 14 to 28, 37, 38).

    python tests/cpu_vectors.py      # writes tests/streams/e2k/cpu-NN-*.bin anew

A file is the payload of `cpu_common` and then that of `cpu` (no headers, no footers). Its bytes are put together from
the table below, which is the specification's, not by the descriptions that it tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support import STREAMS

if TYPE_CHECKING:
    from pathlib import Path

State = dict[str, int | list[int]]

FOLDER = STREAMS / "e2k"

LAYOUT = {
    "cpu": "isa:u32 idr:u64 rf_form:u32 ip:u64=0x1_0000_0000 nip:u64 psr:u32=1 upsr:u32=0x81 core_mode:u32 preds:u64 "
    "regs_lo:u64[256] wd:u64=0x40_0080_0000 br:u32=0xc4 bgr:u32 cwd:u32 pshtp:u64 pcshtp:u32 psp_lo:u64=0x81_0000 "
    "psp_hi:u64=0x10_0000_0000_0000 pcsp_lo:u64=0x91_0000 pcsp_hi:u64=0xa1_0000_0000_0000 "
    "usd_lo:u64=0x1800_0000_0000_b000 usd_hi:u64=0x4000_0000_0000 sbr:u64=0xb000 cud:u64[2] gd:u64[2] oscud:u64[2] "
    "osgd:u64[2] cutd:u64 cuir:u32 tsd:u64 tr:u32 eir:u32 osem:u32 osr0:u64 lsr:u64 ilcr:u64 ctpr:u64[3]",
    "cpu/fx_ext": "fx:u16[256]",
    "cpu/qp_hi": "regs_hi:u64[256]",
    "cpu/tags": "tags:u8[256]",
    "cpu/crs": "crs:u64[4]",
    "cpu/loop64": "lsr1:u64 ilcr1:u64",
    "cpu/ctpr_hi": "ctpr_hi:u64[3]",
    "cpu/fp": "pfpfr:u32=0x1f80 fpcr:u32=0x37f fpsr:u32",
    "cpu/clocks": "clkr:u64 sclkr:u64 sclkm1:u64 sclkm2:u64 sclkm3:u64 sclk_base_ns:i64 rndpr:u64=0x3_ffff_0001_ffff "
    "cu_hw0:u64 cu_hw1:u64 cu_pmgr0:u64",
    "cpu/aau": "aasr:u32 aafstr:u32 aaldv:u64 aaldm:u64 aasti:u64[16] aasti_tags:u32 aaind:u64[16] aaind_tags:u32 "
    "aaincr:u64[8]=1 aaincr_tags:u32 aad:u64[64] aalda:u8[64] aaldi:u64[64]",
    "cpu/aau_prefetch": "instr:u64[64] cdi:u64[64] ldi:u64[64]",
    "cpu/mmu": "cr:u64 pid:u64 u2_pptb:u64 u_vptb:u64 u_pptb:u64 trap_point:u64 trap_count:u64 mpt_b:u64 pci_l_b:u64 "
    "us_cl_d:u64 ph_h_b:u64 used_4kb_dtlb:u64 used_dtlb_mpt_dw:u64 apic_base:u64=0xfee0_0000 hw0:u64 pid2:u64 "
    "ph_hi_l_b:u64 ph_hi_h_b:u64 tlu_cache:u64",
    "cpu/mmu_sec": "mtrr:u64[33] pat:u64 pdpte:u64[4]",
    "cpu/mmu_v6": "os_vptb:u64 os_pptb:u64 os_vab:u64",
    "cpu/trap": "nr_tirs:i32=-1 tir_frozen:u32 tir_lo:u64[19] tir_hi:u64[19] sbbp:u64[32] sbbp_pos:u32 rpr:u64[2] "
    "upsrm:u32",
    "cpu/debug": "dibcr:u32 dibsr:u32 dibar:u64[4] ddbcr:u64 ddbsr:u64 ddbar:u64[4] dtcr:u64 dtarf:u64 dtart:u64",
    "cpu/monitors": "dimcr:u64 dimar:u64[2] ddmcr:u64 ddmar:u64[2] dimtp:u64[2]",
    "cpu/dam": "dam:u64[32]",
    "cpu/mlt": "mlt:u64[48]",
    "cpu/clw": "us_cl:u64[6]",
    "cpu/segments": "seg:u64[12]",
    "cpu/os_v6": "oscutd:u64 oscuir:u32",
    "cpu/v7": "osr1:u64 usincr:u64 t_off:u64 madmr:u64 dimar23:u64[2]",
    "cpu/hv": "hv_stacks:u64[8] sh_pshtp:u64 sh_pcshtp:u32 sh_wd:u64 sh_oscud:u64[2] sh_osgd:u64[2] sh_oscutd:u64 "
    "sh_oscuir:u32 sh_osr0:u64 sh_core_mode:u32 virt_ctrl:u64[2] gid_gp_pptb:u64[2] sh_mmu:u64[5] intc_cu_num:u32 "
    "intc_info_cu:u64[6] intc_mu_num:u32 intc_info_mu:u64[77] g_preempt_tmr:u64",
    "cpu/lock_pair": "last_val:u64[2]",
}
"""`field:type` or `field:type=reset` (of an array: of its first element) in the order of the wire."""

ISA = {"e8c": 4, "e8c2": 5, "e16c": 6}
MDL = {"e8c": 0x07, "e8c2": 0x09, "e16c": 0x0B}
_FIELD = re.compile(r"(\w+):([ui])(\d+)(?:\[(\d+)\])?(?:=(\S+))?")


@dataclass(frozen=True)
class Vector:
    """One CPU's part of a vector.

    Attributes:
        name: of the file, after `cpu-`.
        model: CPU model; the machine keeps memory tags.
        state: what is changed from reset; of an array its first elements.
        parts: subsections that travel besides `cpu/clocks`, in the order of the wire.
        index: CPU number.
        request: `interrupt_request` of `cpu_common`.
        ignored: registers that this CPU does not have, set before saving.
    """

    name: str
    model: str = "e8c"
    state: State = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    index: int = 0
    request: int = 0
    ignored: State = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the bytes are."""
        return FOLDER / f"cpu-{self.name}.bin"

    @property
    def subsections(self) -> list[str]:
        """Those that travel."""
        return [name for name in LAYOUT if name == "cpu/clocks" or name in self.parts]

    def common(self) -> bytes:
        """Payload of `cpu_common`."""
        return int(self.index != 0).to_bytes(4, "big") + self.request.to_bytes(4, "big")

    def bytes(self) -> bytes:
        """Both payloads, from the specification's table."""
        idr = MDL[self.model] | 0x2200 | self.index << 15
        state: State = {"isa": ISA[self.model], "idr": idr} | self.state
        raw = self.common() + pack("cpu", state)
        for name in self.subsections:
            raw += bytes([5, len(name)]) + name.encode() + b"\0\0\0\1" + pack(name, state)
        return raw


def pack(name: str, state: State) -> bytes:
    """The fields of a description."""
    raw = b""
    for row in LAYOUT[name].split():
        match = _FIELD.fullmatch(row)
        assert match, row
        register, sign, bits, count, reset = match.groups()
        value = state.get(register, int(reset or "0", 0))
        elements = value if isinstance(value, list) else [value]
        elements = elements + [0] * (int(count or 1) - len(elements))
        raw += b"".join(element.to_bytes(int(bits) // 8, "big", signed=sign == "i") for element in elements)
    return raw


def _instruction(area: int, *, ind: int = 1, incr: int = 1, disp: int = 0) -> int:
    return area & 31 | 3 << 5 | ind << 8 | incr << 12 | (area & 31) << 15 | 4 << 25 | disp << 32


def _areas(*used: tuple[int, int]) -> list[int]:
    made = [0] * 64
    for area, value in used:
        made[area] = value
    return made


_ACTIVE = (0, 1, 2, 3, 32 + 7)
_PROGRAM = _areas(*((area, _instruction(area, disp=0x40 * area)) for area in _ACTIVE))
_EVERY = range(64)
_TAGGED_V4 = [0] * 10 + [0xF, 0xC, 0xA] + [0] * 6 + [0x5]
_RANDOM = [i * 0x0101_0101_0101_0101 for i in range(256)]
_PSP = 0x10_0000 << 32
_PCSP = 0x8_0000 << 32
_ROUNDING = {"nearest": 0, "down": 1, "up": 2, "chop": 3}

VECTORS = [
    Vector("01-reset"),
    *(Vector(f"02-reset-{index}", "e16c", index=index) for index in range(4)),
    Vector(
        "03-rotating-loop",
        state={
            "lsr": 100 | 3 << 32 | 1 << 37 | 2 << 48,
            "ilcr": 100 | 3 << 32 | 2 << 48,
            "br": 4 | 7 << 6 | 5 << 12 | 3 << 18 | 2 << 23,
            "bgr": 3 << 8,
        },
    ),
    Vector(
        "04-loop64",
        "e8c2",
        {"lsr": 5 | 1 << 37, "ilcr": 0, "lsr1": 0x1_0000_0005, "ilcr1": 0x2_0000_0000},
        ("cpu/loop64",),
    ),
    Vector(
        "05-aau-active",
        state={
            "aasr": 3 << 7 | 1 << 5,
            "aaldv": 0x0000_0080_0000_000F,
            "aaldm": 0x0000_0080_0000_0003,
            "aaind": [0, 0xFFFF_FFF0],
            "aaincr": [1, 0xFFFF_FFF8],
            "aad": [0x1800_0000_0123_0000 | 4 << 54, 0x2000 << 32] * 8,
            "aalda": [0x14, 1, 2, 3],
            "instr": _PROGRAM,
            "cdi": _areas(*((area, 0x0FF8 + 0x1000 * area) for area in _ACTIVE)),
            "ldi": _areas(*((area, 0x1000 + 0x1000 * area) for area in _ACTIVE)),
        },
        parts=("cpu/aau", "cpu/aau_prefetch"),
    ),
    Vector("06-aau-stale", state={"instr": _PROGRAM}, parts=("cpu/aau_prefetch",)),
    Vector(
        "07-aau-all-areas",
        "e8c2",
        {
            "aasr": 3 << 7,
            "aaind": [(1 << 64) - 1 - i for i in range(16)],
            "aasti": [(1 << 63) + i for i in range(16)],
            "aaincr": [1, *((1 << 64) - 8 * i for i in range(1, 8))],
            "aad": [word for i in range(32) for word in ((i % 3) << 54 | 0xFFFF_FFFF_F000 - i, i << 32)],
            "aalda": [0x17] * 64,
            "aaldi": list(_EVERY),
            "instr": [_instruction(area, ind=15, incr=7, disp=0xFFFF_FFFF) for area in _EVERY],
            "cdi": [(1 << 40) + area for area in _EVERY],
            "ldi": [(1 << 41) + area for area in _EVERY],
        },
        ("cpu/aau", "cpu/aau_prefetch"),
    ),
    Vector(
        "08-full-trap",
        state={
            "nr_tirs": 18,
            "tir_frozen": 1,
            "tir_lo": [0x1_0000_1000 + 8 * i for i in range(19)],
            "tir_hi": [i << 56 | 1 << 2 * i | i << 44 for i in range(19)],
            "sbbp": [0x1_0000_2000 + 8 * i for i in range(32)],
            "sbbp_pos": 31,
            "rpr": [0x1_0000_1008 | 1 << 58, 0x0012_30C4],
            "upsrm": 0x81,
        },
        parts=("cpu/trap",),
    ),
    Vector("09-empty-trap", state={"nr_tirs": -1}),
    Vector(
        "10-page-fault",
        "e8c2",
        {
            "cr": 0x1001,
            "trap_point": 0x20_0200,
            "trap_count": 9,
            "u_pptb": 0x40_0000,
            "nr_tirs": 1,
            "tir_frozen": 1,
            "tir_lo": [0, 0x1_0000_3000],
            "tir_hi": [0, 1 << 56 | 1 << 30],
        },
        ("cpu/mmu", "cpu/trap"),
    ),
    Vector("11-nmi-enabled", state={"psr": 0x21}, request=0x200),
    Vector("11-nmi-masked", state={"psr": 0x01}, request=0x200),
    Vector("11-nmi-enabled-v6", "e16c", {"psr": 0x21}, request=0x200),
    Vector("11-nmi-masked-v6", "e16c", {"psr": 0x01}, request=0x200),
    Vector("12-hard", request=0x2),
    Vector(
        "14-tags-v4",
        state={"br": 8 | 7 << 6, "tags": _TAGGED_V4, "regs_lo": _RANDOM[:20]},
        parts=("cpu/tags",),
    ),
    *(
        Vector(
            f"15-tags-v{ISA[model]}",
            model,
            {"tags": [0xCF, 0xFF, 0x55], "regs_lo": [1, 2, 3], "regs_hi": [4 << 32, 5, 6]},
            ("cpu/qp_hi", "cpu/tags"),
        )
        for model in ("e8c2", "e16c")
    ),
    Vector(
        "16-fp80",
        state={
            "regs_lo": [1 << 63, 1 << 63, 1, 0xC000_0000_0000_1234, 0xFFFF_FFFF_FFFF_FFFF],
            "fx": [0x3FFF, 0xBFFF, 0, 0x7FFF, 0xFFFF],
        },
        parts=("cpu/fx_ext",),
    ),
    Vector("17-qp128", "e8c2", {"regs_lo": _RANDOM, "regs_hi": [~v & (1 << 64) - 1 for v in _RANDOM]}, ("cpu/qp_hi",)),
    *(
        Vector(f"18-stack-{left}-left", state={"psp_hi": _PSP | 0x10_0000 - 32, "pcsp_hi": _PCSP | 0x8_0000 - left})
        for left in (64, 32, 0)
    ),
    Vector("19-window-edge", state={"wd": 0x700 << 16 | 0x700 << 32 | 3 << 48}),
    Vector("20-user-stack-empty", state={"usd_lo": 3 << 59 | 0xB000, "usd_hi": 0, "sbr": 0xB000}),
    Vector("20-user-stack-protected", state={"usd_lo": 7 << 58 | 3 << 32 | 0x1_B000, "sbr": 0xB000}),
    Vector("21-ctpr-v4", state={"ctpr": [i << 54 | 3 << 57 | 3 << 59 | 0x1_0000_0008 for i in range(3)]}),
    Vector(
        "21-ctpr-v6",
        "e16c",
        {
            "ctpr": [i << 54 | 3 << 57 | 3 << 59 | (1 << 48) - 8 for i in range(3, 6)],
            "ctpr_hi": [0xFFFF, 1 << 16, 0x1_FFFF],
        },
        ("cpu/ctpr_hi",),
    ),
    *(
        Vector(
            f"22-fp-{name}",
            state={
                "pfpfr": 0x3F | 0x3F << 7 | code << 13 | (code & 1) << 15 | 0x3F << 26,
                "fpcr": 0x7F | (code & 2) << 8 | code << 10 | 1 << 12,
                "fpsr": 0xFFFF >> code,
            },
            parts=("cpu/fp",),
        )
        for name, code in _ROUNDING.items()
    ),
    Vector(
        "23-dam-mlt-v4",
        state={
            "dam": [1 << 58 | 1 << 57 | i << 13 | i for i in range(32)],
            "mlt": [word for i in range(16) for word in (1 << 53 | 0xFF << 4 | i << 12, i, ~i & (1 << 64) - 1)],
        },
        parts=("cpu/dam", "cpu/mlt"),
    ),
    Vector(
        "23-dam-mlt-v6",
        "e16c",
        {
            "dam": [1 << 58 | i << 49 | i for i in range(32)],
            "mlt": [word for i in range(16) for word in (1 | 0xFF << 48 | i << 12 | i << 56, i, 7 * i)],
        },
        ("cpu/dam", "cpu/mlt"),
    ),
    Vector(
        "24-debug",
        "e16c",
        {
            "dibcr": 0xFFF,
            "dibsr": 0x1FF,
            "dibar": [0x1_0000_0000 + 0x100 * i for i in range(4)],
            "ddbcr": 1 << 56 | 0x3FFF << 42 | 0x2AAA << 28 | 0x1555 << 14 | 0xFFF,
            "ddbsr": 3 << 49 | 0xFF << 36,
            "ddbar": [0x8000_0000_0000 - 8 * i for i in range(1, 5)],
            "dtcr": 1,
            "dtarf": 2,
            "dtart": 3,
            "dimcr": 0x41_0000_0041,
            "dimar": [(1 << 64) - 1, 12345],
            "ddmcr": 0x42_0000_0042,
            "ddmar": [54321, 1 << 63],
            "dimtp": [0x1_2345_6780, 0x1000 << 32 | 0x20],
        },
        ("cpu/debug", "cpu/monitors"),
    ),
    Vector(
        "24-debug-v4",
        state={
            "dibcr": 0x0FF,
            "dibsr": 0x00F,
            "dibar": [0x1_0000_0000 + 0x100 * i for i in range(4)],
            "ddbcr": 0x3FFF << 42 | 0x3FFF,
            "ddbsr": 3 << 49,
            "ddbar": [0x8000_0000_0000 - 8 * i for i in range(1, 5)],
            "dimcr": 0x41_0000_0041,
            "dimar": [1, 1 << 63],
            "ddmar": [2, 3],
        },
        parts=("cpu/debug", "cpu/monitors"),
        ignored={"dimtp": [0x1_2345_6780, 1]},
    ),
    Vector(
        "25-mmu",
        "e16c",
        {
            "core_mode": 0x24,
            "cr": 0xE07F,
            "pid": 0xFFF,
            "u_vptb": 0xFF80_0000_0000,
            "u_pptb": 0xFFFF_FFFF_F000,
            "trap_point": 0x1_0000_0400,
            "us_cl_d": 1,
            "apic_base": 0xFEE0_0800,
            "pid2": 7,
            "os_vptb": 0xFF00_0000_0000,
            "os_pptb": 0x1_2345_6000,
            "os_vab": 0xE000_0000_0000,
            "us_cl": [0x10_0000, 0x20_0000, 1, 2, 4, 8],
        },
        ("cpu/mmu", "cpu/mmu_v6", "cpu/clw"),
    ),
    Vector(
        "26-hypervisor",
        "e16c",
        {
            "idr": 0x220B | 1 << 24,
            "hv_stacks": [word for i in range(4) for word in (0x3000 << 48 | i << 20, 0x2_0000 << 32 | i << 5)],
            "sh_pshtp": 0x20,
            "sh_pcshtp": 0x40,
            "sh_wd": 0x40_0080_0000,
            "sh_oscud": [0x1_0000, 1 << 32],
            "sh_osgd": [0x2_0000, 2 << 32],
            "sh_oscutd": 0x3_0000,
            "sh_oscuir": 5,
            "sh_osr0": 6,
            "sh_core_mode": 0x1C,
            "virt_ctrl": [7, 8],
            "gid_gp_pptb": [9, 0xA000],
            "sh_mmu": [11, 12, 13, 14, 15],
            "intc_cu_num": 6,
            "intc_info_cu": [16 + i for i in range(6)],
            "intc_mu_num": 77,
            "intc_info_mu": [(i + 1) << 40 | i for i in range(77)],
            "g_preempt_tmr": 0x0123_4567,
        },
        ("cpu/hv",),
    ),
    Vector(
        "26-shadow-stacks",  # IDR does not tell of virtualization: what there is travels all the same
        "e16c",
        {
            "hv_stacks": [word for i in range(4) for word in (0x4000 << 48 | i << 20, 0x1_0000 << 32 | i << 5)],
            "sh_pshtp": 0x40,
            "sh_pcshtp": 0x20,
            "sh_wd": 0x50_00A0_0000,
        },
        ("cpu/hv",),
    ),
    Vector("27-exclusive-pair", state={"last_val": [0x1111_2222_3333_4444, (1 << 64) - 1]}, parts=("cpu/lock_pair",)),
    Vector(
        "28-clocks",
        "e16c",
        {
            "clkr": (1 << 64) - 2,
            "sclkr": 0xFFFF_FFFE_8000_0000,
            "sclkm1": 2 << 56 | 1 << 34 | 100_000_000,
            "sclkm2": 99_999_999 << 32 | 100_000_001,
            "sclkm3": 0x12_3456_789A,
            "sclk_base_ns": (1 << 63) - 1,
            "rndpr": 0x0002_AAAA_0001_5555,
            "cu_hw0": 1,
            "cu_hw1": 2,
            "cu_pmgr0": 3,
        },
    ),
    Vector(
        "37-identity",
        state={"regs_lo": _RANDOM, "fx": _RANDOM[:1] * 255 + [0x3FFF], "aaind": [5], "clkr": 9, "dimcr": 1},
        parts=("cpu/fx_ext", "cpu/aau", "cpu/monitors"),
        ignored={
            "regs_hi": _RANDOM,
            "lsr1": 1,
            "ilcr1": 2,
            "ctpr_hi": [1, 2, 3],
            "sclkm3": 4,
            "cu_hw1": 5,
            "cu_pmgr0": 6,
            "os_vptb": 7,
            "os_pptb": 0x1000,
            "os_vab": 9,
            "dimtp": [32, 1],
            "oscutd": 10,
            "oscuir": 11,
            "osr1": 12,
            "t_off": 13,
            "sh_wd": 14,
            "intc_info_mu": [15],
        },
    ),
]


@dataclass(frozen=True)
class Rejection:
    """A stream that must be refused (vector 38).

    Attributes:
        vector: what is in it.
        code: of the check that refuses it.
        text: what it says, after `cpu 0: `.
        model: CPU model of the machine that is to load it.
        tags: that machine keeps memory tags.
    """

    vector: Vector
    code: str
    text: str
    model: str = "e8c"
    tags: bool = True


def _refused(name: str, code: str, text: str, state: State, *parts: str) -> Rejection:
    return Rejection(Vector(f"38-{name}", state=state, parts=parts), code, text)


REJECTIONS = [
    Rejection(Vector("38-isa", state={"osr0": 1}), "C01", "ISA v4 in stream, model is v5", "e8c2"),
    _refused("psize", "C09", "window out of range (base 0 size 128 psize 144)", {"wd": 0x80 << 16 | 0x90 << 32}),
    _refused("size", "C09", "window out of range (base 0 size 1800 psize 64)", {"wd": 0x708 << 16 | 0x40 << 32}),
    _refused("base", "C10", "dirty windows in normal form", {"wd": 16 | 0x80 << 16 | 0x40 << 32}),
    _refused("psp-beyond", "C15", "PSP index 0x100020 beyond size 0x100000", {"psp_hi": _PSP | 0x10_0020}),
    _refused("psp-misaligned", "C16", "PSP index 0x108 misaligned", {"psp_hi": _PSP | 0x108}),
    _refused("pcsp-misaligned", "C16", "PCSP index 0x28 misaligned", {"pcsp_hi": _PCSP | 0x28}),
    _refused("precision", "C24", "invalid FP control word", {"fpcr": 0x17F}, "cpu/fp"),
    _refused("qp-hi", "C25", "subsection cpu/qp_hi not valid for ISA v4", {"regs_hi": [1]}, "cpu/qp_hi"),
    _refused("wide-tag", "C25", "subsection cpu/tags not valid for ISA v4", {"tags": [0xF, 0x10]}, "cpu/tags"),
    Rejection(
        Vector("38-no-tags", state={"tags": [0xF, 0xC]}, parts=("cpu/tags",)),
        "C26",
        "tagged registers but tags are disabled",
        tags=False,
    ),
    _refused("aaincr", "C29", "invalid AAU state", {"aaincr": [2]}, "cpu/aau"),
]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for vector in [*VECTORS, *(rejection.vector for rejection in REJECTIONS)]:
        vector.path.write_bytes(vector.bytes())
