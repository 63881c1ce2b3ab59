"""Fields of many plain elements: integer arrays, buffers, bitmaps and the holes of removed fields.

Values live in lists, numpy arrays, bytes or bytearrays; numpy arrays are converted in bulk. What arrives is written
into the destination's container in place, so views of it stay valid. Counts and sizes from other members are checked
against the destination before anything is read (spec/stream.md 14.2).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qmig_e2k.vmstate.description import MISSING, VMStateField
from qmig_e2k.vmstate.kinds import Kind, read_bytes, uint64
from qmig_e2k.vmstate.mapped import where
from qmig_e2k.vmstate.problems import Problem
from qmig_e2k.vmstate.refusal import Place, Refusal
from qmig_e2k.vmstate.runs import Shape

if TYPE_CHECKING:
    from qmig_e2k.vmstate.engine import Loader, Saver
    from qmig_e2k.vmstate.json import JsonObject

MAX_ALLOCATION = 1 << 30
"""Largest buffer or numpy array in bytes that a count from the wire may make us allocate."""

MAX_LIST = 1 << 24
"""Most numbers in a list that a count may make us allocate: each takes far more memory than on the wire."""

MAX_COUNT = 0x7FFF_FFFF
"""Peers compute every count and size as int32."""


class Count:
    """Number of elements or bytes: a constant, or another member that travels before the field.

    Negative counts and those that do not fit in int32 are refused, whatever the member's kind.

    Attributes:
        fixed: the constant; None: it is the member's.
    """

    __slots__ = ("_member", "_times", "fixed")

    def __init__(self, count: int | str, *, times: int = 1) -> None:
        self.fixed = count * times if isinstance(count, int) else None
        self._member = _Member(str(count))
        self._times = times

    def of(self, obj: Any) -> int:
        """The number for `obj`."""
        if self.fixed is not None:
            return self.fixed
        count = int(self._member.get(obj))
        if not 0 <= count <= MAX_COUNT // self._times:
            raise Refusal(f"{self._member.name} is {count}, 0 to {MAX_COUNT // self._times} are possible")
        return count * self._times

    def problems(self, name: str, obj: Any, place: str, have: int, start: int = 0) -> Iterator[Problem]:
        """Too few elements or bytes in a container, or more than travel."""
        try:
            need = self.of(obj)
        except Exception as error:  # noqa: BLE001 - whatever the member is
            yield Problem(name, f"the length of {place} cannot be told: {Refusal.of(error).message}")
            return
        if have < start + need:
            yield Problem(name, f"{place} has {have} elements, {start + need} are needed")
        elif self.fixed is not None and not start and have > need:
            yield Problem(name, f"{place} has {have} elements, of which the first {need} travel", stops=False)


class _Member(VMStateField):
    """Only the way to a member that holds a count."""

    __slots__ = ()

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        raise NotImplementedError

    def load(self, loader: Loader, obj: Any) -> None:
        raise NotImplementedError


def array_entry(label: str, kind: str, size: int, count: int) -> list[dict[str, Any]]:
    """The one JSON entry of `count` elements that all look alike; none if there are none (spec/stream.md 2.6.1)."""
    head: dict[str, Any] = {"name": label}
    if count > 1:
        head["array_len"] = count
    return [head | {"type": kind, "size": size}] if count else []


def array_entries(
    saver: Saver, label: str, kind: str, size: int, count: int, *, compressible: bool
) -> list[JsonObject]:
    """JSON entries of `count` elements, in one if that may be."""
    if compressible or count == 1:
        return [*array_entry(label, kind, size, count)]
    # 10.0 counts from the current element on, so its last one has no index
    alone = count - 1 if saver.format == "10.0" else count
    return [
        {"name": label} | ({"index": index} if index != alone else {}) | {"type": kind, "size": size}
        for index in range(count)
    ]


class ArrayField(VMStateField):
    """`count` plain elements of one kind, row-major, from element `start` of the container on."""

    __slots__ = ("_alloc", "_count", "_start", "kind", "type_name")

    def __init__(
        self, name: str, kind: Kind, count: Count, *, start: int = 0, alloc: bool = False, **options: Any
    ) -> None:
        super().__init__(name, **options)
        self.kind = kind
        self.type_name = kind.name
        self._count = count
        self._start = start
        self._alloc = alloc

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        count = self._count.of(obj)
        values = part(self.get(obj), self._start, count)
        if self.kind.packs:
            saver.writer.write(self.kind.pack(values))
            sizes = self.kind.size
        else:
            sizes = self._save_each(saver, values)
        if out is not None:
            out += array_entries(saver, label, self.type_name, sizes, count, compressible=self.compressible)

    def shape(self, label: str) -> Shape | None:
        kind, count = self.kind, self._count.fixed
        if count is None or self._start or self._alloc or not kind.straight:
            return None
        size = count * kind.size
        entries = array_entry(label, kind.name, kind.size, count)
        return Shape(f"{size}s", size, entries, array=(kind.native, kind.dtype, (count,)))

    def problems(self, obj: Any) -> Iterator[Problem]:
        value = self.find(obj)
        if value is MISSING or self._alloc:
            yield from super().problems(obj)
            return
        place = where(obj, ".".join(self.path))
        if not hasattr(value, "__len__"):
            yield Problem(self.name, f"{place} is {value!r}, no array")
            return
        yield from self._count.problems(self.name, obj, place, length(value), self._start)
        if isinstance(value, np.ndarray) and value.ndim > 1 and value.size != self._count.of(obj):
            kept = f"{self._count.of(obj)} elements travel, the others would be lost"
            yield Problem(self.name, f"{place} is an array of shape {value.shape}; {kept}")
            return
        if isinstance(value, np.ndarray) and self.kind.packs:
            native = self.kind.unpack(b"").dtype.newbyteorder("=")
            if (native.kind in "iu" and value.dtype.kind == "f") or not np.can_cast(native, value.dtype, "safe"):
                text = f"{place} is an array of {value.dtype}, which cannot hold {native}; make it one of {native}"
                yield Problem(self.name, text)
                return
            if not value.flags.writeable:
                yield Problem(self.name, f"{place} is a read-only array: no stream could be loaded into it")
        if self.kind.packs:
            yield from self._elements(value, place)

    def _elements(self, value: Any, place: str) -> Iterator[Problem]:
        """The first element that is no number of the kind."""
        values = part(value, 0, length(value))
        if self._packs(values):
            return
        index, element = next((at, each) for at, each in enumerate(plain(values)) if not self._packs([each]))
        yield Problem(f"{self.name}[{index}]", f"{place} holds {element!r} there, no {self.kind.name}")

    def _packs(self, values: Any) -> bool:
        try:
            self.kind.pack(values)
        except Exception:  # noqa: BLE001 - whatever the elements are
            return False
        return True

    def _save_each(self, saver: Saver, values: Sequence[Any]) -> int:
        """Elements of no fixed size; returns the first one's."""
        first = 0
        for index, value in enumerate(values):
            start = len(saver.writer)
            with Place(index + self._start):
                self.kind.write(saver.writer, value)
            first = first or len(saver.writer) - start
        return first

    def load(self, loader: Loader, obj: Any) -> None:
        count = self._count.of(obj)
        old = self.peek(obj)
        absent = old is MISSING or old is None
        if self._alloc or (absent and self._count.fixed is not None):
            self._load_fresh(loader, obj, count, old)
            return
        have = 0 if absent else length(old)
        if self._start + count > have:
            raise Refusal(f"{count} elements do not fit: there is room for {max(have - self._start, 0)}")
        loader.put(self, obj, fill(loader, old, self._start, self._read(loader, count, old)), old)

    def _load_fresh(self, loader: Loader, obj: Any, count: int, old: Any) -> None:
        """Read into a new list, or a new numpy array of the old one's type."""
        limit = MAX_ALLOCATION // self.kind.size if isinstance(old, np.ndarray) else MAX_LIST
        if count > limit:
            raise Refusal(f"{count} elements exceed the limit of {limit}")
        values = self._read(loader, count, ())
        if isinstance(old, np.ndarray):
            loader.put(self, obj, convert(values, old.dtype), old)
        else:
            loader.put(self, obj, [0] * self._start + plain(values), old)

    def _read(self, loader: Loader, count: int, old: Any) -> Any:
        reader, kind = loader.reader, self.kind
        if kind.bulk:
            return kind.unpack(read_bytes(reader, count * kind.size))
        flat = part(old, 0, length(old)) if len(old) else old
        values = []
        for index in range(self._start, self._start + count):
            at = reader.offset
            with Place(index, at):
                values.append(kind.read(reader, flat[index] if index < len(flat) else MISSING))
        return values


def length(container: Any) -> int:
    """Number of elements, nested lists flattened."""
    if isinstance(container, np.ndarray):
        return container.size
    return sum(map(len, container)) if len(container) and isinstance(container[0], list) else len(container)


def part(container: Any, start: int, count: int) -> Any:
    """Elements `start` to `start + count` of a container, nested lists flattened."""
    if container is None:
        raise Refusal("holds nothing; the pointer must be valid")
    if isinstance(container, np.ndarray):
        container = container if container.ndim == 1 else container.reshape(-1)
    elif len(container) and isinstance(container[0], list):
        container = [value for row in container for value in row]
    if start + count > len(container):
        raise Refusal(f"holds {len(container)} elements, {start + count} are to be written")
    return container if start == 0 and count == len(container) else container[start : start + count]


def plain(values: Any) -> list[Any]:
    """A list of Python numbers."""
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def convert(values: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """`values` as an array of `dtype`, which must be able to hold every one of their kind."""
    made = np.asarray(values)
    if not np.can_cast(made.dtype.newbyteorder("="), dtype, "safe"):
        raise Refusal(f"an array of {dtype} cannot hold {made.dtype.newbyteorder('=')}")
    return made.astype(dtype)


def fill(loader: Loader, container: Any, start: int, values: Any) -> Any:
    """`container` with `values` from `start` on: changed in place, or a new one if it is immutable."""
    count = len(values)
    if isinstance(container, np.ndarray):
        values = convert(values, container.dtype)
        target = container if container.ndim == 1 else container.flat
        loader.on_undo(target.__setitem__, slice(start, start + count), target[start : start + count].copy())
        target[start : start + count] = values
    elif not isinstance(container, MutableSequence):
        return type(container)([*container[:start], *plain(values), *container[start + count :]])
    elif len(container) and isinstance(container[0], list):
        _fill_rows(loader, container, start, plain(values))
    else:
        loader.on_undo(container.__setitem__, slice(start, start + count), list(container[start : start + count]))
        container[start : start + count] = plain(values)
    return container


def _fill_rows(loader: Loader, rows: Any, start: int, values: list[Any]) -> None:
    position = 0
    for row in rows:
        first, last = max(start - position, 0), min(start + len(values) - position, len(row))
        if first < last:
            loader.on_undo(row.__setitem__, slice(first, last), row[first:last])
            row[first:last] = values[position + first - start : position + last - start]
        position += len(row)


class BufferField(VMStateField):
    """Raw bytes: `size` of them (a constant, or a member times a constant) from byte `start` of the buffer on."""

    __slots__ = ("_alloc", "_size", "_start")
    type_name = "buffer"

    def __init__(self, name: str, size: Count, *, start: int = 0, alloc: bool = False, **options: Any) -> None:
        super().__init__(name, **options)
        self._size = size
        self._start = start
        self._alloc = alloc

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        size = self._size.of(obj)
        value = self.get(obj)
        if value is None:
            raise Refusal("holds no buffer")
        view = memoryview(value).cast("B")
        if self._start + size > len(view):
            raise Refusal(f"the buffer holds {len(view)} bytes, {self._start + size} are to be written")
        saver.writer.write(view[self._start : self._start + size])
        if out is not None:
            out.append({"name": label, "type": "buffer", "size": size})

    def shape(self, label: str) -> Shape | None:
        size = self._size.fixed
        if size is None or self._start or self._alloc:
            return None
        return Shape(f"{size}s", size, [{"name": label, "type": "buffer", "size": size}])

    def problems(self, obj: Any) -> Iterator[Problem]:
        value = self.find(obj)
        if value is MISSING or self._alloc:
            yield from super().problems(obj)
            return
        place = where(obj, ".".join(self.path))
        try:
            have = memoryview(value).nbytes
        except TypeError:
            yield Problem(self.name, f"{place} is a {type(value).__name__}; a bytearray is needed")
        else:
            yield from self._size.problems(self.name, obj, place, have, self._start)

    def load(self, loader: Loader, obj: Any) -> None:
        size = self._size.of(obj)
        old = self.peek(obj)
        if self._alloc:
            if size > MAX_ALLOCATION:
                raise Refusal(f"{size} bytes exceed the limit of {MAX_ALLOCATION}")
            raw = read_bytes(loader.reader, size)
            loader.put(self, obj, bytearray(raw) if isinstance(old, bytearray) else raw, old)
            return
        empty = old is MISSING or old is None
        have = memoryview(old).nbytes if not empty else self._start + size if self._size.fixed is not None else 0
        if self._start + size > have:
            raise Refusal(f"{size} bytes do not fit: there is room for {max(have - self._start, 0)}")
        raw = read_bytes(loader.reader, size)
        if empty:
            loader.put(self, obj, bytes(self._start) + raw, old)
        elif isinstance(old, bytes):
            loader.put(self, obj, old[: self._start] + raw + old[self._start + size :], old)
        else:
            view = memoryview(old).cast("B")
            loader.on_undo(
                view.__setitem__, slice(self._start, self._start + size), bytes(view[self._start : self._start + size])
            )
            view[self._start : self._start + size] = raw


class BitmapField(VMStateField):
    """`bits` bits as 64-bit words: a list or numpy uint64 array of words, bit i in word i // 64."""

    __slots__ = ("_bits",)
    type_name = "bitmap"

    def __init__(self, name: str, bits: Count, **options: Any) -> None:
        super().__init__(name, **options)
        self._bits = bits

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        words = -(-self._bits.of(obj) // 64)
        saver.writer.write(uint64.pack(part(self.get(obj), 0, words)))
        if out is not None:
            out.append({"name": label, "type": "bitmap", "size": 8 * words})

    def problems(self, obj: Any) -> Iterator[Problem]:
        value = self.find(obj)
        if value is MISSING or not hasattr(value, "__len__"):
            yield from super().problems(obj)
        else:
            yield from self._bits.problems(self.name, obj, where(obj, ".".join(self.path)), 64 * len(value))

    def load(self, loader: Loader, obj: Any) -> None:
        bits = self._bits.of(obj)
        old = self.peek(obj)
        room = 0 if old is MISSING or old is None else 64 * len(old)
        if bits > room:
            raise Refusal(f"{bits} bits do not fit: there is room for {room}")
        words = -(-bits // 64)
        loader.put(self, obj, fill(loader, old, 0, uint64.unpack(read_bytes(loader.reader, 8 * words))), old)


class UnusedField(VMStateField):
    """Bytes of a removed field: zeros are written, anything is skipped."""

    __slots__ = ("_count", "_size")
    type_name = "unused_buffer"
    valueless = True

    def __init__(self, count: Count, size: int, **options: Any) -> None:
        super().__init__("unused", **options)
        self._count = count
        self._size = size

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        count = self._count.of(obj)
        saver.writer.zeros(count * self._size)
        if out is not None:
            out += array_entries(saver, label, self.type_name, self._size, count, compressible=self.compressible)

    def shape(self, label: str) -> Shape | None:
        count = self._count.fixed
        if count is None:
            return None
        size = count * self._size
        return Shape(f"{size}x", size, array_entry(label, self.type_name, self._size, count))

    def load(self, loader: Loader, obj: Any) -> None:
        left = self._count.of(obj) * self._size
        while left:
            step = min(left, 1 << 20)
            loader.reader.skip(step)
            left -= step
