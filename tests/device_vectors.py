"""Golden vectors of the devices (spec/e2k-machine.md 7: 2, 11 to 13, 29 to 34).

    python tests/device_vectors.py      # writes tests/streams/e2k/device-NN-*.bin anew

The files are payloads of one section each (no header, no footer). Their bytes are put together from the specification's
table and the reset values below, not by the descriptions that they test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devices import State, pack, subsection
from qmig_e2k.e2k import devices as e2k
from qmig_e2k.e2k.devices import APIC, CEPIC, IOEPIC, IOMMU, SIC, Apic, Cepic, Ioepic, Iommu, Sic
from qmig_e2k.e2k.models import MODELS
from support import STREAMS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qmig_e2k.vmstate import VMStateDescription

FOLDER = STREAMS / "e2k"

APIC_RESET = {"apicbase": 0xFEE0_0900, "spurious_vec": 0xFF, "dest_mode": 0xF, "lvt": 0x1_0000, "timer_expiry": -1}
APIC_E2K_RESET = {
    "nm_timer_lvtt": 0x1_0000,
    "lvt2": 0x1_0000,
    "lvt3": 0x1_0000,
    "lvt4": 0x1_0000,
    "nm_timer_expiry": -1,
}
CEPIC_RESET = {
    "esr2": 0x1_0000,
    "timer_lvtt": 0x1_0000,
    "pnmirr_mask": 0x3_2000,
    "timer_expiry": -1,
    "nm_timer_expiry": -1,
}
SIC_RESET = {
    "rt_lcfg": [0xB, 0x30, 0x30, 0x30],
    "rt_mhi": 0xFFFF,
    "rt_mlo": 0xF800,
    "rt_pcim": 0xF800,
    "rt_pciio": 0xF000,
    "rt_pcimp_b": 0xFFFF_FFFF,
    "rt_pcicfgb": 0x40,
}
_IRR_F0 = [0] * 7 + [1 << 16]


@dataclass(frozen=True)
class Vector:
    """One device's part of a vector.

    Attributes:
        name: of the file, after `device-`.
        description: of the section.
        new: makes the device after reset.
        state: what is changed from reset.
        reset: what the main body holds besides.
        parts: subsections that travel, and what they hold.
    """

    name: str
    description: VMStateDescription
    new: Callable[[], Any]
    state: State
    reset: State
    parts: dict[str, State] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the bytes are."""
        return FOLDER / f"device-{self.name}.bin"

    def bytes(self) -> bytes:
        """The payload, from the specification's table."""
        body = pack(self.description.name, self.reset | self.state)
        return body + b"".join(subsection(name, values) for name, values in self.parts.items())


def _ioepic_pins() -> State:
    """Pins 0 and 63 level-triggered and asserted, 31 edge, 32 masked with its request kept, one requester each."""
    int_ctrl, msg_data, address, rid = [0x1_0000] * 64, [0] * 64, [0] * 64, [0] * 64
    int_ctrl[0], int_ctrl[31], int_ctrl[32], int_ctrl[63] = 0x9000, 0x1000, 0x1_1000, 0x9000
    for pin, vector in ((0, 0x31), (31, 0x1F0), (32, 0x2FF), (63, 0x3FF)):
        msg_data[pin] = 2 << 13 | vector
        address[pin] = 0xFEE0_0000 | pin << 6
        rid[pin] = pin << 8 | 0x1A
    return {
        "id": 0x0001_0002,
        "int_ctrl": int_ctrl,
        "msg_data": msg_data,
        "addr_high": 1,
        "addr_low": address,
        "int_rid": rid,
        "irr": 1 << 63 | 1 << 32 | 1 << 31 | 1,
        "line_level": 1 << 63 | 1,
    }


def pci_config(device: int, head: str, changes: State | None = None, *, pin: int = 0) -> list[int]:
    """Configuration space of one of MCST's functions; `head`: revision, class code and header type in hex."""
    revision, programming, sub, base, header = bytes.fromhex(head)
    made = {0: 0xFF, 1: 0x1F, 2: device & 0xFF, 3: device >> 8, 8: revision, 9: programming, 10: sub, 11: base}
    made |= {14: header, 61: pin} | (changes or {})
    return [made.get(at, 0) for at in range(256)]


def channel(**values: Any) -> State:
    """One serial channel: after reset, but for `values`; single registers by their number."""
    wregs = {4: 0x04, 9: 0xC0, 11: 0x08, 14: 0x30, 15: 0xF8} | values.pop("wregs", {})
    rregs = {0: 0x44, 1: 0x07} | values.pop("rregs", {})
    zero = dict.fromkeys("vmstate_dummy reg rxint txint rxint_under_svc txint_under_svc rx tx".split(), 0)
    registers = {name: [held.get(at, 0) for at in range(16)] for name, held in (("wregs", wregs), ("rregs", rregs))}
    return zero | registers | values


def _served(enabled: int) -> State:
    """Both channels have received a byte, channel B's interrupts are being served; `enabled`: the master bit."""
    master = {9: 0xC0 | enabled}
    first = channel(reg=1, rxint=1, rxint_under_svc=1, txint_under_svc=1, rx=0x41, wregs=master, rregs={0: 0x45})
    second = channel(reg=15, txint=1, rx=0x42, tx=0x43, wregs=master | {12: 0x0A, 13: 0x01}, rregs={0: 0x45, 3: 0x3F})
    return {"chn": [first, second]}


_NOW = 5_000_000_000
"""Virtual time of the save, ns."""
_HALF_WAY = {
    "counter_limit": 10_000 << 9,
    "counter_start": 1 << 9,
    "counter": 1 << 31 | 5_000 << 9,
    "counter_control": 5,
    "counter_base_ns": _NOW,
    "counter_timer": _NOW + 5_000 * 100,
    "power_counter": 0x1_2345_6789,
    "reset_counter": 0x2_3456_789A,
    "latch_power_h": 1,
    "latch_reset_h": 2,
    "irq_level": 2,
}
_ONE_TICK_LEFT = {
    "wd_counter": 0x2FB1,
    "wd_prescaler": 0x1000,
    "wd_limit": 0x2FB2,
    "wd_control": 2,
    "wd_base_ns": _NOW,
    "wd_timer": _NOW + 0x1000 * 100,
}
_SECOND = 1_000_000_000
_ALARM = {
    # 2024-02-29 23:59:58, a Thursday; alarm at 23:59:59; 8 Hz; alarm and periodic interrupt enabled, 24 hours, BCD
    "cmos_data": [
        *(0x58, 0x59, 0x59, 0x59, 0x23, 0x23, 0x05, 0x29, 0x02, 0x24, 0x2D, 0x62, 0x40, 0x80),
        *([0] * 36),
        0x20,
        *([0] * 77),
    ],
    "cmos_index": 0x0C,
    "periodic_timer": _NOW + 125_000_000,
    "next_periodic_time": _NOW + 125_000_000,
    "irq_coalesced": 3,
    "period": 4096,
    "base_rtc": 1_709_251_198,
    "last_update": _NOW,
    "offset": -7,
    "update_timer": _NOW + _SECOND,
    "next_alarm_time": _NOW + _SECOND,
}

VECTORS = [
    *(
        Vector(
            f"02-cepic-{index}",
            CEPIC,
            lambda index=index: Cepic(index, MODELS["e16c"]),
            {},
            CEPIC_RESET | {"ctrl": 0 if index else 0x100, "id": index, "wait_for_startup": int(index > 0)},
        )
        for index in range(4)
    ),
    Vector(
        "11-apic-nm",
        APIC,
        lambda: Apic(0, MODELS["e8c"]),
        {"nm": 0x4_0100},
        APIC_RESET,
        {"apic/e2k": APIC_E2K_RESET | {"nm": 0x4_0100}},
    ),
    Vector(
        "11-cepic-nmi",
        CEPIC,
        lambda: Cepic(0, MODELS["e16c"]),
        {"pnmirr": 1 << 10},
        CEPIC_RESET | {"ctrl": 0x100},
    ),
    *(
        Vector(
            f"12-apic-{name}",
            APIC,
            lambda: Apic(0, MODELS["e8c"]),
            {"irr": _IRR_F0, "tpr": tpr, "spurious_vec": 0x1FF},
            APIC_RESET,
        )
        for name, tpr in (("below-tpr", 0xF0), ("pending", 0))
    ),
    Vector(
        "13-apic-sipi",
        APIC,
        lambda: Apic(1, MODELS["e8c"]),
        {"sipi_vector": 0x9A},
        APIC_RESET | {"apicbase": 0xFEE0_0800, "id": 1},
        {"apic_sipi": {"wait_for_sipi": 1, "sipi_vector": 0x9A}},
    ),
    Vector(
        "29-sic",
        SIC,
        lambda: Sic(MODELS["e8c2"]),
        {
            "rt_lcfg": [0xB, 0x35, 0x30, 0x30],
            "rt_mhi": [0x0003_0001, 0x0007_0004, 0xFFFF, 0xFFFF],
            "rt_mlo": [0x3800_0000, 0x7800_4000, 0xF800, 0xF800],
            "rt_pcim": [0xB800_8000, 0xF800_C000, 0xF800, 0xF800],
            "rt_pciio": [0x7000_0000, 0xF000_8000, 0xF000, 0xF000],
            "rt_pcimp_b": [0x8400, 0xC000, 0xFFFF_FFFF, 0xFFFF_FFFF],
            "rt_pcimp_e": [0xBFFF, 0xFFFF, 0, 0],
            "rt_msi": 0x1_2000_0000,
        },
        SIC_RESET,
    ),
    Vector(
        "29-sic-mon",
        SIC,
        lambda: Sic(MODELS["e16c"]),
        {"sccfg": 1, "sic_mcr": 0x101, "sic_mar": [(1 << 64) - 1, 0x1_0000_0001], "sic_int": 2},
        SIC_RESET,
        {"e2k-sic/mon": {"sccfg": 1, "sic_mcr": 0x101, "sic_mar": [(1 << 64) - 1, 0x1_0000_0001], "sic_int": 2}},
    ),
    Vector(
        "29-iommu",
        IOMMU,
        lambda: Iommu(MODELS["e8c2"]),
        {
            "ctrl": 0x3,
            "ptbar": 0x7FFF_0000_4000_0000,
            "err": 0x8000_0000_0000_0005,
            "err_info": 0x0000_00AA_1234_5678,
            "mcr": 0x101,
            "mid": 0x2A,
            "mar": [0x1_0000_0001, (1 << 64) - 1],
        },
        {},
        {"e2k-iommu/mon": {"mcr": 0x101, "mid": 0x2A, "mar": [0x1_0000_0001, (1 << 64) - 1]}},
    ),
    Vector("30-ioepic", IOEPIC, Ioepic, _ioepic_pins(), {}),
    Vector("31-pcibus", e2k.PCI_BUS, lambda: e2k.PciBus(4), {"irq_count": [0, 0, 1, 0]}, {"nirq": 4}),
    Vector(
        "31-iohub-pcibridge",
        e2k.IOHUB_PCIBRIDGE,
        e2k.PciBridge,
        {"config": pci_config(0x8000, "1000040681", {0x04: 0x07, 0x18: 0, 0x19: 1, 0x1A: 3})},
        {"version_id": 2},
    ),
    Vector(
        "31-escc-pci",
        e2k.ESCC_PCI,
        e2k.EsccPci,
        {
            # memory on, interrupt pending, window 1 at 0x8000_1000
            "config": pci_config(0x8019, "0102000780", {0x04: 2, 0x06: 8, 0x15: 0x10, 0x17: 0x80}, pin=1),
            "irq_state": [1, 0, 0, 0],
        },
        {"version_id": 2},
    ),
    Vector("32-escc-master-off", e2k.ESCC, e2k.Escc, _served(0), {}),
    Vector("32-escc-master-on", e2k.ESCC, e2k.Escc, _served(8), {}),
    Vector(
        "33-lt",
        e2k.LT,
        e2k.Lt,
        _HALF_WAY | {name: _ONE_TICK_LEFT[name] for name in ("wd_counter", "wd_control", "wd_base_ns", "wd_timer")},
        {},
        {"e2k-lt/wd": _ONE_TICK_LEFT},
    ),
    Vector(
        "34-rtc",
        e2k.RTC,
        e2k.Rtc,
        _ALARM | {"irq_reinject_on_ack_count": 2},
        {},
        {"mc146818rtc/irq_reinject_on_ack_count": {"irq_reinject_on_ack_count": 2}},
    ),
]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for vector in VECTORS:
        vector.path.write_bytes(vector.bytes())
