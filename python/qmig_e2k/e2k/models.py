"""CPU models: what differs between them and travels (spec/e2k-machine.md 1.5, 1.6)."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CPUS = 8
DEFAULT_MODEL = "e8c"
_LINE_64 = 2
"""IDR code of a 64-byte write-back line."""


@dataclass(frozen=True, slots=True)
class CpuModel:
    """One CPU model.

    Attributes:
        name: as on the command line.
        isa: ISA version, the `isa` field on the wire.
        mdl: model byte of IDR.
        cores: cores per node.
        epic: EPIC interrupt controller instead of APIC.
        physical_bits: width of a physical address.
        revision: revision in IDR.
    """

    name: str
    isa: int
    mdl: int
    cores: int
    epic: bool = False
    physical_bits: int = 40
    revision: int = 2

    def idr(self, cpu_index: int) -> int:
        """The identification register of a CPU."""
        node, core = divmod(cpu_index, min(self.cores, 32))  # the core field has five bits
        return self.mdl | self.revision << 8 | _LINE_64 << 12 | core << 15 | node << 20


MODELS = {
    model.name: model
    for model in (
        CpuModel("e2c+", 2, 0x04, 2),
        CpuModel("e2s", 3, 0x03, 4),
        CpuModel("e8c", 4, 0x07, 8),
        CpuModel("e1c+", 4, 0x08, 1),
        CpuModel("e8c2", 5, 0x09, 8),
        CpuModel("e12c", 6, 0x0A, 12, epic=True, physical_bits=48),
        CpuModel("e16c", 6, 0x0B, 16, epic=True, physical_bits=48),
        CpuModel("e2c3", 6, 0x0C, 2, epic=True, physical_bits=48),
        CpuModel("e48c", 7, 0x0D, 48, epic=True, physical_bits=48),
        CpuModel("e8v7", 7, 0x0E, 8, epic=True, physical_bits=48),
    )
}


def cpu_model(name: str) -> CpuModel:
    """The model of that name; ValueError lists the known ones."""
    if name not in MODELS:
        raise ValueError(f"CPU model {name!r} is none of {', '.join(MODELS)}")
    return MODELS[name]
