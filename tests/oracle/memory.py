"""The oracle's RAM: what a RAM section says, record by record (spec/stream.md 4, 5, 6, 13).

Slow and obvious: a block is a dictionary of pages, a page is bytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oracle.channels import Channels
    from oracle.source import Source

PAGE = 4096
BLANK = bytes(PAGE)
ZERO, MEM_SIZE, RAW, EOS, CONTINUE, XBZRLE, HOOK, COMPRESS, FLUSH = 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x200
PACKED_MAX = 4608
"""Bytes of a compressed page: 6.1 has 4110, which is classic zlib's, and asks not to accept less."""


@dataclass
class Block:
    """A RAM block: its used length, and the pages that came."""

    name: bytes
    size: int
    pages: dict[int, bytes] = field(default_factory=dict)

    def content(self) -> bytes:
        return b"".join(self.pages.get(offset, BLANK) for offset in range(0, self.size, PAGE))


def patch(page: bytes, delta: bytes) -> bytes | None:
    """Section 5.4: `page` after `delta`; None: the delta is refused."""
    made = bytearray(page)
    taken = done = 0

    def number() -> int | None:
        nonlocal taken
        first = delta[taken]
        taken += 1
        if first < 0x80:
            return first
        second = delta[taken]
        taken += 1
        return None if second & 0x80 else first & 0x7F | second << 7

    while taken < len(delta):
        if len(delta) - taken < 2:
            return None
        first_run = taken == 0
        skipped = number()
        if skipped is None or (skipped == 0 and not first_run):
            return None
        done += skipped
        if done > len(page) or len(delta) - taken < 2:
            return None
        changed = number()
        if not changed or done + changed > len(page) or taken + changed > len(delta):
            return None
        made[done : done + changed] = delta[taken : taken + changed]
        done += changed
        taken += changed
    return bytes(made)


def inflate(data: bytes, bits: int = 15) -> bytes | None:
    """Section 6.2, safe reader: one zlib (`bits` -15: deflate) stream of a page exactly, and anything behind."""
    machine = zlib.decompressobj(bits)
    try:
        made = machine.decompress(data, PAGE + 1)
    except zlib.error:
        return None
    return made if machine.eof and len(made) == PAGE else None


class Memory:
    """All blocks, and the block that CONTINUE means.

    Args:
        source: the main channel.
        local: length of every block here; None: whatever the stream says, as a reader of files has to.
    """

    def __init__(self, source: Source, local: dict[bytes, int] | None = None) -> None:
        self.source, self.local = source, local
        self.blocks: dict[bytes, Block] = {}
        self.current: Block | None = None
        self.listed = False
        self.mapped = self.shared = False
        """Whether the configuration said `mapped-ram`, `x-ignore-shared`."""
        self.page_sizes = 0
        """What ADVISE said."""
        self.channels: Channels | None = None
        self.codings = frozenset({XBZRLE, COMPRESS, FLUSH})
        """What this reader takes beside pages as they are."""

    def section(self, *, start: bool) -> tuple[int, int]:
        """A RAM payload up to and with EOS; how many pages came with data, and as zeros."""
        source, normal, zero = self.source, 0, 0
        first = True
        while True:
            begin = source.at
            word = source.number(8)
            offset, flags = word & -PAGE, word & PAGE - 1 & ~CONTINUE
            named = not word & CONTINUE
            if flags not in {ZERO, MEM_SIZE, RAW, EOS, XBZRLE, HOOK, COMPRESS, FLUSH}:
                raise source.refused("bad-flags", begin)
            if first and start and flags != MEM_SIZE:
                raise source.refused("bad-flags", begin)
            if self.mapped and flags not in {MEM_SIZE, EOS}:
                raise source.refused("bad-flags", begin)
            if flags == MEM_SIZE:
                if self.listed or not (first and start):
                    raise source.refused("bad-flags", begin)
                self._list(offset)
            elif flags == EOS:
                if self.channels is not None:
                    self.channels.section_end()
                return normal, zero
            elif flags == HOOK or (flags in {XBZRLE, COMPRESS} and flags not in self.codings):
                raise source.refused("unsupported", begin)
            elif flags == FLUSH:
                if flags not in self.codings:
                    raise source.refused("unsupported", begin)
                if self.channels is not None:
                    self.channels.flush()
            else:
                block = self._block(begin, named=named)
                if offset >= block.size:
                    raise source.refused("bad-address", begin)
                page = self._page(flags, block.pages.get(offset, BLANK))
                if page is None:
                    raise source.refused("bad-page", begin)
                block.pages[offset] = page
                if flags == ZERO:
                    zero += 1
                else:
                    normal += 1
            first = False

    def _block(self, begin: int, *, named: bool) -> Block:
        """Of a page record whose word stands at `begin`."""
        if named:
            at = self.source.at
            name = self.source.text()
            if name not in self.blocks:
                raise self.source.refused("unknown-block", at)
            self.current = self.blocks[name]
        if self.current is None:
            raise self.source.refused("bad-flags", begin)
        return self.current

    def _page(self, flags: int, before: bytes) -> bytes | None:
        """The payload of a page record; what the page holds after it. None: it does not decode."""
        source = self.source
        at = source.at
        if flags == ZERO:
            fill = source.number(1)
            return bytes([fill]) * PAGE
        if flags == RAW:
            return source.raw(PAGE)
        if flags == XBZRLE:
            if source.number(1) != 1:
                raise source.refused("bad-page", at)
            at = source.at
            length = source.number(2)
            if length > PAGE:
                raise source.refused("limit-exceeded", at)
            return patch(before, source.raw(length))

        length = source.number(4)
        if not 1 <= length <= PACKED_MAX:
            raise source.refused("limit-exceeded", at)
        return inflate(source.raw(length))

    def _list(self, total: int) -> None:
        """Section 4.2: the block list."""
        source = self.source
        self.listed = True
        blocks: dict[bytes, Block] = {}
        places: list[int] = []
        left = total
        while left:
            name_at = at = source.at
            name = source.text()
            twice = name in blocks
            at = source.at
            size = source.number(8)
            if size == 0 or size % PAGE or size > left:
                raise source.refused("block-mismatch", at)
            left -= size
            if twice:
                raise source.refused("block-mismatch", name_at)
            block = blocks[name] = Block(name, size)
            places.append(name_at)
            if self._page_size_follows():
                source.number(8)
            if self.shared:
                source.number(8)
            if self.mapped:
                self._map(block)
        if self.local is not None:
            self._compare(blocks, places)
        self.blocks |= blocks

    def _compare(self, blocks: dict[bytes, Block], places: list[int]) -> None:
        """The list with the blocks that are here; it is judged as a whole."""
        assert self.local is not None
        for block, at in zip(blocks.values(), places, strict=True):
            if block.name not in self.local:
                raise self.source.refused("unknown-block", at)
            if block.size != self.local[block.name]:
                raise self.source.refused("block-mismatch", at)
        if len(blocks) < len(self.local):
            raise self.source.refused("unknown-block", places[0] - 8 if places else self.source.at - 8)

    def _page_size_follows(self) -> bool:
        """Whether 2c of section 4.2 comes. A stream does not say so: it looks like a size that ADVISE named."""
        word = int.from_bytes(self.source.peek(8), "big") if self.source.left() >= 8 else 0
        huge = self.page_sizes & -2 * PAGE if self.codings else 0
        return word != 0 and word & (word - 1) == 0 and word & huge != 0

    def _map(self, block: Block) -> None:
        """Section 13.2: a block whose pages stand at their place in the file."""
        source = self.source
        at = source.at
        if source.number(4) != 1:
            raise source.refused("bad-version", at)
        at = source.at
        if source.number(8) != PAGE:
            raise source.refused("block-mismatch", at)
        bitmap_at = source.at
        bitmap = source.number(8)
        pages_at = source.at
        first = source.number(8)
        length = (block.size // PAGE + 63) // 64 * 8
        if bitmap < source.at:
            raise source.refused("bad-address", bitmap_at)
        if first % PAGE or first < bitmap + length or first + block.size >= 1 << 63:
            raise source.refused("bad-address", pages_at)
        end = first + block.size
        if end > len(source.data):
            # header to pages is one field: a file may have holes there
            raise source.refused("truncated", source.at)
        source.at = bitmap
        words = source.raw(length)
        for index in range(block.size // PAGE):
            if words[index // 8] >> index % 8 & 1:
                at = first + index * PAGE
                block.pages[index * PAGE] = source.data[at : at + PAGE]
        source.at = end
