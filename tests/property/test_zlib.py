"""Our zlib beside Python's, which is another one: each reads what the other writes, and both refuse the same."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmig_e2k import StreamError, codec
from support import PAGE

STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED)
FLUSHES = (zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_BLOCK)


def contents(size=PAGE):
    """Bytes as they stand in memory: runs, words that come again, noise, and all of them in one page."""

    def fill(seed):
        numbers, made = random.Random(seed), bytearray()
        while len(made) < size:
            count = numbers.choice((3, 40, 300, 1500))
            match numbers.randrange(4):
                case 0:
                    made += bytes([numbers.randrange(256)]) * count
                case 1:
                    made += numbers.randbytes(numbers.randint(2, 16)) * (count // 8 + 1)
                case 2:
                    made += numbers.randbytes(count)
                case _:
                    begin = numbers.randrange(len(made) + 1)
                    made += made[begin : begin + count]
        return bytes(made[:size])

    return st.integers(0, 1 << 32).map(fill)


@st.composite
def streams(draw, size=PAGE):
    """Some bytes, and a zlib stream of them by Python, flushed here and there."""
    plain = draw(contents(size))
    level, window, memory = draw(st.integers(0, 9)), draw(st.integers(9, 15)), draw(st.integers(1, 9))
    packer = zlib.compressobj(level, zlib.DEFLATED, window, memory, draw(st.sampled_from(STRATEGIES)))
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=3)))
    packed = b""
    for begin, end in pairwise((0, *cuts, size)):
        packed += packer.compress(plain[begin:end]) + packer.flush(draw(st.sampled_from(FLUSHES)))
    return plain, packed + packer.flush()


def python_reads(data):
    """The page in it and how many bytes are left over, or None if it is none."""
    reader = zlib.decompressobj()
    try:
        page = reader.decompress(data)
    except zlib.error:
        return None
    return (page, len(reader.unused_data)) if reader.eof and len(page) == PAGE else None


def we_read(data):
    """The same; how much is left over is not told."""
    try:
        return codec.decompress_page(data)
    except StreamError as error:
        return None if error.kind == "bad-page" else error


@pytest.fixture(scope="module")
def pool():
    with codec.CompressPool(threads=1) as pool:
        yield pool


def the_pool_reads(pool, data):
    """The same where a record says how long its stream is: nothing may be left over."""
    try:
        return pool.decompress([data])
    except StreamError as error:
        return None if error.kind == "bad-page" else error


def same_verdict(pool, data):
    theirs = python_reads(data)
    assert we_read(data) == (theirs and theirs[0])
    if data and len(data) != PAGE:  # these are a zero page and a plain one there
        assert the_pool_reads(pool, data) == (theirs[0] if theirs and not theirs[1] else None)
    return theirs


@given(page=contents(), level=st.integers(0, 9))
def test_python_reads_what_we_write(page, level):
    assert python_reads(codec.compress_page(page, level)) == (page, 0)


@given(made=streams())
def test_we_read_what_python_writes(pool, made):
    plain, packed = made
    assert same_verdict(pool, packed) == (plain, 0)


@given(size=st.sampled_from([0, 1, PAGE - 1, PAGE + 1, 2 * PAGE]), data=st.data())
def test_another_length_is_no_page(pool, size, data):
    _, packed = data.draw(streams(size)) if size else (b"", zlib.compress(b""))
    assert same_verdict(pool, packed) is None


@settings(max_examples=300)
@given(made=streams(), data=st.data())
def test_both_refuse_the_same(pool, made, data):
    packed = bytearray(made[1])
    at = data.draw(st.integers(0, len(packed) - 1))
    match data.draw(st.sampled_from("flip cut insert behind head".split())):
        case "flip":
            packed[at] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del packed[at:]
        case "insert":
            packed.insert(at, data.draw(st.integers(0, 255)))
        case "behind":
            packed += data.draw(st.binary(min_size=1, max_size=20))
        case "head":
            packed[:2] = data.draw(st.binary(min_size=2, max_size=2))
    same_verdict(pool, bytes(packed))


def test_a_stream_that_wants_a_dictionary_is_refused(pool):
    packer = zlib.compressobj(zdict=b"known to both")
    assert same_verdict(pool, packer.compress(b"known to both" * 300 + bytes(196)) + packer.flush()) is None
