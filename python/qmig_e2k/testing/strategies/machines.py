"""Random states of the machines of this project: any type, CPU model and set of devices, every register legal."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qmig_e2k.e2k import MODELS, Machine, build
from qmig_e2k.e2k.full import OPTIONS
from qmig_e2k.e2k.machines import resolve
from qmig_e2k.e2k.models import MAX_CPUS
from qmig_e2k.testing.filled import filled


@st.composite
def machines(
    draw: st.DrawFn, machine_type: str = "e2k", *, ram_size: int = 1 << 20, max_cpus: int = MAX_CPUS
) -> tuple[Machine, Machine]:
    """A machine without its memory, off reset in every register, and another one of the kind that is in reset.

    `machine.blocks` says what memory they have.

    Args:
        draw: hypothesis' own.
        machine_type: name or alias.
        ram_size: bytes of main RAM, a multiple of 4 KiB.
        max_cpus: CPUs that it has at most.
    """
    name = resolve(machine_type)
    choice: dict[str, Any] = {}
    if name != "none":
        choice["cpus"] = draw(st.integers(1, max_cpus))
    if name == "e2k-1.0":
        choice["model"] = draw(st.sampled_from(list(MODELS)))
        choice["tags"] = draw(st.booleans())
        choice["options"] = draw(st.sets(st.sampled_from(OPTIONS)))
    seed = draw(st.integers(0, 1 << 32))
    return filled(build(name, ram_size, **choice), seed), build(name, ram_size, **choice)
