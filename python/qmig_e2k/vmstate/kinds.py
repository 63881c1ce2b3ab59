"""Element kinds: how one number (or string) looks on the wire, singly and in bulk.

A kind is called to make a field of one element (`uint32("halted")`) and handed to the array constructors
(`array("regs", uint64, 256)`). Everything is big-endian. Table: spec/stream.md 3.5.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k._core import Reader, Writer
from qmig_e2k.vmstate.description import MISSING, Exists, VMStateField
from qmig_e2k.vmstate.mapped import where
from qmig_e2k.vmstate.problems import Problem, unsettable
from qmig_e2k.vmstate.refusal import Refusal
from qmig_e2k.vmstate.runs import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmig_e2k.vmstate.engine import Loader, Saver
    from qmig_e2k.vmstate.json import JsonObject

CHUNK = 1 << 20
"""Bytes asked for at once: a count from the wire never makes us allocate much more than the peer really sends."""

NULL_MARKER = 0x30
"""Byte that stands for a null pointer in an array of pointers."""


def read_bytes(reader: Reader, length: int) -> bytes:
    """Read `length` bytes, in pieces where that is a lot."""
    if length <= CHUNK:
        return reader.read(length)
    out = bytearray()
    while len(out) < length:
        out += reader.read(min(CHUNK, length - len(out)))
    return bytes(out)


class Kind:
    """One element kind of fixed size.

    Attributes:
        name: type name in the JSON description.
        size: bytes on the wire.
        code: `struct` code of one element.
        dtype: numpy type of one element on the wire.
        native: the same in the host's byte order.
        packs: arrays of it may be written in one go.
        bulk: arrays of it may be read in one go (no check per element).
    """

    __slots__ = ("_put", "_take", "bulk", "code", "dtype", "name", "native", "packs", "size")

    def __init__(
        self,
        name: str,
        code: str,
        put: Callable[[Writer, Any], None],
        take: Callable[[Reader], Any],
        *,
        packs: bool = True,
        bulk: bool = True,
    ) -> None:
        self.name = name
        self.code = code
        self._put = put
        self._take = take
        self.packs = packs
        self.bulk = bulk
        self.size = struct.calcsize(">" + code)
        self.dtype = np.dtype(f">{_NUMPY_CODES[code]}")
        self.native = self.dtype.newbyteorder("=")

    def __repr__(self) -> str:
        return f"<kind {self.name}>"

    def __call__(
        self,
        name: str,
        *,
        version: int = 0,
        exists: Exists | None = None,
        must_exist: bool = False,
        attr: str | None = None,
    ) -> VMStateField:
        """A field of one element.

        Args:
            name: field name.
            version: first stream version that has it.
            exists: test `(obj, version) -> bool` instead.
            must_exist: refuse a stream in which the test fails.
            attr: attribute (dotted) or dict key that holds the value, if that is not `name`.
        """
        return ScalarField(name, self, version=version, exists=exists, must_exist=must_exist, attr=attr)

    def write(self, writer: Writer, value: Any) -> None:
        """Write one element; OverflowError if it does not fit, TypeError if it is no number."""
        self._put(writer, value)

    def read(self, reader: Reader, old: Any) -> Any:
        """Read one element; `old` is the destination's value (MISSING if there is none)."""
        return self.accept(self._take(reader), old)

    def accept(self, value: Any, old: Any) -> Any:  # noqa: ARG002 - for the kinds that compare
        """What to keep of the value that arrived, `old` being the destination's; or a refusal."""
        return value

    def shape(self, label: str) -> Shape | None:
        """The look of a field of one element, named `label`; None: its size varies."""
        if not self.packs:
            return None
        accept = self.accept if type(self).accept is not Kind.accept else None
        return Shape(self.code, self.size, [{"name": label, "type": self.name, "size": self.size}], accept=accept)

    @property
    def straight(self) -> bool:
        """An array of it differs from its wire form by nothing but the order of bytes."""
        return self.packs and self.bulk

    def pack(self, values: Any) -> bytes:
        """The wire form of an array or sequence."""
        if isinstance(values, np.ndarray) and values.dtype in (self.native, self.dtype):
            return values.astype(self.dtype).tobytes()
        values = values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)
        return struct.pack(f">{len(values)}{self.code}", *values)

    def unpack(self, raw: bytes) -> np.ndarray[Any, Any]:
        """The elements of `raw`, still big-endian."""
        return np.frombuffer(raw, self.dtype)


_NUMPY_CODES = {
    "?": "u1",
    "b": "i1",
    "B": "u1",
    "h": "i2",
    "H": "u2",
    "i": "i4",
    "I": "u4",
    "q": "i8",
    "Q": "u8",
    "d": "f8",
}


class BoolKind(Kind):
    """u8; any non-zero byte is true, unless `strict`: then anything but 0 and 1 is refused."""

    __slots__ = ("strict",)

    def __init__(self, *, strict: bool) -> None:
        super().__init__("bool", "?", Writer.u8, Reader.u8, bulk=not strict)
        self.strict = strict

    def write(self, writer: Writer, value: Any) -> None:
        writer.u8(1 if value else 0)

    def accept(self, value: Any, old: Any) -> bool:  # noqa: ARG002
        if self.strict and value > 1:
            raise Refusal(f"{value:#x} is no bool")
        return bool(value)

    def shape(self, label: str) -> Shape | None:
        # writing is what `struct` cannot do: any true value is a 1
        return None if self.strict else super().shape(label)

    @property
    def straight(self) -> bool:
        return False

    def pack(self, values: Any) -> bytes:
        return bytes(1 if value else 0 for value in (values.ravel() if isinstance(values, np.ndarray) else values))

    def unpack(self, raw: bytes) -> np.ndarray[Any, Any]:
        return np.frombuffer(raw, np.uint8).astype(bool)


class EqualKind(Kind):
    """An integer that is only compared: a value other than the destination's refuses the stream."""

    __slots__ = ("hint",)

    def __init__(
        self, name: str, code: str, put: Callable[[Writer, Any], None], take: Callable[[Reader], Any], hint: str = ""
    ) -> None:
        super().__init__(name, code, put, take, bulk=False)
        self.hint = hint

    def with_hint(self, hint: str) -> EqualKind:
        """The same, whose error ends with `hint`: what to do about the difference."""
        return EqualKind(self.name, self.code, self._put, self._take, hint)

    def accept(self, value: Any, old: Any) -> Any:
        if value != old:
            here = "nothing" if old is MISSING else f"{old:#x}" if isinstance(old, int) else str(old)
            raise Refusal(f"{value:#x} in the stream, {here} here" + (f"; {self.hint}" if self.hint else ""))
        return old


class PositiveLeKind(Kind):
    """int32 that must lie between 0 and the destination's value."""

    __slots__ = ()

    def accept(self, value: Any, old: Any) -> Any:
        if old is MISSING or not 0 <= value <= old:
            raise Refusal(f"{value} in the stream, 0 to {'nothing' if old is MISSING else old} are possible here")
        return value


class DoubleKind(Kind):
    """IEEE-754 double; the bits are kept, those of a NaN too."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name, "d", _put_double, _take_double)


class CapabilityKind(Kind):
    """A migration capability's name, counted string of 1 to 255 bytes."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("capability", "B", _put_string, _take_string, packs=False, bulk=False)


class NullptrKind(Kind):
    """The byte that stands for a null pointer."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("nullptr", "B", _put_null, Reader.u8, packs=False, bulk=False)

    def read(self, reader: Reader, old: Any) -> None:  # noqa: ARG002
        byte = reader.u8()
        if byte != NULL_MARKER:
            raise Refusal(f"null marker {NULL_MARKER:#x} expected, {byte:#x} found")


class FdKind(Kind):
    """A descriptor beside the stream. Only the `cpr` channel can carry it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("fd", "B", _refuse_fd, _refuse_fd, packs=False, bulk=False)


def _put_double(writer: Writer, value: Any) -> None:
    writer.write(struct.pack(">d", value))


def _take_double(reader: Reader) -> float:
    (value,) = struct.unpack(">d", reader.read(8))
    return float(value)


def _put_string(writer: Writer, value: Any) -> None:
    writer.cstr8(value.encode())


def _take_string(reader: Reader) -> str:
    raw = reader.cstr8()
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise Refusal(f"{raw!r} is no capability") from None


def _put_null(writer: Writer, value: Any) -> None:
    if value is not None:
        raise Refusal(f"a null pointer holds {value!r}")
    writer.u8(NULL_MARKER)


def _refuse_fd(*_: Any) -> None:
    raise Refusal("descriptors travel only on the cpr channel, which is not supported", kind="unsupported")


class ScalarField(VMStateField):
    """One element of a kind, held by an attribute or dict member."""

    __slots__ = ("kind", "type_name")

    def __init__(self, name: str, kind: Kind, **options: Any) -> None:
        super().__init__(name, **options)
        self.kind = kind
        self.type_name = kind.name

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        writer = saver.writer
        if out is None:
            self.kind.write(writer, self.get(obj))
            return
        start = len(writer)
        self.kind.write(writer, self.get(obj))
        out.append({"name": label, "type": self.type_name, "size": len(writer) - start})

    def load(self, loader: Loader, obj: Any) -> None:
        old = self.peek(obj)
        loader.put(self, obj, self.kind.read(loader.reader, old), old)

    def shape(self, label: str) -> Shape | None:
        return self.kind.shape(label)

    def problems(self, obj: Any) -> Iterator[Problem]:
        value = self.find(obj)
        if value is MISSING:
            yield from super().problems(obj)
            return
        try:
            self.kind.write(Writer(), value)
        except Exception as error:  # noqa: BLE001 - whatever the value is
            text = f"{where(obj, '.'.join(self.path))} is {value!r}, no {self.type_name}: {Refusal.of(error).message}"
            yield Problem(self.name, text)
            return
        why = None if isinstance(self.kind, EqualKind) else unsettable(self.owner(obj), self.attribute)
        if why is not None:
            yield Problem(self.name, f"{where(obj, '.'.join(self.path))} is {why}: no stream could be loaded into it")


bool_ = BoolKind(strict=False)
bool_strict = BoolKind(strict=True)
int8 = Kind("int8", "b", Writer.i8, Reader.i8)
int16 = Kind("int16", "h", Writer.i16, Reader.i16)
int32 = Kind("int32", "i", Writer.i32, Reader.i32)
int64 = Kind("int64", "q", Writer.i64, Reader.i64)
uint8 = Kind("uint8", "B", Writer.u8, Reader.u8)
uint16 = Kind("uint16", "H", Writer.u16, Reader.u16)
uint32 = Kind("uint32", "I", Writer.u32, Reader.u32)
uint64 = Kind("uint64", "Q", Writer.u64, Reader.u64)
uint8_equal = EqualKind("uint8 equal", "B", Writer.u8, Reader.u8)
uint16_equal = EqualKind("uint16 equal", "H", Writer.u16, Reader.u16)
int32_equal = EqualKind("int32 equal", "i", Writer.i32, Reader.i32)
uint32_equal = EqualKind("uint32 equal", "I", Writer.u32, Reader.u32)
uint64_equal = EqualKind("int64 equal", "Q", Writer.u64, Reader.u64)
"""The signed name is QEMU's, for the unsigned comparison."""
int32_positive_le = PositiveLeKind("int32 le", "i", Writer.i32, Reader.i32, bulk=False)
float64 = DoubleKind("float64")
cpu_double_u = DoubleKind("CPU_Double_U")
timer = Kind("timer", "q", Writer.i64, Reader.i64)
"""Expiry in ns of the timer's clock; -1: not armed. Any value is legal input."""
capability = CapabilityKind()
nullptr = NullptrKind()
fd = FdKind()
