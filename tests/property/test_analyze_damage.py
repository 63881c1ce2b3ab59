"""analyze of damaged streams: no exception ever, all before the damage is there, and the result is consistent."""

from __future__ import annotations

import io
import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzed import our_stream, recorded
from elements import take_apart
from qmig_e2k.analyze import analyze
from qmig_e2k.analyze.tree import show, tree

PAGE = 4096


@cache
def small(name: str) -> bytes:
    """A recorded stream without most of its page records: those at both ends are left."""
    if name == "ours":
        return our_stream("e8c")
    (data,) = recorded(name)
    if name == "qemu7-pc-xbzrle":
        # rounds of deltas need each other; the devices are what matters here, so take RAM from elsewhere
        devices = data[analyze(data, hashes=False).devices[0].offset :]
        (head,) = recorded("qemu29-none-plain")
        return head[:17] + start_of(head) + devices
    (name_of_block, *_) = take_apart(data).blocks
    first = data.index(b"\0\0\0\0\0\0\x30\x22")  # the fourth record; all between are alike
    last = data.rindex(b"\x22\0", 0, data.index(b"\3\0\0\0", first)) - 7
    assert name_of_block
    return data[:first] + data[last:]


def start_of(data: bytes) -> bytes:
    """START of RAM, of section 2 as in the stream that it goes before."""
    end = data.index(b"\x7e", 17) + 5
    return data[17:end]


@cache
def whole(name: str):
    made = analyze(small(name), hashes=False)
    assert made.complete
    return made


def check(data: bytes, *, text: bool = True) -> dict:
    """Analyse; the record, which must be consistent. The text, which costs more than all the rest, can be left out."""
    made = analyze(data, hashes=False)
    record = json.loads(json.dumps(made.record()))
    assert record["complete"] is ("error" not in record)
    if "error" in record:
        assert 0 <= record["error"]["offset"] <= len(data)
        assert record["error"]["kind"]
        assert record["error"]["message"]
    assert 0 <= record["end_offset"] <= len(data)
    offsets = [device["offset"] for device in record["devices"]]
    assert offsets == sorted(offsets)
    assert all(device["offset"] + device["size"] <= len(data) for device in record["devices"])
    if text:
        show(tree(made), io.StringIO())
    return record


def check_cut(name: str, cut: int, *, text: bool = True) -> None:
    """What stands before the cut is there; the values too, where the layout is ours."""
    reference = whole(name)
    record = check(small(name)[:cut], text=text)
    before = [device for device in reference.devices if device.offset + header(device) + device.size + 5 <= cut]
    found = record["devices"]
    assert [(d["name"], d["offset"], d["size"]) for d in found[: len(before)]] == [
        (d.name, d.offset, d.size) for d in before
    ]
    assert len(found) <= len(before) + 1
    end = reference.description["offset"]
    if cut in {end, len(small(name))}:
        assert record["complete"]
    else:
        assert not record["complete"]
    if name != "qemu7-pc-xbzrle":
        assert "note" not in json.dumps([device for device in found if not device.get("partial")])


def header(device) -> int:
    return 5 + 1 + len(device.name) + 8


@pytest.mark.parametrize("name", ["e2k-plain", "qemu7-pc-xbzrle", "ours"])
def test_cut_around_every_section(name):
    """Two bytes around where each header, payload and footer begins; between them every 1/32 of the devices."""
    reference = whole(name)
    first, last = reference.devices[0].offset, reference.description["offset"]
    between = range(first, last, max((last - first) // 32, 1))
    cuts = {*range(24), *between}
    for device in reference.devices:
        payload = device.offset + header(device)
        cuts |= {place + by for place in (device.offset, payload, payload + device.size) for by in range(-2, 3)}
    cuts |= {*range(last - 2, last + 8), (last + reference.length) // 2, reference.length - 1, reference.length}
    for cut in sorted(cuts):
        check_cut(name, cut, text=cut in between)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["e2k-plain", "qemu7-pc-xbzrle", "ours"])
def test_cut_at_every_byte(name):
    """Of the stream without its page records; the text of the description is only looked at as a whole."""
    reference = whole(name)
    first, last = reference.devices[0].offset, reference.description["offset"]
    for cut in [*range(200), *range(first - 20, last + 8), *range(last + 8, reference.length, 997)]:
        check_cut(name, cut)


@settings(max_examples=20)
@given(cut=st.integers(0, 1 << 62))
def test_our_machine_cut_anywhere(cut):
    reference = whole("ours")
    first = reference.devices[0].offset
    check_cut("ours", first + cut % (reference.length - first))


@pytest.mark.parametrize("name", ["e2k-plain", "qemu7-pc-xbzrle", "ours"])
@settings(max_examples=30)
@given(damage=st.lists(st.tuples(st.integers(0, 1 << 62), st.integers(1, 255)), min_size=1, max_size=4))
def test_damaged_bytes(name, damage):
    """The devices before the first damage are as they were."""
    data = bytearray(small(name))
    first = whole(name).devices[0].offset
    places = [first + place % (len(data) - first) for place, _ in damage]
    for place, (_, bits) in zip(places, damage, strict=True):
        data[place] ^= bits
    record = check(bytes(data))
    before = [d for d in whole(name).devices if d.offset + header(d) + d.size + 5 <= min(places)]
    assert [(d["name"], d["offset"], d["size"]) for d in record["devices"][: len(before)]] == [
        (d.name, d.offset, d.size) for d in before
    ]


@settings(max_examples=60)
@given(data=st.binary(max_size=300), head=st.sampled_from([b"", b"QEVM\0\0\0\3", b"QEVM\0\0\0\3\7\0\0\0\4none"]))
def test_anything(head, data):
    check(head + data)


@pytest.mark.parametrize("name", ["qemu7-none-compress", "qemu7-pc-xbzrle", "qemu10-none-mapped-ram"])
@settings(max_examples=15)
@given(place=st.integers(0, 1 << 62), bits=st.integers(0, 255))
def test_damaged_ram(name, place, bits):
    """Cut (no bits) or flipped inside RAM."""
    data = bytearray(recorded(name)[0])
    place %= len(data)
    data[place] ^= bits
    check(bytes(data if bits else data[:place]))


@pytest.mark.parametrize("name", ["qemu10-none-multifd", "qemu10-none-multifd-zstd", "qemu7-none-multifd-zlib"])
@settings(max_examples=15)
@given(place=st.integers(0, 1 << 62), bits=st.integers(0, 255))
def test_damaged_channels(name, place, bits):
    main, *channels = recorded(name)
    data = bytearray(channels[place % 2])
    place %= len(data)
    data[place] ^= bits
    channels[place % 2] = bytes(data if bits else data[:place])
    made = analyze([main, *channels])
    assert made.complete is (made.error is None)
    if made.error is not None and "channel" in made.error["path"]:
        assert 0 <= made.error["offset"] <= max(map(len, channels))
