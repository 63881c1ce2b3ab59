"""Runs: neighbouring fields that always take the same bytes, moved in one go.

Device state is saved and loaded while nobody's guest runs, so a register must not cost a microsecond. Most fields are
plain numbers and arrays of constant length; a run of them is one `struct` and one piece of JSON that never changes.
A run only knows the straight way: whatever is unusual, a value that does not fit, a list in place of a numpy array, a
stream that ends, is left to the fields themselves, one by one, which do it or say what is wrong.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qmig_e2k.errors import StreamError
from qmig_e2k.vmstate.json import ConstantList, ConstantObject
from qmig_e2k.vmstate.mapped import is_mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qmig_e2k.vmstate.description import VMStateField
    from qmig_e2k.vmstate.engine import Loader, Saver

Row: TypeAlias = "tuple[VMStateField, str]"
"""A field and its name in the JSON description."""

_WHOLE = slice(None)
_LOOK_AHEAD = 512
"""Bytes that a reader shows at once."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a field looks that has no test and always takes the same bytes.

    Attributes:
        code: for `struct`; what fills arrays and buffers is a string, holes are padding.
        size: bytes.
        entries: JSON entries.
        array: the elements' type in numpy and on the wire, and the array's shape; None: no array.
        accept: gives the value to keep from what arrived and the present one, or refuses; None: what arrived.
    """

    code: str
    size: int
    entries: Sequence[dict[str, Any]]
    array: tuple[np.dtype[Any], np.dtype[Any], tuple[int]] | None = None
    accept: Callable[[Any, Any], Any] | None = None


class Run:
    """Fields that `struct` packs and unpacks together.

    Attributes:
        rows: the fields.
        entries: their JSON entries.
    """

    __slots__ = (
        "_accepting",
        "_arrays",
        "_attributes",
        "_buffers",
        "_items",
        "_scalars",
        "_sizes",
        "_struct",
        "entries",
        "rows",
    )

    def __init__(self, members: Sequence[tuple[Row, Shape]]) -> None:
        """A run of `members`, at least one."""
        self.rows = tuple(row for row, _ in members)
        self.entries = ConstantList(ConstantObject(entry) for _, shape in members for entry in shape.entries)
        self._sizes = [shape.size for _, shape in members]
        self._struct = struct.Struct(">" + "".join(shape.code for _, shape in members))
        kept = [(field.attribute, shape) for (field, _), shape in members if shape.code[-1] != "x"]
        names = [name for name, _ in kept]
        self._attributes, self._items = _getter(attrgetter, names), _getter(itemgetter, names)
        self._scalars = [(i, name) for i, (name, shape) in enumerate(kept) if shape.code[-1] != "s"]
        self._arrays = [(i, *shape.array) for i, (_, shape) in enumerate(kept) if shape.array is not None]
        arrays = {i for i, *_ in self._arrays}
        self._buffers = [(i, s.size) for i, (_, s) in enumerate(kept) if s.code[-1] == "s" and i not in arrays]
        self._accepting = [(i, shape.accept) for i, (_, shape) in enumerate(kept) if shape.accept is not None]

    def save(self, saver: Saver, obj: Any) -> bool:
        """Write all fields; False if they have to be written one by one (then nothing was)."""
        try:
            values = list(self._values(obj))
            for i, native, wire, shape in self._arrays:
                value = values[i]
                if type(value) is not np.ndarray or value.dtype != native or value.shape != shape:
                    return False
                values[i] = value.astype(wire).tobytes()
            for i, size in self._buffers:
                if len(values[i]) != size:
                    return False
            raw = self._struct.pack(*values)
        except Exception:  # noqa: BLE001 - the field that it came from will tell
            return False
        saver.writer.write(raw)
        return True

    def load(self, loader: Loader, obj: Any) -> None:
        """Read all fields."""
        reader = loader.reader
        start = reader.offset
        try:
            raw = reader.read(self._struct.size)
        except StreamError as error:
            if error.kind == "truncated":
                self._tell_end(loader, obj, start)
            raise
        if not self._put(loader, obj, raw):
            loader.replay(self.rows, obj, raw, start)

    def _values(self, obj: Any) -> tuple[Any, ...]:
        if type(obj) is dict:
            return self._items(obj)
        if is_mapping(obj.__class__):
            raise TypeError("left to the fields")
        return self._attributes(obj)

    def _put(self, loader: Loader, obj: Any, raw: bytes) -> bool:
        """Give all fields what arrived; False if they have to do it one by one."""
        undo = loader.undo_log.append
        try:
            old = self._values(obj)
            new = list(self._struct.unpack(raw))
            for i, accept in self._accepting:
                new[i] = accept(new[i], old[i])
            for i, native, wire, shape in self._arrays:
                value = old[i]
                if type(value) is not np.ndarray or value.dtype != native or value.shape != shape:
                    return False
                undo((np.copyto, (value, value.copy())))
                value[:] = np.frombuffer(new[i], wire)
            for i, size in self._buffers:
                value = old[i]
                if type(value) is not bytearray or len(value) != size:
                    return False
                undo((value.__setitem__, (_WHOLE, bytes(value))))
                value[:] = new[i]
        except Exception:  # noqa: BLE001 - the field that it came from will tell
            return False
        put = dict.__setitem__ if type(obj) is dict else setattr
        try:
            for i, name in self._scalars:
                put(obj, name, new[i])
        except Exception:  # noqa: BLE001
            self._put_back(put, obj, old)
            return False
        undo((self._put_back, (put, obj, old)))
        return True

    def _put_back(self, put: Callable[[Any, str, Any], None], obj: Any, old: tuple[Any, ...]) -> None:
        """Give the scalars their values back, up to one that cannot be set: it was not, nor those behind it."""
        with suppress(Exception):
            for i, name in self._scalars:
                put(obj, name, old[i])

    def _tell_end(self, loader: Loader, obj: Any, start: int) -> None:
        """The stream ended somewhere in this run: let the field where it did say so."""
        reader = loader.reader
        while left := len(reader.peek(_LOOK_AHEAD)):
            reader.skip(left)
        have = reader.offset - start
        for row, size in zip(self.rows, self._sizes, strict=True):
            if have < size:
                loader.replay((row,), obj, bytes(have), start)
            have, start = have - size, start + size


def steps(rows: Sequence[Row], version: int) -> tuple[Run | Row, ...]:
    """`rows` with neighbours joined that are always there at `version`; other fields stay as they are."""
    made: list[Run | Row] = []
    run: list[tuple[Row, Shape]] = []
    names: set[str] = set()

    def close() -> None:
        if run:
            made.append(Run(run))
            run.clear()
            names.clear()

    for row in rows:
        field, label = row
        shape = field.shape(label) if field.direct and field.version <= version else None
        if shape is None or field.attribute in names:
            close()
        if shape is None:
            made.append(row)
            continue
        run.append((row, shape))
        if shape.code[-1] != "x":
            names.add(field.attribute)
    close()
    return tuple(made)


def _getter(make: Callable[..., Any], names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What returns the values of `names` as a tuple."""
    if len(names) > 1:
        return make(*names)  # type: ignore[no-any-return]
    if not names:
        return lambda _: ()
    single = make(*names)
    return lambda obj: (single(obj),)
