"""CPU models: what differs between them and travels (spec/e2k-machine.md 1.5, 1.6)."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CPUS = 8
DEFAULT_MODEL = "e8c"
_LINE_64 = 2
"""IDR code of a 64-byte write-back line."""


@dataclass(frozen=True, slots=True)
class CpuModel:
    """One CPU model. What depends on the generation is asked as `model.isa >= 6`.

    Attributes:
        name: as on the command line.
        isa: ISA version, the `isa` field on the wire.
        mdl: model byte of IDR.
        cores: cores per node.
        mc_block: bytes of the memory controllers' registers in SIC (of all up to ISA v5, of each since v6); 0: none.
        mc_count: memory controllers of a node.
        epic: EPIC interrupt controller instead of APIC.
        physical_bits: width of a physical address.
        revision: revision in IDR.
    """

    name: str
    isa: int
    mdl: int
    cores: int
    mc_block: int
    mc_count: int
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
        CpuModel("e2c+", 2, 0x04, 2, 0, 0),
        CpuModel("e2s", 3, 0x03, 4, 0xA4, 3),
        CpuModel("e8c", 4, 0x07, 8, 0xE4, 4),
        CpuModel("e8c2", 5, 0x09, 8, 0xF4, 4),
        CpuModel("e12c", 6, 0x0A, 12, 0x60, 2, epic=True, physical_bits=48),
        CpuModel("e16c", 6, 0x0B, 16, 0x60, 8, epic=True, physical_bits=48),
        CpuModel("e2c3", 6, 0x0C, 2, 0x60, 2, epic=True, physical_bits=48),
    )
}
"""The models that a machine can have."""

REFUSED = {
    "e1c+": "the size of its memory controllers' register block in SIC is unknown",
    "e48c": "its model number in IDR and its memory controllers' registers in SIC are unknown",
    "e8v7": "its memory controllers' registers in SIC are unknown",
    "virt": "it is the virtual CPU of the kernel's own hypervisor, without a machine of its own",
}
"""Models that exist but are not described completely, with the reason."""


def cpu_model(name: str) -> CpuModel:
    """The model of that name; ValueError says why not, or lists the known ones."""
    if name in REFUSED:
        raise ValueError(f"CPU model {name!r} is not possible: {REFUSED[name]}; use one of {', '.join(MODELS)}")
    if name not in MODELS:
        raise ValueError(f"CPU model {name!r} is none of {', '.join(MODELS)}")
    return MODELS[name]
