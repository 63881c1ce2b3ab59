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


def test_compress_pool():
    text = bytes(i // 9 % 256 for i in range(PAGE))
    noise = np.random.default_rng(1).bytes(PAGE)
    block = RamBlock("ram", 301 * PAGE)
    pages = block.numpy().reshape(301, PAGE)
    for number in range(301):
        pages[number] = np.frombuffer((text, noise, ZERO)[number % 3], np.uint8)
    with codec.CompressPool(threads=3, level=6) as pool:
        packed = pool.compress(pages)
        assert packed[:3] == [codec.compress_page(text, 6), noise, b""]
        assert packed[::3] == packed[:1] * 101
        assert zlib.decompress(packed[300]) == text
        assert pool.decompress(packed) == pages.tobytes()
        assert pool.decompress([memoryview(packed[0])]) == text
        assert pool.compress(b"") == pool.compress(pages[:0]) == []
        assert pool.decompress([]) == b""
        for bad in (b"\x55" * 40, packed[0][:-1], packed[0] + b"!", codec.compress_page(text + b"!"), bytes(5000)):
            with pytest.raises(StreamError) as caught:
                pool.decompress([*packed[:7], bad, *packed[:7], bad])
            assert (caught.value.kind, caught.value.path) == ("bad-page", "page 7")
        with pytest.raises(ValueError, match="4097 bytes are not whole pages"):
            pool.compress(bytes(PAGE + 1))
        with pytest.raises(BufferError, match="contiguous"):
            pool.compress(pages[:, 0])
    for closed in (lambda: pool.compress(ZERO), lambda: pool.decompress([b""])):
        with pytest.raises(ValueError, match="closed"):
            closed()
    pool.close()
    for wrong in ({"threads": 0}, {"threads": 256}, {"level": -1}, {"level": 10}):
        with pytest.raises(ValueError, match=r"can be had|zlib has"):
            codec.CompressPool(**wrong)


def test_a_compress_pool_lets_go_of_the_interpreter():
    """Two threads with one pool, and a third that counts: all get on."""
    ram = np.random.default_rng(2).integers(0, 4, 4 << 20, np.uint8)
    with codec.CompressPool(threads=1, level=9) as pool:
        found = []
        workers = [threading.Thread(target=lambda: found.append(pool.compress(ram))) for _ in range(2)]
        for worker in workers:
            worker.start()
        counted = 0
        while any(worker.is_alive() for worker in workers):
            counted += 1
        assert counted > 100
        assert found[0] == found[1]
        assert pool.decompress(found[0]) == ram.tobytes()


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
