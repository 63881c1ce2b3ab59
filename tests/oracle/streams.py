"""Streams for the two readers to disagree about: recorded ones without most of their pages, made-up ones, damage.

Everything comes out of one `random.Random`: the same seed gives the same bytes.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import TYPE_CHECKING

from analyzed import recorded
from oracle.channels import QPL, SYNC, UADK, ZLIB
from oracle.memory import COMPRESS, CONTINUE, EOS, FLUSH, MEM_SIZE, PAGE, RAW, XBZRLE, ZERO

if TYPE_CHECKING:
    from random import Random

HEAD = b"QEVM\0\0\0\3"
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 0x10, 0x20, 0x7E, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x1001, 0xFFFF)
NUMBERS += (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 63) - PAGE, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1)


def be(length: int, value: int) -> bytes:
    return (value & (1 << 8 * length) - 1).to_bytes(length, "big")


def text(data: bytes) -> bytes:
    return bytes([len(data)]) + data


# ---- recorded streams, thinned out


@cache
def thinned(name: str) -> tuple[bytes, ...]:
    """A recorded stream of one file with a dozen pages or so: whole records are left out, and nothing else."""
    from oracle.devices import by_heart
    from oracle.memory import Memory
    from oracle.reader import Reader

    data, *channels = recorded(name)
    if channels:
        return (data, *channels)
    kept: list[tuple[int, int]] = []
    seen: dict[int, int] = {}

    class Thin(Memory):
        """Remembers where page records stand that may go."""

        def _block(self, begin, *, named):
            made = super()._block(begin, named=named)
            self.open = None if named else begin
            return made

        def _page(self, flags, before):
            made = super()._page(flags, before)
            seen[flags] = seen.get(flags, 0) + 1
            if self.open is not None and seen[flags] > 3:
                kept.append((self.open, self.source.at))
            return made

    reader = Reader(data, by_heart)
    reader.memory.__class__ = Thin
    reader.read()
    made, at = b"", 0
    for begin, end in kept:
        made += data[at:begin]
        at = end
    return (made + data[at:],)


# ---- made-up streams


def command(number: int, body: bytes = b"") -> bytes:
    return b"\x08" + be(2, number) + be(2, len(body)) + body


class Maker:
    """A valid stream of a machine that may have `none`'s devices and those of the public e2k emulator.

    Args:
        numbers: what decides.
        codings: whether RAM may come as XBZRLE and COMPRESS_PAGE records, and with addresses.
        channels: multifd channels.
        mapped: pages stand at their places in the file.
    """

    def __init__(self, numbers: Random, *, codings: bool = True, channels: int = 0, mapped: bool = False) -> None:
        self.numbers, self.codings, self.mapped = numbers, codings, mapped
        self.blocks = {name: PAGE * numbers.randint(1, 6) for name in self._names()}
        self.current: bytes | None = None
        self.shared = False
        self.channels = [Packets(numbers, self.blocks, number) for number in range(channels)]
        self.words = self._chance(2)
        """Whether the word MULTIFD_FLUSH orders rounds, and not the ends of sections."""

    def _names(self) -> list[bytes]:
        return self.numbers.sample([b"ram", b"", b"pc.ram", b"a\0b", b"/rom@etc/acpi/tables", b"x" * 255], self._few(3))

    def _few(self, most: int) -> int:
        return self.numbers.randint(1, most)

    def _chance(self, one_in: int) -> bool:
        return self.numbers.randrange(one_in) == 0

    def files(self) -> list[bytes]:
        """The main channel, and the others."""
        return [self.whole(), *(channel.whole() for channel in self.channels)]

    def _sync(self) -> None:
        for channel in self.channels:
            channel.round()

    def _end(self, *, word: bool) -> bytes:
        """EOS, with what orders rounds."""
        made = be(8, EOS)
        if self.channels and self.words and word:
            made = be(8, FLUSH) + made
        if self.channels and (word or not self.words):
            self._sync()
        return made + b"\x7e" + be(4, 2)

    def whole(self) -> bytes:
        """A main channel."""
        numbers = self.numbers
        made = [HEAD + self._configuration(), self._commands()]
        made.append(self._start(sum(map(len, made))))
        for _ in range(numbers.randrange(4)):
            made += [self._commands(), self._part(2)]
        devices = [self._device() for _ in range(numbers.randrange(6))]
        if self._chance(4):
            inside = b"".join([command(4), *devices, command(5)])
            made += [command(7, be(4, len(inside))), *devices, command(5), self._part(2), self._part(3), b"\0"]
            made[-len(devices) - 4 : -len(devices) - 4] = [command(4)]
        else:
            made += [self._part(3), *devices, b"\0"]
            if not self._chance(4):
                said = numbers.choice([b"", b"{}", b'{"page_size": 4096, "devices": []}'])
                made.append(b"\6" + be(4, len(said)) + said)
        if self._chance(8):
            # one element out of place: gone, twice, or another
            at = numbers.randrange(len(made))
            odd = [command(7, be(4, 5)), command(4), command(5), b"\0", made[numbers.randrange(len(made))]]
            made[at : at + numbers.randrange(2)] = numbers.choice([[], [made[at]] * 2, [numbers.choice(odd)]])
        return b"".join(made)

    def _configuration(self) -> bytes:
        if self._chance(6) and not self.mapped:
            return b""
        parts = [
            text(b"configuration/target-page-bits") + be(4, 1) + be(4, 12),
            text(b"configuration/capabilities") + be(4, 1) + be(4, 1) + text(b"x-ignore-shared"),
            text(b"configuration/capabilities") + be(4, 1) + be(4, 1) + text(b"mapped-ram"),
            text(b"configuration/uuid") + be(4, 1) + self.numbers.randbytes(16),
        ]
        name = self.numbers.choice([b"none", b"", b"pc-i440fx-7.2", b"m" * 255])
        made = b"\7" + be(4, len(name)) + name
        possible = {0, 3} | ({2} if self.mapped else {1} if self.codings else set())
        chosen = [part for index, part in enumerate(parts) if index in possible and self._chance(3)]
        if self.mapped and parts[2] not in chosen:
            chosen.append(parts[2])
        self.shared = parts[1] in chosen
        return made + b"".join(b"\5" + part for part in chosen)

    def _commands(self) -> bytes:
        made = b""
        while self._chance(3):
            name = self.numbers.choice([*self.blocks])
            ranges = b"".join(be(8, PAGE * self.numbers.randrange(1, 9)) for _ in range(2 * self._few(12)))
            number, body = self.numbers.choice(
                [
                    (1, b""),
                    (2, self.numbers.randbytes(4)),
                    (3, b""),
                    (3, be(8, PAGE) + be(8, PAGE)),
                    (6, b"\0" + text(name or b"n") + b"\0" + ranges),
                    (8, b""),
                    (9, b""),
                    (10, text(name or b"n")),
                    (11, b""),
                ]
            )
            made += command(number, body)
        return made

    def _start(self, at: int) -> bytes:
        made = b"\1" + be(4, 2) + text(b"ram") + be(4, 0) + be(4, 4) + be(8, sum(self.blocks.values()) | MEM_SIZE)
        for name, size in self.blocks.items():
            made += text(name) + be(8, size)
            if self.shared:
                made += be(8, 1 << 32)
            if self.mapped:
                made += self._map(at + len(made), size)
        return made + self._end(word=True)

    def _map(self, at: int, size: int) -> bytes:
        """The header of a block that stands at `at`, its bitmap and its pages."""
        numbers = self.numbers
        begin = at + 28
        first = (begin + 8 + PAGE - 1) // PAGE * PAGE
        bits = numbers.getrandbits(size // PAGE)
        pages = b"".join(numbers.randbytes(PAGE) if bits >> page & 1 else bytes(PAGE) for page in range(size // PAGE))
        bitmap = bits.to_bytes(8, "little")
        return be(4, 1) + be(8, PAGE) + be(8, begin) + be(8, first) + (bitmap).ljust(first - begin, b"\0") + pages

    def _part(self, kind: int) -> bytes:
        made = be(1, kind) + be(4, 2)
        for _ in range(0 if self.mapped else self.numbers.randrange(7)):
            made += self._record()
        return made + self._end(word=kind == 3 or self._chance(2))

    def _record(self) -> bytes:
        name = self.numbers.choice([*self.blocks])
        named = name != self.current or self._chance(5)
        self.current = name
        offset = PAGE * self.numbers.randrange(self.blocks[name] // PAGE)
        flag = self.numbers.choice([ZERO, ZERO, RAW, XBZRLE, COMPRESS] if self.codings else [ZERO, ZERO, RAW])
        page = self.numbers.choice([self.numbers.randbytes(PAGE), bytes(PAGE), bytes([7]) * PAGE])
        body = {ZERO: b"\0", RAW: page}.get(flag)
        if flag == XBZRLE:
            delta = self._delta()
            body = b"\1" + be(2, len(delta)) + delta
        elif flag == COMPRESS:
            packed = zlib.compress(page, self.numbers.choice([0, 1, 9]))
            body = be(4, len(packed)) + packed
        assert body is not None
        return be(8, offset | flag | (0 if named else CONTINUE)) + (text(name) if named else b"") + body

    def _delta(self) -> bytes:
        made, at = b"", 0
        while not made or self._chance(2):
            skipped = self.numbers.choice([1, 2, 100, 0x80, 1000])
            changed = self.numbers.choice([1, 2, 200])
            if at + skipped + changed > PAGE:
                break
            at += skipped + changed
            made += _run(skipped) + _run(changed) + self.numbers.randbytes(changed)
        return made

    def _device(self) -> bytes:
        numbers = self.numbers
        name, version, payload = numbers.choice(
            [
                (b"timer", 2, numbers.randbytes(24)),
                (b"globalstate", 1, be(4, 8) + b"running".ljust(100, b"\0")),
                (b"cpu_common", 1, bytes(8)),
                (b"cpu_common", 1, bytes(8) + b"\5" + text(b"cpu_common/exception_index") + be(4, 1) + bytes(4)),
                (b"PCIBUS", 1, be(4, 4) + bytes(16)),
                (b"escc", 2, bytes(116)),
            ]
        )
        number = numbers.choice([0, 3, 4, 0xFFFFFFFF]) if self._chance(9) else 3 + len(name)
        return b"\4" + be(4, number) + text(name) + be(4, 0) + be(4, version) + payload + b"\x7e" + be(4, number)


class Packets:
    """A multifd channel, written round by round."""

    def __init__(self, numbers: Random, blocks: dict[bytes, int], number: int) -> None:
        self.numbers, self.blocks = numbers, blocks
        self.method = numbers.choice([0, 0, ZLIB, QPL, UADK])
        self.machine = zlib.compressobj(1)
        self.made = be(4, 0x11223344) + be(4, 1) + bytes(16) + be(1, number) + bytes(39)

    def whole(self) -> bytes:
        return self.made + (self._packet(0) if self.numbers.randrange(3) == 0 else b"")

    def round(self) -> None:
        """Some packets, then one with SYNC, which may have pages."""
        if self.numbers.randrange(40) == 0:
            self.method = self.numbers.choice([0, ZLIB, QPL, UADK])
        for _ in range(self.numbers.randrange(3)):
            self.made += self._packet(0)
        self.made += self._packet(SYNC)

    def _packet(self, flags: int) -> bytes:
        numbers = self.numbers
        name = numbers.choice([name for name in self.blocks if b"\0" not in name] or [b""])
        offsets = [*range(0, self.blocks.get(name, 0), PAGE)]
        pages = [] if flags and numbers.randrange(4) else numbers.sample(offsets, numbers.randint(0, len(offsets)))
        normal = numbers.randint(0, len(pages))
        data = self._data([numbers.choice([numbers.randbytes(PAGE), bytes(PAGE)]) for _ in range(normal)])
        if pages:
            flags |= self.method
        words = [0x11223344, 1, flags, numbers.choice([128, len(pages)]), normal, len(data)]
        made = b"".join(be(4, word) for word in words) + bytes(8) + be(4, len(pages) - normal) + bytes(28)
        return made + name.ljust(256, b"\0") + b"".join(be(8, page) for page in pages).ljust(1024, b"\0") + data

    def _data(self, pages: list[bytes]) -> bytes:
        if self.method in {QPL, UADK}:
            bits = -15 if self.method == QPL else 15
            packed = [deflate(page, bits) for page in pages]
            packed = [page if len(page) < PAGE else raw for page, raw in zip(packed, pages, strict=True)]
            return b"".join(be(4, len(page)) for page in packed) + b"".join(packed)
        if self.method == ZLIB and pages:
            return self.machine.compress(b"".join(pages)) + self.machine.flush(zlib.Z_SYNC_FLUSH)
        return b"".join(pages)


def deflate(page: bytes, bits: int) -> bytes:
    machine = zlib.compressobj(1, zlib.DEFLATED, bits)
    return machine.compress(page) + machine.flush()


def _run(length: int) -> bytes:
    return bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])


# ---- damage


def damaged(data: bytes, numbers: Random, hot: int | None = None) -> bytes:
    """`data` changed at one to three places; `hot`: only before this offset."""
    made = bytearray(data)
    for _ in range(numbers.choice([1, 1, 1, 2, 3])):
        size = min(hot or len(made), len(made))
        if not size:
            break
        at = numbers.randrange(size)
        kind = numbers.randrange(8)
        if kind == 0:
            del made[at:]
        elif kind == 1:
            made[at] ^= 1 << numbers.randrange(8)
        elif kind == 2:
            made[at] = numbers.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x20, 0x7E, 0x7F, 0x80, 0xFF))
        elif kind == 3:
            del made[at : at + numbers.randint(1, 16)]
        elif kind == 4:
            made[at:at] = made[at : at + numbers.randint(1, 64)]
        elif kind == 5:
            made[at:at] = numbers.randbytes(numbers.randint(1, 9))
        elif kind == 6:
            length = numbers.choice([1, 2, 4, 8])
            made[at : at + length] = be(length, numbers.choice(NUMBERS))
        else:
            other = numbers.randrange(size)
            made[at : at + 16] = made[other : other + 16]
    return bytes(made)
