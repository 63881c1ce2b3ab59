"""qmig_e2k.codec: the codecs themselves are tested in the core; here what Python adds."""

from __future__ import annotations

import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmig_e2k import RamBlock, StreamError, codec
from support import PAGE

ZERO = bytes(PAGE)


def changed(*places: int) -> bytes:
    page = bytearray(PAGE)
    for place in places:
        page[place] ^= 0xFF
    return bytes(page)


def test_xbzrle():
    assert codec.xbzrle_encode(ZERO, ZERO) == b""
    assert codec.xbzrle_encode(ZERO, changed(0)) == b"\0\1\xff"
    delta = codec.xbzrle_encode(ZERO, changed(7, 300))
    assert delta == b"\7\1\xff\xa4\2\1\xff"
    assert codec.xbzrle_encode(ZERO, changed(7, 300), dlen=7) is None  # room for the rest is asked for, too
    assert codec.xbzrle_encode(ZERO, changed(7, 300), dlen=9) == delta
    assert codec.xbzrle_encode(ZERO, b"\1" * PAGE) is None
    page = bytearray(ZERO)
    assert codec.xbzrle_decode(delta, page) == 301
    assert page == changed(7, 300)


@given(data=st.data())
def test_there_and_back(data):
    old = np.frombuffer(data.draw(st.binary(min_size=64, max_size=64)) * 64, np.uint8)
    new = old.copy()
    for place in data.draw(st.lists(st.integers(0, PAGE - 1), max_size=300)):
        new[place] ^= 1 + place % 255
    delta = codec.xbzrle_encode(old, new)
    assert (delta == b"") == bool((old == new).all())
    page = old.copy()
    codec.xbzrle_decode(delta, page)
    assert (page == new).all()


def test_a_bad_delta_leaves_the_page():
    page = bytearray(b"\5" * PAGE)
    with pytest.raises(StreamError) as caught:
        codec.xbzrle_decode(b"\0\1\xff\0\1\xff", page)
    assert caught.value.kind == "bad-page"
    assert page == b"\5" * PAGE


def test_any_buffer():
    block = RamBlock("ram", 4 * PAGE)
    pages = block.numpy().reshape(4, PAGE)
    assert codec.is_zero(pages)
    pages[2, 5] = 7
    assert not codec.is_zero(block)
    assert codec.is_zero(memoryview(pages[3]))
    delta = codec.xbzrle_encode(pages[1], pages[2])
    assert codec.xbzrle_decode(delta, pages[3]) == 6
    assert (pages[3] == pages[2]).all()
    assert codec.decompress_page(codec.compress_page(pages[2].view(np.uint64))) == bytes(pages[2])
    for call in (codec.is_zero, codec.compress_page, lambda page: codec.xbzrle_decode(b"", page)):
        with pytest.raises(BufferError, match="contiguous"):
            call(pages[:, 0])
    with pytest.raises(BufferError, match="read-only"):
        codec.xbzrle_decode(b"", ZERO)
    with pytest.raises(ValueError, match="of 4096 and 100 bytes"):
        codec.xbzrle_encode(ZERO, ZERO[:100])
    with pytest.raises(ValueError, match="at most 16384"):
        codec.xbzrle_encode(bytes(20000), bytes(20000))


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_compressed(method):
    page = bytes(i * i % 251 for i in range(PAGE))
    packed = codec.compress_page(page, 3, method)
    assert codec.decompress_page(packed, method=method) == page
    if method == "zlib":
        assert zlib.decompress(packed) == page
        assert codec.decompress_page(zlib.compress(page) + b"behind") == page
    for bad in (packed[:-9], b"", b"\x55" * 40, codec.compress_page(bytes(PAGE + 1), 1, method)):
        with pytest.raises(StreamError) as caught:
            codec.decompress_page(bad, method=method)
        assert caught.value.kind == "bad-page"
    with pytest.raises(StreamError, match="levels"):
        codec.compress_page(page, 99, method)


def test_another_method():
    for call in (codec.compress_page, codec.decompress_page):
        with pytest.raises(ValueError, match="zlib or zstd"):
            call(ZERO, method="lzo")


def test_page_cache():
    cache = codec.PageCache(4 * PAGE)
    assert (cache.size, cache.page_size) == (4 * PAGE, PAGE)
    assert cache.get(0, 1) is None
    assert cache.insert(0, changed(1), 1)
    assert not cache.insert(4 * PAGE, changed(2), 2)
    assert cache.get(0, 1) == changed(1)
    assert cache.insert(4 * PAGE, changed(2), 3)
    assert cache.get(0, 3) is None
    cache.resize(4 * PAGE)
    assert cache.get(4 * PAGE, 3) == changed(2)
    cache.resize(8 * PAGE)
    assert cache.get(4 * PAGE, 3) is None
    with pytest.raises(ValueError, match="pages of 4096"):
        cache.insert(0, b"short", 1)
    for size in (PAGE // 2, 3 * PAGE, 0):
        with pytest.raises(ValueError, match="powers of two"):
            codec.PageCache(size)
        with pytest.raises(ValueError, match="powers of two"):
            cache.resize(size)
    for attempt in (codec.PageCache, cache.resize):
        with pytest.raises(MemoryError):
            attempt(1 << 62)
    assert cache.size == 8 * PAGE


def test_a_page_that_is_written_meanwhile():
    """The delta is of one moment: what it makes is a page of bytes that were there."""
    page = np.zeros(PAGE, np.uint8)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            page[:] = (page[0] + 1) % 7

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            delta = codec.xbzrle_encode(ZERO, page, 2 * PAGE)
            copy = bytearray(ZERO)
            assert codec.xbzrle_decode(delta, copy) <= PAGE
            assert codec.xbzrle_encode(ZERO, copy, 2 * PAGE) == delta
    finally:
        stop.set()
        writer.join()


def test_what_is_not_built_says_so():
    with pytest.raises(AttributeError, match="not built yet"):
        codec.CompressPool  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute"):
        codec.other  # noqa: B018
