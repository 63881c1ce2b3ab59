"""Reader and Writer: big-endian integers with their ranges, offsets, look-ahead, truncation."""

import array
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmig_e2k._core import Reader, StreamError, Writer

WIDTHS = [8, 16, 32, 64]


def test_bytes_are_big_endian():
    writer = Writer()
    writer.u8(1)
    writer.u16(2)
    writer.u32(3)
    writer.u64(4)
    writer.i8(-1)
    writer.i16(-2)
    writer.i32(-3)
    writer.i64(-4)
    writer.cstr8(b"ram")
    writer.zeros(2)
    writer.write(b"end")
    expected = bytes.fromhex(
        "01 0002 00000003 0000000000000004 ff fffe fffffffd fffffffffffffffc 03 72616d 0000 656e64"
    )
    assert writer.getvalue() == expected
    assert len(writer) == len(expected)
    reader = Reader(expected, 0x100)
    assert [reader.u8(), reader.u16(), reader.u32(), reader.u64()] == [1, 2, 3, 4]
    assert [reader.i8(), reader.i16(), reader.i32(), reader.i64()] == [-1, -2, -3, -4]
    assert reader.cstr8() == b"ram"
    reader.skip(2)
    assert reader.peek(512) == b"end"
    assert reader.read(3) == b"end"
    assert reader.peek(1) == b""
    assert reader.offset == 0x100 + len(expected)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("sign", ["u", "i"])
def test_ranges(sign, bits):
    low, high = (0, 2**bits - 1) if sign == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    writer = Writer()
    put = getattr(writer, f"{sign}{bits}")
    for value in (low, high):
        put(value)
    for value in (low - 1, high + 1, 1 << 200):
        with pytest.raises(OverflowError):
            put(value)
    with pytest.raises(TypeError):
        put("1")
    assert len(writer) == 2 * bits // 8
    reader = Reader(writer.getvalue())
    take = getattr(reader, f"{sign}{bits}")
    assert [take(), take()] == [low, high]


@given(st.lists(st.tuples(st.sampled_from(WIDTHS), st.integers(0, 2**64 - 1)), max_size=30))
def test_what_is_written_is_read(values):
    writer = Writer()
    for bits, value in values:
        getattr(writer, f"u{bits}")(value % 2**bits)
    reader = Reader(writer.getvalue())
    assert [getattr(reader, f"u{bits}")() for bits, _ in values] == [value % 2**bits for bits, value in values]
    assert reader.peek(1) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"0123456789abcdef",
        bytearray(b"0123456789abcdef"),
        memoryview(b"0123456789abcdef"),
        memoryview(b"_0_1_2_3_4_5_6_7_8_9_a_b_c_d_e_f")[1::2],
        array.array("Q", [int.from_bytes(b"01234567", "little"), int.from_bytes(b"89abcdef", "little")]),
        np.frombuffer(b"0123456789abcdef", np.uint8),
        np.frombuffer(b"0123456789abcdef", np.int16).reshape(2, 4),
    ],
    ids=["bytes", "bytearray", "memoryview", "strided", "array", "uint8", "matrix"],
)
def test_any_buffer_will_do(data):
    writer = Writer()
    writer.write(data)
    assert writer.getvalue() == b"0123456789abcdef"
    assert Reader(data).read(16) == b"0123456789abcdef"


def test_a_mapped_file(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"mapped")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert Reader(mapped).read(6) == b"mapped"


@pytest.mark.parametrize("data", [7, None, "text", [1, 2]])
def test_what_has_no_bytes(data):
    with pytest.raises(TypeError):
        Reader(data)
    with pytest.raises(TypeError):
        Writer().write(data)


@pytest.mark.parametrize(
    "take",
    [
        Reader.u8,
        Reader.u16,
        Reader.u32,
        Reader.u64,
        Reader.i8,
        Reader.i16,
        Reader.i32,
        Reader.i64,
        Reader.cstr8,
        lambda reader: reader.read(1),
        lambda reader: reader.read(2**63),
        lambda reader: reader.skip(1),
    ],
)
def test_short_reads(take):
    reader = Reader(b"", 0x1234)
    with pytest.raises(StreamError) as caught:
        take(reader)
    assert (caught.value.kind, caught.value.offset, caught.value.path) == ("truncated", 0x1234, "")
    assert "missing" in caught.value.message
    assert "0x1234" in str(caught.value)


def test_short_counted_string():
    reader = Reader(b"\x05abc", 10)
    with pytest.raises(StreamError) as caught:
        reader.cstr8()
    assert (caught.value.kind, caught.value.offset) == ("truncated", 10)


def test_look_ahead_has_a_limit():
    reader = Reader(bytes(1000))
    assert len(reader.peek(512)) == 512
    with pytest.raises(ValueError, match="512"):
        reader.peek(513)
    assert reader.peek(0) == b""


def test_negative_lengths():
    for call in (Reader(b"abc").read, Reader(b"abc").skip, Reader(b"abc").peek, Writer().zeros):
        with pytest.raises(OverflowError):
            call(-1)


def test_counted_strings_have_a_limit():
    writer = Writer()
    writer.cstr8(bytes(255))
    with pytest.raises(ValueError, match="255"):
        writer.cstr8(bytes(256))
    assert len(writer) == 256


def test_numpy_integers():
    writer = Writer()
    writer.u32(np.uint32(0xFFFFFFFF))
    writer.i64(np.int64(-1))
    assert writer.getvalue() == b"\xff" * 12
