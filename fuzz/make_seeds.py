#!/usr/bin/env python3
"""Makes the seed corpus from the golden streams: small ones, since a fuzzer's speed is bytes a second.

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
SEEDS = HERE / "corpus" / "stream"

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


def main() -> None:
    """Write all seeds."""
    SEEDS.mkdir(parents=True, exist_ok=True)
    (SEEDS / "seed-coded").write_bytes(b"\0" + coded())
    for path in sorted(STREAMS.glob("*-plain.stream.xz")):
        seed = shrink(lzma.decompress(path.read_bytes()))
        name = path.name.removesuffix(".stream.xz")
        for choice in range(4):
            (SEEDS / f"seed-{name}-{choice}").write_bytes(bytes([choice]) + seed)


if __name__ == "__main__":
    main()
