#!/usr/bin/env python3
"""Makes the seeds of all targets, those of `stream` from the golden streams: small ones, for a fuzzer counts bytes.

Of a stream's page records only those survive that begin a run or end the stream, so a seed of a few KiB has every
element of the original. The first byte of a seed chooses how the target cuts the rest into pieces. Needs nothing but
Python; run it from anywhere.
"""

import lzma
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
STREAMS = HERE.parent / "tests" / "streams"
CORPUS = HERE / "corpus"

ZERO, PAGE, EOS, CONTINUE, XBZRLE, COMPRESS, FLUSH, FLAGS = 0x02, 0x08, 0x10, 0x20, 0x40, 0x100, 0x200, 0xFFF


def shrink(stream: bytes) -> bytes:
    """The stream with the first PART of RAM cut down to a few records.

    Args:
        stream: a whole plain precopy stream; its first PART is RAM's.
    """
    part = stream.index(b"\x02", stream.index(b"\x7e")) + 5
    records: list[tuple[int, bytes, bytes]] = []
    at, name = part, b""
    while True:
        (word,) = struct.unpack_from(">Q", stream, at)
        at += 8
        if word & FLAGS == EOS:
            break
        if not word & CONTINUE:
            name = stream[at : at + 1 + stream[at]]
            at += len(name)
        size = 4096 if word & PAGE else 1
        records.append((word, name, stream[at : at + size]))
        at += size
    out = bytearray(stream[:part])
    last = b""
    for index, (word, block, data) in enumerate(records):
        before = records[index - 1] if index else (0, b"", b"")
        if before[0] & FLAGS == word & FLAGS and before[1] == block and 2 < index < len(records) - 1:
            continue
        out += struct.pack(">Q", word | CONTINUE if block == last else word & ~CONTINUE)
        out += (b"" if block == last else block) + data
        last = block
    return bytes(out) + struct.pack(">Q", EOS) + stream[at:]


def coded() -> bytes:
    """A stream with pages in every other form."""
    packed = zlib.compress(bytes(4096))
    xbzrle = struct.pack(">Q", XBZRLE) + b"\3ram\1\0\3\0\1\7"
    compressed = struct.pack(">QI", 0x1000 | COMPRESS | CONTINUE, len(packed)) + packed
    blocks = struct.pack(">Q", 0x2000 | 0x04) + b"\3ram" + struct.pack(">Q", 0x2000)
    end = struct.pack(">Q", EOS) + b"\x7e\0\0\0\2"
    start = b"\1\0\0\0\2\3ram" + struct.pack(">II", 0, 4) + blocks + struct.pack(">Q", FLUSH) + end
    return b"QEVM\0\0\0\3\7\0\0\0\4none" + start + b"\2\0\0\0\2" + xbzrle + compressed + end + b"\0"


def deltas() -> dict[str, bytes]:
    """XBZRLE deltas (first byte even) and runs of changes (odd) as the target `xbzrle` takes them."""
    real = bytes.fromhex("830201dffb1d01de")
    runs = b"".join(struct.pack("<HBB", skip, length, 0x55) for skip, length in ((0, 1), (255, 8), (64, 3), (1, 200)))
    return {
        "decode-real": b"\0" + real,
        "decode-first": b"\0\0\1\1",
        "encode": b"\1" + runs,
        "encode-tight": b"\x0b" + runs,
    }


def packed() -> dict[str, bytes]:
    """Compressed pages: the first byte is the decoder of the target `pages`."""
    page = bytes(range(256)) * 16
    flush = zlib.compressobj(1)
    packets = b"".join(flush.compress(page) + flush.flush(zlib.Z_SYNC_FLUSH) + b"\xa5" for _ in range(2))
    raw = zlib.compressobj(1, zlib.DEFLATED, -15)
    frame = (
        bytes.fromhex("28b52ffd") + b"\x60\x00\x0f" + struct.pack("<I", (4096 << 3) | 3)[:3] + b"\0"
    )  # 4096 zeros, one RLE block
    return {
        "zlib": b"\0" + zlib.compress(page),
        "deflate": b"\1" + raw.compress(page) + raw.flush(),
        "zstd": b"\2" + frame,
        "packets": b"\3" + packets,
        "page": b"\4" + page[:64],
    }


def channel() -> bytes:
    """A multifd channel: handshake, a packet of a page and a zero page, device state, a sync."""
    head = struct.pack(">II", 0x11223344, 1)
    pages = head + struct.pack(">IIIIQI28s256s", 0, 128, 1, 4096, 0, 1, b"", b"ram") + struct.pack(">QQ", 0, 4096)
    state = head + struct.pack(">I256sII", 0x40, b"device", 0, 3) + b"abc"
    sync = head + struct.pack(">IIIIQI28s256s", 1, 0, 0, 0, 1, 0, b"", b"").ljust(1336, b"\0")
    return head + bytes(56) + pages.ljust(1344, b"\0") + bytes(4096) + state + sync


def main() -> None:
    """Write all seeds."""
    for target, seeds in {"xbzrle": deltas(), "pages": packed(), "multifd": {"channel": b"\0" + channel()}}.items():
        directory = CORPUS / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            (directory / f"seed-{name}").write_bytes(seed)
    streams = CORPUS / "stream"
    streams.mkdir(parents=True, exist_ok=True)
    (streams / "seed-coded").write_bytes(b"\0" + coded())
    for path in sorted(STREAMS.glob("*-plain.stream.xz")):
        seed = shrink(lzma.decompress(path.read_bytes()))
        name = path.name.removesuffix(".stream.xz")
        for choice in range(4):
            (streams / f"seed-{name}-{choice}").write_bytes(bytes([choice]) + seed)


if __name__ == "__main__":
    main()
