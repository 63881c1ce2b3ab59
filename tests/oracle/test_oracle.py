"""The decoder in Rust and the oracle agree: accept or refuse, why and where, every element, every page of RAM.

Each example is a number: the same one gives the same stream. `pytest -m long tests/oracle` tries many.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzed import RECORDED, facts, our_stream, recorded
from oracle.compare import compare_decode, compare_stored
from oracle.devices import Described, by_heart
from oracle.memory import PAGE, patch
from oracle.reader import read
from oracle.streams import Maker, damaged, thinned
from qmig_e2k.analyze import analyze
from qmig_e2k.analyze.model import leaves
from qmig_e2k.testing import strategies

if TYPE_CHECKING:
    from collections.abc import Callable

    from oracle.reader import Reading

PLAIN = ["qemu29-none-plain", "qemu7-none-plain", "qemu10-none-plain", "e2k-plain"]
SEEDS = st.integers(0, 1 << 62)


def described(data: bytes) -> Described:
    """Devices by the description at the end of `data`."""
    at = data.rindex(b"\0")
    begin = next(at for at in range(at, at + 7) if int.from_bytes(data[at - 4 : at], "big") == len(data) - at)
    return Described(json.loads(data[begin:]))


# ---- the oracle itself, by what others say


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name):
    """RAM is what the QEMU had, and the decoder finds the same elements and pages."""
    files, said = recorded(name), facts(name)
    by_text = name == "qemu7-pc-xbzrle"
    first, again = (described(files[0]), described(files[0])) if by_text else (by_heart, by_heart)
    made = compare_stored(files, first, again)
    assert made.refused is None
    (main, *_) = made.blocks.values()
    assert main.size == said["ram_bytes"]
    assert hashlib.sha256(main.content()[said["ram_sha256_from"] :]).hexdigest() == said["ram_sha256"]


@pytest.mark.parametrize("name", ["ours", "qemu7-pc-xbzrle", "e2k-plain"])
def test_devices_by_description(name):
    """Every field of every device begins where `analyze` has it: arrays, structures, subsections."""
    data = our_stream() if name == "ours" else recorded(name)[0]
    devices = described(data)
    assert read(data, devices).refused is None
    made = analyze(data, hashes=False)
    assert made.complete
    assert len(devices.leaves) == len(made.devices)
    for found, device in zip(devices.leaves, made.devices, strict=True):
        wanted = {leaf.offset for leaf in found if leaf.size}
        assert {item.offset for _, item, _ in leaves(device.body)} <= wanted, device.path
        assert sum(leaf.size for leaf in found) <= device.size


@pytest.mark.parametrize(
    ("delta", "end", "byte"),
    [
        ("00 01 01", 1, 0x01),
        ("ff 1f 01 aa", 4096, 0xAA),
        ("81 01 01 ff", 130, 0xFF),
        ("83 1f 01 07", 3972, 0x07),
        ("", 0, 0),
        ("80 20 01 07", None, 0),
        ("80 80 01", None, 0),
        ("00 01 01 00 01", None, 0),
        ("05 00 00", None, 0),
        ("05", None, 0),
    ],
)
def test_deltas_of_the_specification(delta, end, byte):
    """The table of spec/stream.md 5.4."""
    made = patch(bytes(PAGE), bytes.fromhex(delta))
    assert made == (None if end is None else (bytes(max(end - 1, 0)) + bytes([byte]) * (end > 0)).ljust(PAGE, b"\0"))


# ---- both


def disagree(kind: str, seed: int) -> Reading:
    """Compares one made-up stream, in nineteen of twenty cases a damaged one."""
    numbers = random.Random(seed)
    if kind == "recorded":
        name = numbers.choice(RECORDED)
        files = [*thinned(name)] if name != "qemu7-pc-xbzrle" else [Maker(numbers).whole()]
    else:
        codings = kind == "stored" or (kind == "decode" and numbers.randrange(8) == 0)
        channels = numbers.randint(1, 3) if kind == "multifd" else 0
        files = Maker(numbers, codings=codings, channels=channels, mapped=kind == "mapped").files()
    if numbers.randrange(20):
        at = numbers.randrange(len(files)) if len(files) > 1 else 0
        files[at] = damaged(files[at], numbers, 4096 if kind == "recorded" and numbers.randrange(2) else None)
    try:
        return compare_decode(files[0], by_heart) if kind == "decode" else compare_stored(files, by_heart)
    except AssertionError as error:
        error.add_note(f"kind {kind}, seed {seed}")
        raise


KINDS = ["decode", "stored", "multifd", "mapped"]


def campaign(kind: str, first: int, count: int) -> None:
    """So many seeds; some streams must be taken, and some refused, or nothing was compared."""
    refused = sum(disagree(kind, seed).refused is not None for seed in range(first, first + count))
    assert count // 20 < refused < count - count // 20


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_made_up(kind, seed):
    disagree(kind, seed)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_damaged_recorded(seed):
    disagree("recorded", seed)


def test_known_seeds():
    """Those that once found something: what they found stands beside them."""
    for kind, seed in FOUND:
        disagree(kind, seed)


FOUND = [
    ("decode", 20186),  # the first field of a device that is cut off, not the whole payload
    ("decode", 21548),  # a package inside a package was taken
    ("stored", 21686),  # the end of the stream inside a package was taken
    ("multifd", 60030),  # an unknown block: its name, not the packet
    ("multifd", 60496),  # too many pages: that number, not the first
    ("multifd", 60023),  # a page that the file does not hold was said to have come, and could not be read
    ("mapped", 22115),  # pages at no place: that field, not the bitmap's
]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_many_made_up(kind):
    campaign(kind, 1_000_000, 10_000)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_damaged_recorded():
    campaign("recorded", 1_000_000, 2_000)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PLAIN)
def test_cut_at_every_byte(name):
    """Of a thinned stream: where the truncated field begins, to the byte."""
    (data,) = thinned(name)
    for cut in range(len(data)):
        compare_decode(data[:cut], by_heart)


def test_cut_at_every_byte_but_pages():
    """The same without the page records' many bytes."""
    (data,) = thinned("qemu29-none-plain")
    for cut in range(len(data)):
        compare_decode(data[:cut], by_heart)


def test_a_wrong_oracle_is_noticed(monkeypatch):
    """Neither side is believed: a decoder that took a page record's second byte for its first would be found out."""
    import oracle.compare

    honest: Callable[[bytes], object] = oracle.compare.decode
    monkeypatch.setattr(oracle.compare, "decode", lambda data: honest(data[:-1] if data.endswith(b"}") else data))
    with pytest.raises(AssertionError, match="the oracle: accepted"):
        compare_decode(thinned("qemu7-none-plain")[0], by_heart)


# ---- streams of the shipped strategies: devices of any shape, read by their description


WHOLE = strategies.streams(switches=False, formats=("2.9", "7.2"))
"""Not 10.0: its description says too much of an array of pointers that has a null behind another element (2.6.1)."""


def same_as_written(stream: strategies.Stream) -> None:
    """What the strategy says that it wrote is what both read."""
    made = compare_stored([stream.data], described(stream.data), described(stream.data))
    assert made.refused is None
    assert {name.decode(): block.content() for name, block in made.blocks.items()} == stream.memory


def same_of_damaged(made: strategies.Damaged) -> None:
    """By the description of the stream as it was: it may be what is damaged."""
    whole = made.stream.data
    compare_stored([made.data], described(whole), described(whole))


@settings(deadline=None, max_examples=20)
@given(stream=WHOLE)
def test_shipped_streams(stream):
    same_as_written(stream)


@settings(deadline=None, max_examples=25)
@given(made=strategies.damaged_streams(WHOLE))
def test_shipped_damage(made):
    same_of_damaged(made)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(deadline=None, max_examples=500)
@given(stream=WHOLE)
def test_many_shipped_streams(stream):
    same_as_written(stream)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(deadline=None, max_examples=1000)
@given(made=strategies.damaged_streams(WHOLE))
def test_many_shipped_damaged(made):
    same_of_damaged(made)
