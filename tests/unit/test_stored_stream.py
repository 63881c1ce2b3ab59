"""StoredStream: RAM in every coding that QEMU has, from all channels; hostile packets are refused by name."""

import hashlib
import json
import lzma
import os
import random
import struct
import zlib

import pytest

from qmig_e2k._core import StoredStream, StreamError
from support import PAGE, STREAMS

RECORDED = sorted(path.stem for path in STREAMS.glob("*.json") if "files" in json.loads(path.read_text()))
ZERO, PAGE_FLAG, EOS, CONTINUE, XBZRLE, COMPRESS, FLUSH = 0x02, 0x08, 0x10, 0x20, 0x40, 0x100, 0x200
MAGIC = 0x11223344
SYNC, ZLIB, QPL, UADK, DEVICE_STATE = 0x01, 0x02, 0x08, 0x10, 0x40


def stored(*files, footers=None):
    """A stream of these files' bytes, main first."""
    descriptors = []
    for data in files:
        descriptors.append(os.memfd_create("stream"))
        os.write(descriptors[-1], data)
    return StoredStream(descriptors[0], descriptors[1:], footers=footers)


def read_all(stream):
    """All elements; device payloads end where their footer is."""
    elements = []
    while (element := stream.next()) is not None:
        elements.append(element)
    stream.finish_channels()
    return elements


def memory(stream, block=0):
    return bytes(stream.read(block, 0, stream.blocks()[block]["size"]))


def runs(stream):
    found = []
    while (run := stream.next_run(0, sum(found[-1]) if found else 0)) is not None:
        found.append(run)
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_ram_of_recorded_streams(name):
    said = json.loads((STREAMS / f"{name}.json").read_text())
    files = [lzma.decompress((STREAMS / file).read_bytes()) for file in said["files"]]
    stream = stored(*files)
    while (element := stream.next()) is not None:
        if element["type"] == "full":
            footer = files[0].index(b"\x7e" + struct.pack(">I", element["section_id"]), stream.offset)
            stream.reader.skip(footer - stream.offset)
            stream.section_done()
    stream.finish_channels()
    block = stream.blocks()[0]
    assert block["complete"]
    assert block["size"] == said["ram_bytes"]
    assert hashlib.sha256(memory(stream)[said["ram_sha256_from"] :]).hexdigest() == said["ram_sha256"]


# ---- made-up streams


def head(pages=8, block=b"ram", flush=False, capabilities=b""):
    """Header to the end of START."""
    made = b"QEVM\0\0\0\3\7\0\0\0\4none" + capabilities + b"\1\0\0\0\2\3ram" + struct.pack(">II", 0, 4)
    made += struct.pack(">Q", pages * PAGE | 4) + bytes([len(block)]) + block + struct.pack(">Q", pages * PAGE)
    return made + (word(FLUSH) if flush else b"") + word(EOS) + FOOTER


FOOTER = b"\x7e\0\0\0\2"
NAME = b"\3ram"


def word(value):
    return struct.pack(">Q", value)


def part(*records):
    return b"\2\0\0\0\2" + b"".join(records) + word(EOS) + FOOTER


def hello(channel=0):
    return struct.pack(">II16sB39x", MAGIC, 1, bytes(16), channel)


def packet(normal=(), zero=(), flags=0, data=b"", size=None, room=128, block=b"ram"):
    return (
        struct.pack(
            ">IIIIIIQI28x", MAGIC, 1, flags, room, len(normal), len(data) if size is None else size, 0, len(zero)
        )
        + block.ljust(256, b"\0")
        + b"".join(map(word, [*normal, *zero])).ljust(1024, b"\0")
        + data
    )


def zeros(pages):
    """One record for each page."""
    return [
        word(page * PAGE | ZERO | (CONTINUE if page else 0)) + (b"" if page else NAME) + b"\0" for page in range(pages)
    ]


def pages(*fills):
    return b"".join(bytes([fill]) * PAGE for fill in fills)


END = b"\0"


def test_every_record():
    packed = zlib.compress(pages(3))
    records = [
        *zeros(8),
        word(PAGE | PAGE_FLAG | CONTINUE) + pages(1),
        word(PAGE | XBZRLE | CONTINUE) + b"\1\0\3\0\1\x09",
        word(PAGE | XBZRLE | CONTINUE) + b"\1\0\4\x80\x02\1\x08",
        word(2 * PAGE | XBZRLE | CONTINUE) + b"\1\0\4\xff\x1f\1\x07",
        word(3 * PAGE | COMPRESS | CONTINUE) + struct.pack(">I", len(packed)) + packed,
        word(4 * PAGE | ZERO | CONTINUE) + b"\x44",
    ]
    stream = stored(head() + part(*records) + END)
    elements = read_all(stream)
    assert elements[2]["pages"] == {"normal": 1, "zero": 9, "xbzrle": 3, "compressed": 1}
    found = memory(stream)
    first = bytearray(pages(1))
    first[0], first[256] = 9, 8
    assert found == pages(0) + first + bytes(4095) + b"\7" + pages(3, 0x44, 0, 0, 0)
    assert runs(stream) == [(PAGE, 4 * PAGE)]


def test_what_did_not_come():
    stream = stored(head() + part(*zeros(8)[:7]) + END)
    read_all(stream)
    assert not stream.blocks()[0]["complete"]
    assert memory(stream) == bytes(8 * PAGE)
    for offset, length in [(0, 1), (1, PAGE), (0, 9 * PAGE), (8 * PAGE, PAGE)]:
        with pytest.raises(Exception, match="no whole pages"):
            stream.read(0, offset, length)
    with pytest.raises(Exception, match="no whole pages"):
        stream.next_run(1, 0)


def test_a_giant_block_costs_nothing():
    stream = stored(head(pages=1 << 40) + part(word((1 << 51) | PAGE_FLAG) + NAME + pages(5)) + END)
    read_all(stream)
    assert runs(stream) == [(1 << 51, PAGE)]
    assert stream.read(0, (1 << 51) - PAGE, 3 * PAGE) == pages(0, 5, 0)
    assert not stream.blocks()[0]["complete"]


# ---- multifd


def test_a_sync_word_orders_rounds():
    """Round 1 on channel 0, round 2 on channel 1: the newer version wins, whatever the order of the files."""
    first = (
        hello(0)
        + packet(flags=SYNC, room=0)
        + packet([0, PAGE], data=pages(1, 1))
        + packet(flags=SYNC)
        + packet(flags=SYNC)
    )
    second = (
        hello(1)
        + packet(flags=SYNC, room=0)
        + packet(flags=SYNC)
        + packet([0], [PAGE], data=pages(2))
        + packet(flags=SYNC)
    )
    main = head(pages=3, flush=True) + part(*zeros(3), word(FLUSH)) + part(word(FLUSH)) + part() + END
    for channels in [(first, second), (second, first)]:
        stream = stored(main, *channels)
        read_all(stream)
        assert memory(stream) == pages(2, 0, 0)
        assert {channel["id"]: (channel["normal"], channel["zero"]) for channel in stream.channels()} == {
            0: (2, 0),
            1: (1, 1),
        }


def test_sections_order_rounds():
    """Without the word every end of a section is a point of synchronisation; SYNC may come with pages."""
    first = (
        hello(0)
        + packet(flags=SYNC)
        + packet([0, PAGE], flags=SYNC, data=pages(1, 1))
        + packet()
        + packet(flags=SYNC, size=77)
    )
    second = hello(1) + packet(flags=SYNC) + packet(flags=SYNC) + packet([0], flags=SYNC, data=pages(2)) + packet()
    stream = stored(head(pages=3) + part(*zeros(3)) + part() + END, first, second)
    read_all(stream)
    assert memory(stream) == pages(2, 1, 0)


def test_pages_behind_the_last_sync():
    channel = hello() + packet(flags=SYNC) + packet([PAGE], data=pages(6))
    stream = stored(head(pages=2) + END, channel)
    read_all(stream)
    assert memory(stream) == pages(0, 6)


def test_without_the_channels_pages_are_missing():
    stream = stored(head(pages=3, flush=True) + part(*zeros(2)) + END)
    read_all(stream)
    assert not stream.blocks()[0]["complete"]


def deflate(data, raw):
    packer = zlib.compressobj(wbits=-15 if raw else 15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("method", [QPL, UADK])
def test_pages_one_by_one(method):
    numbers = random.Random(3)
    noise = numbers.randbytes(PAGE)
    packed = deflate(pages(4), method == QPL)
    data = struct.pack(">II", PAGE, len(packed)) + noise + packed
    channel = hello() + packet([0, PAGE], flags=SYNC | method, data=data)
    stream = stored(head(pages=2) + END, channel)
    read_all(stream)
    assert memory(stream) == noise + pages(4)


def synced(packer, data):
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def test_zlib_over_packets():
    packer = zlib.compressobj(1)
    channel = (
        hello()
        + packet([PAGE], flags=ZLIB, data=synced(packer, pages(1)))
        + packet([0], flags=ZLIB | SYNC, data=synced(packer, pages(2)))
    )
    stream = stored(head(pages=2) + END, channel)
    read_all(stream)
    assert memory(stream) == pages(2, 1)


def test_device_state_is_passed_over():
    state = (
        struct.pack(">III", MAGIC, 1, DEVICE_STATE) + b"vfio".ljust(256, b"\0") + struct.pack(">II", 0, 5) + b"state"
    )
    stream = stored(head(pages=2) + END, hello() + state + packet(flags=SYNC))
    read_all(stream)
    assert stream.channels()[0]["device_state"] == 5


MULTIFD_REFUSALS = {
    "no channel": (b"", "truncated", 0, "ram/channel 1"),
    "magic": (b"QEVM" + hello()[4:], "bad-magic", 0, "ram/channel 1"),
    "version": (struct.pack(">II", MAGIC, 2) + bytes(56), "bad-version", 4, "ram/channel 1"),
    "no sync": (hello(), "truncated", 64, "ram/channel 1"),
    "cut": (hello() + packet(flags=SYNC)[:-1], "truncated", 64 + 320, "ram/channel 1"),
    "flags": (hello() + packet(flags=0x80), "bad-flags", 72, "ram/channel 1"),
    "two methods": (hello() + packet(flags=ZLIB | QPL), "bad-flags", 72, "ram/channel 1"),
    "qatzip": (hello() + packet(flags=0x20), "unsupported", 72, "ram/channel 1"),
    "device state with pages": (hello() + packet(flags=DEVICE_STATE | SYNC), "bad-flags", 72, "ram/channel 1"),
    "no device state": (
        hello() + struct.pack(">III", MAGIC, 1, DEVICE_STATE) + bytes(264),
        "limit-exceeded",
        64 + 272,
        "ram/channel 1",
    ),
    "room": (hello() + packet(room=129), "limit-exceeded", 76, "ram/channel 1"),
    "too many": (hello() + packet([0], [PAGE], room=1, data=pages(1)), "limit-exceeded", 96, "ram/channel 1"),
    "size": (hello() + packet([0], data=pages(1)[1:]), "limit-exceeded", 84, "ram/channel 1"),
    "no data": (hello() + packet([0], flags=ZLIB), "limit-exceeded", 84, "ram/channel 1"),
    "much data": (hello() + packet([0], flags=ZLIB, size=(1 << 20) + 1), "limit-exceeded", 84, "ram/channel 1"),
    "unknown block": (hello() + packet([0], data=pages(1), block=b"rom"), "unknown-block", 128, "ram/channel 1/rom"),
    "outside": (hello() + packet([0, 2 * PAGE], data=pages(1, 1)), "bad-address", 64 + 328, "ram/channel 1/ram"),
    "between pages": (hello() + packet([], [8]), "bad-address", 64 + 320, "ram/channel 1/ram"),
    "data cut": (hello() + packet([0], data=pages(1))[:-7], "truncated", 64 + 1344, "ram/channel 1/ram"),
    "no zlib": (hello() + packet([0], flags=ZLIB, data=b"\x55" * 9), "bad-page", 64, "ram/channel 1/ram"),
    "short zlib": (hello() + packet([0], flags=ZLIB, data=zlib.compress(b"x")), "bad-page", 64, "ram/channel 1/ram"),
    "no zstd": (hello() + packet([0], flags=0x04, data=b"\x55" * 9), "bad-page", 64, "ram/channel 1/ram"),
    "table": (hello() + packet([0], flags=QPL, data=b"\0\0\0\7abc"), "bad-page", 64, "ram/channel 1/ram"),
    "no table": (hello() + packet([0], flags=UADK, data=b"\0\0"), "bad-page", 64, "ram/channel 1/ram"),
    "behind the table": (
        hello() + packet([0], flags=QPL, data=struct.pack(">I", PAGE) + pages(1) + b"x"),
        "bad-page",
        64,
        "ram/channel 1/ram",
    ),
    "another method": (
        hello()
        + packet([0], flags=ZLIB, data=synced(zlib.compressobj(), pages(1)))
        + packet([0], flags=0x04, data=b"x"),
        "bad-flags",
        None,
        "ram/channel 1/ram",
    ),
}


@pytest.mark.parametrize("name", MULTIFD_REFUSALS)
def test_multifd_refusals(name):
    channel, kind, offset, path = MULTIFD_REFUSALS[name]
    with pytest.raises(StreamError) as caught:
        read_all(stored(head(pages=2) + END, channel))
    error = caught.value
    assert (error.kind, error.path) == (kind, path), str(error)
    assert offset is None or error.offset == offset, str(error)
    assert error.offset <= len(channel)


# ---- mapped-ram, x-ignore-shared, huge pages


def capability(name):
    return b"\5\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1" + bytes([len(name)]) + name


def mapped(pages_=3, version=1, page_size=PAGE, bitmap=None, at=1 << 20, bits=0b101):
    """A file with pages 0 and 2 of one block, and zeros."""
    made = head(pages_, capabilities=capability(b"mapped-ram"))[: -len(word(EOS) + FOOTER)]
    here = len(made) + 28
    made += struct.pack(">IQQQ", version, page_size, here if bitmap is None else bitmap, at)
    made += bits.to_bytes(8, "little")
    made = made.ljust(at, b"\xee") + pages(1, 0xEE, 3)
    return made + word(EOS) + FOOTER + END, here


def test_mapped_ram():
    data, _ = mapped()
    stream = stored(data)
    assert read_all(stream)[0]["capabilities"] == ["mapped-ram"]
    (block,) = stream.blocks()
    assert block["complete"]
    assert block["mapped"]
    assert memory(stream) == pages(1, 0, 3)
    assert runs(stream) == [(0, PAGE), (2 * PAGE, PAGE)]


def test_mapped_ram_bits_behind_the_last_page():
    stream = stored(mapped(bits=(1 << 64) - 1)[0])
    read_all(stream)
    assert runs(stream) == [(0, 3 * PAGE)]


@pytest.mark.parametrize(
    ("change", "kind", "back"),
    [
        ({"version": 0}, "bad-version", 28),
        ({"version": 2}, "bad-version", 28),
        ({"page_size": 0}, "block-mismatch", 24),
        ({"bitmap": 5}, "bad-address", 16),
        ({"bitmap": (1 << 64) - 1}, "bad-address", 16),
        ({"bitmap": 1 << 20}, "bad-address", 8),
    ],
)
def test_mapped_ram_refusals(change, kind, back):
    data, here = mapped(**change)
    with pytest.raises(StreamError) as caught:
        read_all(stored(data))
    assert (caught.value.kind, caught.value.offset, caught.value.path) == (kind, here - back, "ram/ram")


def test_mapped_ram_cut():
    data, here = mapped()
    for cut in [here, here + 8, 1 << 20, (1 << 20) + 3 * PAGE - 1]:
        with pytest.raises(StreamError) as caught:
            read_all(stored(data[:cut]))
        assert caught.value.kind == "truncated"
        assert caught.value.offset <= cut


def test_addresses():
    data = head(2, capabilities=capability(b"x-ignore-shared"))
    at = len(data) - len(word(EOS) + FOOTER)
    stream = stored(data[:at] + word(0x40000000) + data[at:] + END)
    read_all(stream)
    assert stream.blocks()[0]["address"] == 0x40000000


def test_huge_pages():
    """ADVISE says that there are such blocks; which ones shows by their entry."""
    advise = b"\x08\0\3\0\x10" + word(0x201000) + word(0x1000)
    lists = struct.pack(">Q", 0x600000 | 4) + b"\1a" + word(0x200000) + b"\1b" + word(0x400000) + word(0x200000)
    start = b"\1\0\0\0\2\3ram" + struct.pack(">II", 0, 4) + lists + word(EOS) + FOOTER
    stream = stored(b"QEVM\0\0\0\3\7\0\0\0\4none" + advise + start + END)
    read_all(stream)
    assert [(block["name"], block["page_size"]) for block in stream.blocks()] == [("a", PAGE), ("b", 0x200000)]


def test_unknown_capability():
    with pytest.raises(StreamError, match="sorcery") as caught:
        read_all(stored(head(capabilities=capability(b"sorcery"))))
    assert caught.value.kind == "bad-configuration"


RECORD_REFUSALS = {
    "encoding": (word(XBZRLE) + NAME + b"\2\0\0", "bad-page", 12, "ram/ram"),
    "long delta": (word(XBZRLE) + NAME + b"\1\x10\1", "limit-exceeded", 13, "ram/ram"),
    "delta": (word(XBZRLE) + NAME + b"\1\0\1\5", "bad-page", 0, "ram/ram"),
    "no zlib": (word(COMPRESS) + NAME + b"\0\0\0\1\5", "bad-page", 0, "ram/ram"),
    "empty": (word(COMPRESS) + NAME + b"\0\0\0\0", "limit-exceeded", 12, "ram/ram"),
    "negative": (word(COMPRESS) + NAME + b"\xff\xff\xff\xff", "limit-exceeded", 12, "ram/ram"),
    "delta outside": (word(XBZRLE | 8 * PAGE) + NAME + b"\1\0\0", "bad-address", 0, "ram/ram"),
    "hook": (word(0x80), "unsupported", 0, "ram"),
}


@pytest.mark.parametrize("name", RECORD_REFUSALS)
def test_record_refusals(name):
    record, kind, offset, path = RECORD_REFUSALS[name]
    start = head()
    with pytest.raises(StreamError) as caught:
        read_all(stored(start + part(record)))
    assert (caught.value.kind, caught.value.offset, caught.value.path) == (kind, len(start) + 5 + offset, path)


def test_no_file():
    with pytest.raises(Exception, match="descriptor"):
        StoredStream(-1, [])
