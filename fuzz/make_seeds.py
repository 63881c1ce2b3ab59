#!/usr/bin/env python3
"""Makes the seeds of all targets, whole streams from the golden ones: small, for a fuzzer counts bytes.

Of a stream's page records only those survive that begin a run or end the stream, so a seed of a few KiB has every
element of the original. The first byte of a seed chooses how the target cuts the rest into pieces. Needs nothing but
Python; run it from anywhere.
"""

import lzma
import random
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


EOS_WORD = struct.pack(">Q", EOS)


def records() -> bytes:
    """Page records of every form for the blocks of the targets `ram` and `memory`."""
    packed = zlib.compress(b"page" * 1024)
    return b"".join(
        (
            struct.pack(">Q", 0x1000 | PAGE) + b"\3ram" + bytes(range(256)) * 16,
            struct.pack(">QB", 0x2000 | ZERO | CONTINUE, 0),
            struct.pack(">Q", 0x1000 | ZERO) + b"\3rom\x07",
            struct.pack(">Q", 0x1000 | XBZRLE) + b"\3ram\1\0\4\5\2ab",
            struct.pack(">QI", 0x3000 | COMPRESS | CONTINUE, len(packed)) + packed,
        )
    )


def machine(body: bytes, *, capability: bytes = b"", commands: bytes = b"") -> bytes:
    """A whole stream for the machine of the target `memory`: blocks `ram` of 8 pages and `rom` of 2, a timer.

    Args:
        body: the records of its first PART.
        capability: one that the configuration names.
        commands: elements before the first section.
    """
    configuration = b"\7\0\0\0\4none"
    if capability:
        name = b"configuration/capabilities"
        configuration += (
            struct.pack(">BB", 5, len(name)) + name + struct.pack(">IIB", 1, 1, len(capability)) + capability
        )
    footer = b"\x7e\0\0\0\2"
    blocks = (
        struct.pack(">Q", 0xA000 | 0x04) + b"\3ram" + struct.pack(">Q", 0x8000) + b"\3rom" + struct.pack(">Q", 0x2000)
    )
    start = b"\1\0\0\0\2\3ram" + struct.pack(">II", 0, 4) + blocks + EOS_WORD + footer
    part = b"\2\0\0\0\2" + body + EOS_WORD + footer
    end = b"\3\0\0\0\2" + EOS_WORD + footer
    timer = b"\4\0\0\0\3\5timer" + struct.pack(">II", 0, 2) + bytes(24) + b"\x7e\0\0\0\3"
    return b"QEVM\0\0\0\3" + configuration + commands + start + part + end + timer + b"\0"


def command(number: int, payload: bytes = b"") -> bytes:
    """One command element."""
    return struct.pack(">BHH", 8, number, len(payload)) + payload


def commands() -> bytes:
    """Every command once, PACKAGED with something in it."""
    inside = command(4) + command(5)
    payloads = {
        2: struct.pack(">I", 1),
        3: struct.pack(">QQ", 4096, 4096),
        6: discard(),
        10: b"\3ram",
        7: struct.pack(">I", len(inside)),
    }
    return b"".join(command(number, payloads.get(number, b"")) for number in (1, 2, 3, 6, 4, 5, 9, 10, 11, 7)) + inside


def discard() -> bytes:
    """The payload of a discard of two ranges."""
    return b"\0\3ram\0" + struct.pack(">QQQQ", 0, 0x1000, 0x4000, 0x2000)


def postcopy() -> bytes:
    """A stream that goes over to postcopy."""
    package = b"\4\0\0\0\3\5timer" + struct.pack(">II", 0, 2) + bytes(24) + b"\x7e\0\0\0\3"
    package = command(4) + package + command(2, struct.pack(">I", 3)) + command(5)
    before = command(1) + command(2, struct.pack(">I", 1)) + command(3, struct.pack(">QQ", 4096, 4096))
    whole = machine(records_plain(), commands=before)
    cut = whole.index(b"\3\0\0\0\2" + EOS_WORD)
    return whole[:cut] + command(6, discard()) + command(7, struct.pack(">I", len(package))) + package


def records_plain() -> bytes:
    """The first records of `records`, without the compressed one."""
    whole = records()
    return whole[: whole.index(struct.pack(">Q", 0x3000 | COMPRESS | CONTINUE))]


def mapped() -> bytes:
    """A mapped-ram file for the machine of `memory`."""
    whole = machine(b"", capability=b"mapped-ram")
    ram, at = whole.index(b"\3ram" + struct.pack(">Q", 0x8000)) + 12, 0x1000
    head = whole[:ram] + struct.pack(">IQQQ", 1, 4096, 0x800, at)
    file = (
        bytearray(head.ljust(0x800, b"\0") + b"\x81".ljust(8, b"\0")).ljust(at, b"\0")
        + b"a" * 4096
        + bytes(6 * 4096)
        + b"h" * 4096
    )
    rest = whole[ram : ram + 12] + struct.pack(">IQQQ", 1, 4096, len(file) + 0x100, len(file) + 0x1000)
    file += (rest.ljust(0x100, b"\0") + b"\2".ljust(8, b"\0")).ljust(0x1000, b"\0") + bytes(4096) + b"r" * 4096
    # No records: the words that end the sections are all that is left.
    return bytes(file) + whole[ram + 12 :]


def answers() -> bytes:
    """Every return-path message, a bitmap behind RECV_BITMAP."""
    request = struct.pack(">QI", 0x1000, 0x1000)
    bitmap = struct.pack(">Q", 16) + b"\xff" * 9 + bytes(7) + struct.pack(">Q", 0x0123456789ABCDEF)
    one = struct.pack(">I", 1)
    messages = ((2, one), (3, request + b"\3ram"), (4, request), (5, b"\3ram"), (6, one), (7, b""), (1, bytes(4)))
    return b"".join(
        struct.pack(">HH", number, len(payload)) + payload + (bitmap if number == 5 else b"")
        for number, payload in messages
    )


QMP = b"""{"execute": "qmp_capabilities", "id": 1}
{'execute': 'migrate', "arguments": {"uri": "tcp:[::1]:4444", "detach": true}} [1, 2.5e3, null, {"a": "\\u00e9\\'"}]
\xff{"exec-oob": "migrate-pause"}"""


def small(name: str, count: int) -> dict[str, bytes]:
    """Bytes out of a generator, for targets that read their input as choices."""
    generator = random.Random(name)  # noqa: S311 (seeds of a fuzzer)
    return {f"random-{number}": generator.randbytes(40 << number % 5) for number in range(count)}


def main() -> None:
    """Write all seeds."""
    whole = machine(records())
    plain = machine(records_plain())
    ways = {
        "file": b"\0" + plain,
        "socket": b"\1" + plain,
        "compress": b"\2" + whole,
        "mapped": b"\4" + mapped(),
        "postcopy": b"\5" + postcopy(),
    }
    seeds = {
        "xbzrle": deltas(),
        "pages": packed(),
        "multifd": {"channel": b"\0" + channel()},
        "ram": {"all": b"\x1c" + records() + EOS_WORD, "flush": b"\x1d" + struct.pack(">Q", FLUSH) + EOS_WORD},
        "memory": ways,
        "commands": {str(choice): bytes([choice]) + commands() for choice in range(4)},
        "return_path": {str(choice): bytes([choice]) + answers() for choice in range(4)},
        "qmp": {str(choice): bytes([choice]) + QMP for choice in range(4)},
        "stream": {"coded": b"\0" + coded(), "machine": b"\0" + plain, "commands": b"\0QEVM\0\0\0\3" + commands()},
        "null": {"machine": plain},
    } | {name: small(name, 20) for name in ("structured", "discards", "mapped_ram")}
    for path in sorted(STREAMS.glob("*-plain.stream.xz")):
        seed = shrink(lzma.decompress(path.read_bytes()))
        name = path.name.removesuffix(".stream.xz")
        seeds["null"][name] = seed
        for choice in range(4):
            seeds["stream"][f"{name}-{choice}"] = bytes([choice]) + seed
    for target, named in seeds.items():
        directory = CORPUS / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, seed in named.items():
            (directory / f"seed-{name}").write_bytes(seed)


if __name__ == "__main__":
    main()
