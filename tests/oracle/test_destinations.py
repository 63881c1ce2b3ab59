"""A stream for machine `none`, mostly a damaged one: the oracle, our machine and a real QEMU 7.2 say the same of it.

`DIFFERENCES` is the table of what is tolerated, with the reason of each. All else is a fault of one of the three.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest

from oracle.destination import oracle, ours, qemu, stream
from oracle.streams import damaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oracle.source import Refused


class Difference(NamedTuple):
    """What we refuse and a QEMU 7.2 takes.

    Attributes:
        kinds: what we call it.
        words: what the oracle's stream must have in common, by its refusal.
        reason: why it stays.
    """

    kinds: frozenset[str]
    holds: Callable[[bytes, Refused], bool]
    reason: str


def _always(_data: bytes, _refused: Refused) -> bool:
    return True


def _prefix(data: bytes, refused: Refused) -> bool:
    length = int.from_bytes(data[9:13], "big")
    return refused.offset == 8 and b"none".startswith(data[13 : 13 + length][:length]) and length < 4


DIFFERENCES = {
    "a section that did not come": Difference(
        frozenset({"missing-section"}),
        _always,
        "QEMU starts a machine whose RAM or clock stayed at reset; ours says what is missing",
    ),
    "a shorter machine name": Difference(
        frozenset({"bad-configuration"}),
        _prefix,
        "QEMU compares only as many bytes as were sent (spec/stream.md 1.3); whole names are safer",
    ),
    "a live section announced again": Difference(
        frozenset({"duplicate-section"}),
        _always,
        "QEMU lets a second START replace the first (spec/stream.md 14.1); no QEMU sends one",
    ),
    "a block list out of place": Difference(
        frozenset({"bad-flags"}),
        lambda data, refused: int.from_bytes(data[refused.offset : refused.offset + 8], "big") & 0xFFF & ~0x20 == 0x04,
        "QEMU takes MEM_SIZE in every RAM section (spec/stream.md 4.2); it belongs first into START",
    ),
    "a START that does not begin with a block list": Difference(
        frozenset({"bad-flags"}),
        lambda data, refused: int.from_bytes(data[refused.offset : refused.offset + 8], "big") & 0xFFF & ~0x20 == 0x10,
        "QEMU takes a START without blocks; nothing could be placed then",
    ),
    "FULL where a live section belongs, or the other way": Difference(
        frozenset({"unknown-section"}),
        lambda data, refused: data[refused.offset] in {1, 2, 3, 4},
        "QEMU hands START, PART, END and FULL to the same loader (spec/stream.md 14.1); a kind says what follows",
    ),
    "a flag without a meaning": Difference(
        frozenset({"bad-flags"}),
        lambda data, refused: data[refused.offset + 7] & 0x80 != 0,
        "7.2 takes a word with the bit of RDMA's hook for that, whatever else is set (spec/stream.md 4.1)",
    ),
    "a version of zero": Difference(
        frozenset({"bad-version"}),
        _always,
        "7.2 checks only the upper limit of a version in the header; the lower one is the description's",
    ),
}


def _stream(seed: int) -> bytes:
    numbers = random.Random(seed)
    data = stream(numbers)
    return damaged(data, numbers) if numbers.randrange(20) else data


def with_ours(folder: Path, seed: int) -> bool:
    """Compares the oracle and our machine: verdict, kind, offset, memory. Whether it was taken."""
    data = _stream(seed)
    wanted, refused = oracle(data)
    found, error = ours(folder, data)
    where = f"seed {seed}: the oracle: {wanted.refused or 'accepted'}; ours: {found.refused or 'accepted'}"
    assert (wanted.refused is None) == (found.refused is None), where
    if refused is None:
        assert wanted.memory == found.memory, f"seed {seed}: memory differs"
    else:
        assert error is not None
        assert error.kind == refused.kind, where
        # what is not there has no place
        assert error.offset == refused.offset or refused.kind == "missing-section", where
    return refused is None


def with_qemu(binary: str, folder: Path, seed: int) -> str | None:
    """Compares the oracle and a QEMU: verdict and memory. The name of the difference that is tolerated, if one is."""
    data = _stream(seed)
    wanted, refused = oracle(data)
    folder.mkdir()
    found = qemu(binary, folder, data)
    if wanted.refused is None and found.refused is None:
        assert wanted.memory == found.memory, f"seed {seed}: memory differs"
    if (wanted.refused is None) == (found.refused is None):
        return None
    assert refused is not None, f"seed {seed}: we take what QEMU refuses: {found.refused}"
    names = [name for name, one in DIFFERENCES.items() if refused.kind in one.kinds and one.holds(data, refused)]
    assert names, f"seed {seed}: QEMU takes what we refuse: {wanted.refused}"
    return names[0]


def test_our_machine(tmp_path):
    taken = [with_ours(tmp_path, seed) for seed in range(80)]
    assert 8 < sum(taken) < 72


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_our_machine_often(tmp_path):
    taken = [with_ours(tmp_path, seed) for seed in range(10_000, 16_000)]
    assert 1000 < sum(taken) < 5000


def test_a_real_qemu(qemu_binary, tmp_path):
    for seed in range(6):
        with_qemu(qemu_binary, tmp_path / str(seed), seed)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_real_qemu_often(qemu_binary, tmp_path):
    """Says how often each tolerated difference came."""
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda seed: with_qemu(qemu_binary, tmp_path / str(seed), seed), range(1000, 1400))]
    print({name: found.count(name) for name in DIFFERENCES})
