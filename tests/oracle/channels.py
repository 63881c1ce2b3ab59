"""The oracle's multifd: packets of the channels, ordered by what the main channel says (spec/stream.md 12)."""

from __future__ import annotations

import ctypes
import zlib
from typing import TYPE_CHECKING

from oracle.memory import BLANK, PAGE, Block, inflate
from oracle.source import Refused, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC, VERSION = 0x11223344, 1
PAGES = 128
SYNC, METHOD, ZLIB, ZSTD, QPL, UADK, QATZIP, DEVICE_STATE = 0x01, 0x3E, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
METHODS = {0, ZLIB, ZSTD, QPL, UADK}
DATA_MAX = 1 << 20


class _Zlib:
    def __init__(self) -> None:
        self.machine = zlib.decompressobj()

    def decode(self, data: bytes, want: int) -> bytes | None:
        try:
            made = self.machine.decompress(data, want + 1)
        except zlib.error:
            return None
        return None if len(made) != want or self.machine.unconsumed_tail or self.machine.eof else made


class _Zstd:
    """libzstd by ctypes: Python 3.11 has none of its own."""

    class Buffer(ctypes.Structure):
        _fields_ = (("at", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libzstd.so.1")
        self.library.ZSTD_createDStream.restype = ctypes.c_void_p
        self.library.ZSTD_decompressStream.restype = ctypes.c_size_t
        self.library.ZSTD_decompressStream.argtypes = (ctypes.c_void_p,) * 3
        self.library.ZSTD_freeDStream.argtypes = (ctypes.c_void_p,)
        self.machine = self.library.ZSTD_createDStream()

    def __del__(self) -> None:
        self.library.ZSTD_freeDStream(self.machine)

    def decode(self, data: bytes, want: int) -> bytes | None:
        room = ctypes.create_string_buffer(want + 1)
        given = ctypes.create_string_buffer(data, len(data))
        out = self.Buffer(ctypes.addressof(room), want + 1, 0)
        taken = self.Buffer(ctypes.addressof(given), len(data), 0)
        while True:
            before = out.pos, taken.pos
            said = self.library.ZSTD_decompressStream(self.machine, ctypes.byref(out), ctypes.byref(taken))
            if said > 1 << 63 or out.pos > want:
                return None
            if before == (out.pos, taken.pos) or (said == 0 and taken.pos == len(data)):
                break
        return room.raw[:want] if (out.pos, taken.pos) == (want, len(data)) else None


class _Qpl:
    """A table of lengths, then page by page."""

    bits = -15

    def decode(self, data: bytes, want: int) -> bytes | None:
        count = want // PAGE
        if len(data) < 4 * count:
            return None
        made, at = b"", 4 * count
        for index in range(count):
            length = int.from_bytes(data[4 * index : 4 * index + 4], "big")
            if at + length > len(data):
                return None
            page = data[at : at + length]
            at += length
            if length != PAGE:
                page = inflate(page, self.bits) or b""
            if len(page) != PAGE:
                return None
            made += page
        return made if at == len(data) else None


class _Uadk(_Qpl):
    bits = 15


class Channel:
    """One file of packets."""

    def __init__(self, data: bytes, number: int, blocks: dict[bytes, Block]) -> None:
        self.source = Source(data, number + 1)
        self.blocks = blocks
        self.method = 0
        self.machine: _Zlib | _Zstd | None = None

    def greet(self) -> None:
        """12.2. Whose channel it is, and which, is nothing to a reader of files: it may have been given only some."""
        self._magic()
        for length in (16, 1, 39):
            self.source.raw(length)

    def _magic(self) -> None:
        source = self.source
        at = source.at
        if source.number(4) != MAGIC:
            raise source.refused("bad-magic", at)
        at = source.at
        if source.number(4) != VERSION:
            raise source.refused("bad-version", at)

    def round(self) -> bool:
        """Packets up to and with the next SYNC; False: the file ended."""
        if self.source.at == 0:
            self.greet()
        while self.source.left():
            if self._packet() & SYNC:
                return True
        return False

    def _packet(self) -> int:
        """12.3 to 12.5; its flags."""
        source = self.source
        begin = source.at
        self._magic()
        flags = source.number(4)
        if flags & ~(SYNC | METHOD | DEVICE_STATE):
            raise source.refused("bad-flags", begin + 8)
        if flags & DEVICE_STATE:
            if flags & (SYNC | METHOD):
                raise source.refused("bad-flags", begin + 8)
            self._device_state()
            return flags
        if flags & METHOD not in METHODS:
            raise source.refused("unsupported" if flags & METHOD == QATZIP else "bad-flags", begin + 8)
        room, normal, size = source.number(4), source.number(4), source.number(4)
        source.number(8)
        zero = source.number(4)
        for too_many, at in ((room > PAGES, 12), (normal > room, 16), (zero > room - normal, 32)):
            if too_many:
                raise source.refused("limit-exceeded", begin + at)
        source.raw(28)
        name = source.raw(256)
        pages = [source.number(8) for _ in range(normal + zero)]
        source.raw(8 * (PAGES - len(pages)))
        if not pages:
            return flags
        method = flags & METHOD
        if normal and not (size == normal * PAGE if method == 0 else 1 <= size <= DATA_MAX):
            raise source.refused("limit-exceeded", begin + 20)
        # byte 255 is taken for NUL, whatever it is
        block = self.blocks.get(name[:255].split(b"\0")[0])
        if block is None:
            raise source.refused("unknown-block", begin + 64)
        wrong = [offset % PAGE != 0 or offset >= block.size for offset in pages]
        if True not in wrong:
            wrong = [offset in pages[:index] for index, offset in enumerate(pages)]
        if True in wrong:
            raise source.refused("bad-address", begin + 320 + 8 * wrong.index(True))
        for offset in pages[normal:]:
            block.pages[offset] = BLANK
        if normal:
            self._content(block, pages[:normal], method, size, begin)
        return flags

    def _content(self, block: Block, pages: list[int], method: int, size: int, begin: int) -> None:
        """12.4, 12.5: what stands behind the header of the packet at `begin`."""
        source = self.source
        if method == 0:
            for offset in pages:
                block.pages[offset] = source.raw(PAGE)
            return
        data = source.raw(size)
        if method in {QPL, UADK} and self.machine is None:
            content = (_Qpl if method == QPL else _Uadk)().decode(data, len(pages) * PAGE)
        else:
            if self.machine is None:
                self.machine, self.method = _Zlib() if method == ZLIB else _Zstd(), method
            if method != self.method:
                raise source.refused("bad-flags", begin)
            content = self.machine.decode(data, len(pages) * PAGE)
        if content is None:
            raise source.refused("bad-page", begin)
        for index, offset in enumerate(pages):
            block.pages[offset] = content[index * PAGE : (index + 1) * PAGE]

    def _device_state(self) -> None:
        """12.7; nobody here takes it."""
        source = self.source
        source.raw(256)
        source.number(4)
        at = source.at
        size = source.number(4)
        if not size:
            raise source.refused("limit-exceeded", at)
        source.raw(size)


class Channels:
    """All channels, and where they stand.

    Sections order rounds, until the word MULTIFD_FLUSH shows that words do (12.6).
    """

    def __init__(self, files: Sequence[bytes], blocks: dict[bytes, Block]) -> None:
        self.all = [Channel(data, number, blocks) for number, data in enumerate(files)]
        self.words = False

    def flush(self) -> None:
        """The word MULTIFD_FLUSH."""
        self.words = True
        self._sync()

    def section_end(self) -> None:
        """EOS of a RAM section."""
        if not self.words:
            self._sync()

    def _sync(self) -> None:
        for channel in self.all:
            if not channel.round():
                raise Refused("truncated", channel.source.at, channel.source.channel)

    def finish(self) -> None:
        """What stands behind the last SYNC."""
        for channel in self.all:
            while channel.round():
                pass
