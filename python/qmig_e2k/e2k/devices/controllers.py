"""What local interrupt controllers, SIC and IOMMU share: bit searches for their checks, and a CPU's request bits."""

from __future__ import annotations

from typing import Any

import numpy as np

HARD = 0x0002
"""Bit of `interrupt_request`: a maskable interrupt is pending."""
NMI = 0x0200
"""Bit of `interrupt_request`: a non-maskable interrupt is pending."""


def first_with(words: Any, bits: int) -> int | None:
    """Index of the first of the 32-bit `words` (numpy array or list) that has one of `bits`."""
    bad = np.asarray(words, np.uint32) & np.uint32(bits)
    return int(bad.nonzero()[0][0]) if bad.any() else None


def highest(words: Any, width: int) -> int:
    """Number of the highest bit set in `words` of `width` (32 or 64) bits each, the first word lowest; -1: none."""
    raw = np.asarray(words, f"<u{width // 8}").tobytes()
    return int.from_bytes(raw, "little").bit_length() - 1


def request(obj: Any, bit: int, pending: bool) -> None:
    """Set or clear one request bit of the CPU that `obj.cpu` is; nothing to do if there is none."""
    cpu = getattr(obj, "cpu", None)
    if cpu is not None:
        cpu.interrupt_request = cpu.interrupt_request & ~bit | (bit if pending else 0)
