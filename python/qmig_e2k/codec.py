"""Pages in the forms in which they travel, for experiments: one page in, bytes out, and back (spec/stream 5 and 6).

    delta = codec.xbzrle_encode(last, page)
    if delta is None:                    # too long: send the page itself
        ...
    codec.xbzrle_decode(delta, copy)     # the receiver's page, patched in place

    with codec.CompressPool(threads=4) as pool:
        packed = pool.compress(ram.numpy()[: 64 << 20])     # one bytes a page
        assert pool.decompress(packed) == ram.numpy()[: 64 << 20].tobytes()

Every function takes anything with the buffer protocol (bytes, bytearray, numpy, a slice of `RamBlock.numpy()`), lets go
of the interpreter lock, and works on a copy: a page that others write to meanwhile gives the delta of one moment.
The bytes are QEMU's.
"""

from __future__ import annotations

from qmig_e2k._core import (
    CompressPool,
    PageCache,
    compress_page,
    decompress_page,
    is_zero,
    xbzrle_decode,
    xbzrle_encode,
)

__all__ = [
    "CompressPool",
    "PageCache",
    "compress_page",
    "decompress_page",
    "is_zero",
    "xbzrle_decode",
    "xbzrle_encode",
]
