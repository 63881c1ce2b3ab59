"""Golden vectors of whole machines (spec/e2k-machine.md 7: 1, 2, 10 to 13, 29 to 36).

    python tests/machine_vectors.py      # writes tests/streams/e2k/machine-NN-*.{bin,stream} anew

A `.bin` is every device section of a machine `e2k-1.0`, header to footer, in the order of the stream; a `.stream` is a
whole stream up to its end marker, with the pages of RAM that are not zero. The bytes come from the specification's
tables and from the vectors of single sections, not from the descriptions that they test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import cpu_vectors
import device_vectors
from cpu_vectors import FOLDER, ISA, MDL
from device_vectors import APIC_RESET, CEPIC_RESET, SIC_RESET, pci_config
from devices import State, pack, subsection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4096
_COMMON = 8
"""Bytes of `cpu_common`."""
_RAM_ID, _FIRST_ID = 2, 4

CPU = {vector.name: vector for vector in cpu_vectors.VECTORS}
DEVICE = {vector.name: vector for vector in device_vectors.VECTORS}


class Section(NamedTuple):
    """One device section."""

    idstr: str
    instance: int
    version: int
    number: int
    payload: bytes

    @property
    def path(self) -> str:
        """`idstr/instance`."""
        return f"{self.idstr}/{self.instance}"

    def bytes(self) -> bytes:
        """Header to footer."""
        name = self.idstr.encode()
        head = b"\4" + self.number.to_bytes(4, "big") + bytes([len(name)]) + name
        numbers = self.instance.to_bytes(4, "big") + self.version.to_bytes(4, "big")
        return head + numbers + self.payload + b"\x7e" + self.number.to_bytes(4, "big")


@dataclass(frozen=True)
class Whole:
    """One machine's part of a vector.

    Attributes:
        name: of the file, after `machine-`.
        model: CPU model.
        cpus: how many.
        cpu: vectors of CPUs, by CPU number.
        devices: vectors of other sections, by `idstr/instance`.
        options: further devices, `rtc` or `lmscon`.
        ram: bytes of main RAM.
        kernel: bytes of the kernel block; 0: firmware.
        tags: memory-tag mode.
        pages: content of pages of RAM, by block and offset; all others are zero. With them the file is a stream.
    """

    name: str
    model: str = "e8c"
    cpus: int = 1
    cpu: dict[int, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    ram: int = 16 * MIB
    kernel: int = 0
    tags: bool = False
    pages: dict[tuple[str, int], bytes] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the bytes are."""
        return FOLDER / f"machine-{self.name}.{'stream' if self.pages else 'bin'}"

    def sections(self, run_state: str = "running") -> list[Section]:
        """All device sections in the order of the stream."""
        made = _created(self, run_state)
        first = ("e2k-machine", "PCIBUS", "e2k-iommu", "timer")
        return sorted(made, key=lambda section: first.index(section.idstr) if section.idstr in first else len(first))

    def bytes(self) -> bytes:
        """What the file holds."""
        return self.stream() if self.pages else joined(self.sections())

    # whole streams

    def blocks(self) -> list[tuple[str, int]]:
        """RAM blocks, the longest first."""
        image = ("e2k.kernel", self.kernel) if self.kernel else ("e2k.firmware", 16 * MIB)
        tags = [("e2k.ram-tags", self.ram // 16)] if self.tags else []
        return sorted([("e2k.ram", self.ram), image, *tags], key=lambda block: -block[1])

    def head(self) -> bytes:
        """Everything up to the first pages: header, configuration, the RAM blocks."""
        configuration = b"\7" + (7).to_bytes(4, "big") + b"e2k-1.0"
        blocks = self.blocks()
        ram = _word(sum(size for _, size in blocks) | 4)
        ram += b"".join(bytes([len(name)]) + name.encode() + _word(size) for name, size in blocks)
        start = b"\1" + _RAM_ID.to_bytes(4, "big") + b"\3ram" + (0).to_bytes(4, "big") + (4).to_bytes(4, "big")
        return b"QEVM\0\0\0\3" + configuration + start + ram + _word(0x10) + _FOOTER

    def tail(self) -> bytes:
        """Everything from the end of RAM on."""
        return b"\3" + _RAM_ID.to_bytes(4, "big") + _word(0x10) + _FOOTER + joined(self.sections("prelaunch")) + b"\0"

    def stream(self) -> bytes:
        """The whole of it."""
        pages = b"".join(
            _word(at | 8) + bytes([len(block)]) + block.encode() + content
            for (block, at), content in self.pages.items()
        )
        return self.head() + b"\2" + _RAM_ID.to_bytes(4, "big") + pages + _word(0x10) + _FOOTER + self.tail()


_FOOTER = b"\x7e" + _RAM_ID.to_bytes(4, "big")


def _word(number: int) -> bytes:
    return number.to_bytes(8, "big")


def joined(sections: list[Section]) -> bytes:
    """The bytes of all of them."""
    return b"".join(section.bytes() for section in sections)


def _created(whole: Whole, run_state: str) -> list[Section]:
    """The sections in the order in which their devices are made, which numbers them."""
    epic = ISA[whole.model] >= 6
    made: list[Section] = []
    numbers = iter(range(_FIRST_ID, 99))

    def add(name: str, payload: bytes, version: int = 1, instance: int = 0) -> None:
        vector = whole.devices.get(f"{name}/{instance}")
        payload = DEVICE[vector].bytes() if vector else payload
        number = 0 if name == "timer" else next(numbers)
        made.append(Section(name, instance, version, number, payload))

    facts = [ISA[whole.model], MDL[whole.model], whole.cpus]
    identity = b"".join(fact.to_bytes(4, "big") for fact in facts) + _word(whole.ram)
    add("timer", bytes(24), 2)
    add("e2k-machine", identity + bytes([bool(whole.kernel), whole.tags]))
    for index in range(whole.cpus):
        named = whole.cpu.get(index)
        raw = (CPU[named] if named else cpu_vectors.Vector("", whole.model, index=index)).bytes()
        add("cpu_common", raw[:_COMMON], instance=index)
        add("cpu", raw[_COMMON:], instance=index)
        add("cepic" if epic else "apic", *_controller(index, epic=epic), instance=index)
    add("e2k-sic", pack("e2k-sic", SIC_RESET))
    add("e2k-iommu", pack("e2k-iommu", {}))
    if epic:
        add("ioepic", pack("ioepic", {"int_ctrl": 0x1_0000}))
    else:
        add("ioapic", pack("ioapic", {"ioredtbl": 0x1_0000}), 3)
    add("PCIHost", pack("PCIHost", {}))
    add("PCIBUS", pack("PCIBUS", {"nirq": 4}))
    add("PCIBUS", bytes(4), instance=1)
    add("0000:00:01.0/iohub", _function("iohub", pci_config(0x8017, "0200000600")))
    add("0000:00:00.0/iohub-pcibridge", _function("iohub-pcibridge", pci_config(0x8000, "1000040681")))
    add("escc", pack("escc", {"chn": [device_vectors.channel(), device_vectors.channel()]}), 2)
    add("0000:00:02.2/escc-pci", _function("escc-pci", pci_config(0x8019, "0102000780", pin=1)))
    add("e2k-lt", pack("e2k-lt", {"counter_timer": -1}))
    for option in whole.options:
        add(*{"rtc": ("mc146818rtc", b"", 3), "lmscon": ("lmscon", b"\0", 1)}[option])
    name = run_state.encode() + b"\0"
    add("globalstate", len(name).to_bytes(4, "big") + name.ljust(100, b"\0"))
    return made


def _controller(index: int, *, epic: bool) -> tuple[bytes, int]:
    """Payload of a CPU's interrupt controller after reset, and its version."""
    if epic:
        own: State = {"ctrl": 0 if index else 0x100, "id": index, "wait_for_startup": int(index > 0)}
        return pack("cepic", CEPIC_RESET | own), 1
    own = {"id": index, "apicbase": 0xFEE0_0800 if index else 0xFEE0_0900}
    waiting = subsection("apic_sipi", {"wait_for_sipi": 1}) if index else b""
    return pack("apic", APIC_RESET | own) + waiting, 3


def _function(name: str, config: list[int]) -> bytes:
    return pack(name, {"version_id": 2, "config": config})


def _cellar() -> bytes:
    """A page of RAM with the trap cellar at 0x200: three records; at +512 what v5 adds to each."""
    page = bytearray(random.Random(10).randbytes(PAGE))
    records = [(0x8000_0000_1000 + 8 * i, 0xDA7A_0000 + i, 0x0004_0000_8000_0000 | i) for i in range(3)]
    extended = [(0xE7DA_7A00 + i, 0xFF << 8 * i, 0) for i in range(3)]
    for at, words in ((0x200, records), (0x400, extended)):
        raw = b"".join(word.to_bytes(8, "little") for record in words for word in record)
        page[at : at + len(raw)] = raw
    return bytes(page)


CELLAR = Whole(
    "10-trap-cellar",
    "e8c2",
    cpu={0: "10-page-fault"},
    ram=4 * MIB,
    tags=True,
    pages={("e2k.ram", 0x20_0000): _cellar()},
)

MACHINES = [
    Whole("01-reset"),
    Whole("02-reset", "e16c", 4, cpu={index: f"02-reset-{index}" for index in range(4)}),
    Whole("11-nmi-enabled", cpu={0: "11-nmi-enabled"}),
    Whole("11-nmi-masked", cpu={0: "11-nmi-masked"}),
    Whole("11-nm-cause", cpu={0: "11-nmi-enabled"}, devices={"apic/0": "11-apic-nm"}),
    Whole("11-nmi-epic", "e16c", cpu={0: "11-nmi-enabled-v6"}, devices={"cepic/0": "11-cepic-nmi"}),
    Whole("11-nmi-epic-masked", "e16c", cpu={0: "11-nmi-masked-v6"}, devices={"cepic/0": "11-cepic-nmi"}),
    Whole("12-below-tpr", devices={"apic/0": "12-apic-below-tpr"}),
    Whole("12-pending", cpu={0: "12-hard"}, devices={"apic/0": "12-apic-pending"}),
    Whole("13-sipi", cpus=2, devices={"apic/1": "13-apic-sipi"}),
    Whole("29-sic-iommu", "e8c2", devices={"e2k-sic/0": "29-sic", "e2k-iommu/0": "29-iommu"}),
    Whole("29-sic-mon", "e16c", devices={"e2k-sic/0": "29-sic-mon"}),
    Whole("30-ioepic", "e16c", devices={"ioepic/0": "30-ioepic"}),
    Whole(
        "31-pci",
        devices={
            "PCIBUS/0": "31-pcibus",
            "0000:00:00.0/iohub-pcibridge/0": "31-iohub-pcibridge",
            "0000:00:02.2/escc-pci/0": "31-escc-pci",
        },
    ),
    Whole("32-escc-master-off", devices={"escc/0": "32-escc-master-off"}),
    Whole("32-escc-master-on", devices={"escc/0": "32-escc-master-on"}),
    Whole("33-timers", devices={"e2k-lt/0": "33-lt"}),
    Whole("34-rtc", devices={"mc146818rtc/0": "34-rtc"}, options=("rtc",)),
]

# -- vector 36

ORDERED = Whole(
    "36-order-creation",
    cpus=2,
    cpu={0: "12-hard"},
    devices={
        "apic/0": "12-apic-pending",
        "apic/1": "13-apic-sipi",
        "PCIBUS/0": "31-pcibus",
        "0000:00:00.0/iohub-pcibridge/0": "31-iohub-pcibridge",
        "0000:00:02.2/escc-pci/0": "31-escc-pci",
        "escc/0": "32-escc-master-on",
        "e2k-lt/0": "33-lt",
        "mc146818rtc/0": "34-rtc",
    },
    options=("rtc", "lmscon"),
)


def is_pci(section: Section) -> bool:
    """Whether it is a function's."""
    return section.idstr.startswith("0000:")


def legal_order(choose: Callable[[list[Section]], Section]) -> list[Section]:
    """Identity first, a CPU before its controller, the IOMMU before PCI devices; else as `choose` says."""
    left = ORDERED.sections()
    done: list[Section] = []

    def ready(section: Section) -> bool:
        if left[0].idstr == "e2k-machine":
            return section is left[0]
        if is_pci(section):
            return all(other.idstr != "e2k-iommu" for other in left)
        cpu = ("cpu", "cpu_common")
        return section.idstr != "apic" or not any(s.idstr in cpu and s.instance == section.instance for s in left)

    while left:
        done.append(choose([section for section in left if ready(section)]))
        left.remove(done[-1])
    return done


def _iommu_last() -> list[Section]:
    sections = ORDERED.sections()
    iommu = next(section for section in sections if section.idstr == "e2k-iommu")
    sections.remove(iommu)
    sections.insert(next(at for at, section in enumerate(sections) if is_pci(section)) + 1, iommu)
    return sections


ORDERS = {
    "creation": ORDERED.sections(),
    "reverse": legal_order(lambda ready: ready[-1]),
    "controllers-late": legal_order(lambda ready: next((s for s in ready if s.idstr != "apic"), ready[0])),
    "mixed": legal_order(random.Random(36).choice),
}
"""Vector 36: the same machine in orders that must load."""
REFUSED_ORDER = _iommu_last()
"""Vector 36: one that must not."""


def order_path(name: str) -> Path:
    """Where the sections are in that order."""
    return FOLDER / f"machine-36-order-{name}.bin"


# -- vector 35


def _sized(name: str, ram: int, *, model: str = "e8c", kernel: int = 0, tags: bool = False) -> Whole:
    """A machine with something at both ends of its blocks, and on both sides of the split at 2 GiB."""
    numbers = random.Random(name)
    at = {at for at in (0, ram - PAGE, 2 * GIB - PAGE, 2 * GIB) if at < ram}
    places = [("e2k.ram", offset) for offset in sorted(at)]
    if tags:
        places += [("e2k.ram-tags", 0), ("e2k.ram-tags", ram // 16 - PAGE)]
    places.append(("e2k.kernel", kernel - PAGE) if kernel else ("e2k.firmware", 0))
    pages = {place: numbers.randbytes(8) * (PAGE // 8) for place in places}
    return Whole(f"35-{name}", model, ram=ram, kernel=kernel, tags=tags, pages=pages)


SIZES = [
    _sized("128m", 128 * MIB),
    _sized("128m-kernel", 128 * MIB, kernel=5 * MIB + PAGE),
    _sized("128m-tags", 128 * MIB, tags=True),
    _sized("2g", 2 * GIB),
    _sized("2g-kernel-tags", 2 * GIB, kernel=20 * MIB, tags=True),
    _sized("2g-4k", 2 * GIB + 4 * KIB),
    _sized("2g-4k-kernel", 2 * GIB + 4 * KIB, kernel=PAGE),
    _sized("8g", 8 * GIB),
    _sized("8g-tags", 8 * GIB, model="e16c", tags=True),
]


def files() -> dict[Path, bytes]:
    """Every file with what it must hold."""
    made = {whole.path: whole.bytes() for whole in [*MACHINES, CELLAR, *SIZES]}
    made |= {order_path(name): joined(sections) for name, sections in ORDERS.items()}
    return made | {order_path("iommu-late"): joined(REFUSED_ORDER)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, raw in files().items():
        path.write_bytes(raw)
