"""Fields with nested descriptions: structures, arrays and lists of them, trees, scratch structures, pure checks.

Only top-level sections and subsections carry a version: a nested structure is written and read at its description's
own version on both sides (spec/stream.md 3.7), a `vstruct` at the constant version of its field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableSequence
from typing import TYPE_CHECKING, Any

from qmig_e2k.vmstate.description import MISSING, Exists, VMStateDescription, VMStateField
from qmig_e2k.vmstate.json import JsonObject, Members
from qmig_e2k.vmstate.kinds import NULL_MARKER, Kind
from qmig_e2k.vmstate.mapped import where
from qmig_e2k.vmstate.problems import Problem, problems
from qmig_e2k.vmstate.refusal import Place, Refusal

if TYPE_CHECKING:
    from qmig_e2k.vmstate.arrays import Count
    from qmig_e2k.vmstate.engine import Loader, Saver

MAX_ELEMENTS = 1 << 20
"""Elements of one list or allocated array: the format has no bound, an endless list must not eat the memory."""

Element = Kind | VMStateDescription


class StructField(VMStateField):
    """One nested structure: `struct`, or `vstruct` if `struct_version` is given."""

    __slots__ = ("_version", "type_name", "vmsd")

    def __init__(
        self, name: str, vmsd: VMStateDescription, *, struct_version: int | None = None, **options: Any
    ) -> None:
        super().__init__(name, **options)
        self.vmsd = vmsd
        self.type_name = "struct" if struct_version is None else "vstruct"
        self._version = vmsd.version_id if struct_version is None else struct_version

    @property
    def compressible(self) -> bool:
        return self.exists is None and (self.type_name != "struct" or self.vmsd.compressible)

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        start = len(saver.writer)
        value = self.get(obj)
        if value is None:
            raise Refusal("holds nothing; the pointer must be valid")
        body = saver.body(self.vmsd, value, self._version, describe=out is not None)
        if out is not None and body is not None:
            out.append(struct_entry(label, {}, self.type_name, body, len(saver.writer) - start))

    @property
    def structure(self) -> VMStateDescription:
        return self.vmsd

    def problems(self, obj: Any) -> Iterator[Problem]:
        value = self.find(obj)
        if value is MISSING or value is None:
            yield Problem.missing(self.name, obj, ".".join(self.path))
            return
        yield from (problem.within(self.name) for problem in problems(self.vmsd, value))

    def load(self, loader: Loader, obj: Any) -> None:
        value = self.peek(obj)
        if value is MISSING or value is None:
            raise Refusal("holds nothing here; the structure must exist before loading")
        loader.body(self.vmsd, value, self._version)


def struct_entry(label: str, where: dict[str, int], kind: str, body: dict[str, Any], size: int) -> JsonObject:
    """JSON entry of a structure: under `struct`, but directly in the entry for all other nesting types."""
    head: dict[str, Any] = {"name": label, **where, "type": kind}
    return head | ({"struct": body} if kind == "struct" else body) | {"size": size}


class ElementsField(VMStateField):
    """Several structures, or pointers to structures or numbers; a null pointer is the byte 0x30 alone."""

    __slots__ = ("_alloc", "_count", "_new", "_pointers", "_start", "_version", "element", "type_name")

    def __init__(
        self,
        name: str,
        element: Element,
        count: Count,
        *,
        start: int = 0,
        struct_version: int | None = None,
        pointers: bool = False,
        new: Callable[[], Any] | None = None,
        alloc: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        if alloc and new is None:
            raise ValueError(f"{name}: allocating structures needs new=, which makes one")
        self.element = element
        self.type_name = (
            element.name if isinstance(element, Kind) else "struct" if struct_version is None else "vstruct"
        )
        self._version = (
            0 if isinstance(element, Kind) else element.version_id if struct_version is None else struct_version
        )
        self._count = count
        self._start = start
        self._pointers = pointers
        self._new = new
        self._alloc = alloc

    @property
    def compressible(self) -> bool:
        return self.exists is None and (self.type_name != "struct" or self._description.compressible)

    @property
    def _description(self) -> VMStateDescription:
        assert isinstance(self.element, VMStateDescription)
        return self.element

    @property
    def structure(self) -> VMStateDescription | None:
        return None if isinstance(self.element, Kind) or self._alloc else self.element

    def problems(self, obj: Any) -> Iterator[Problem]:
        values = self.find(obj)
        if self.structure is None or values is MISSING or values is None:
            yield from super().problems(obj)
            return
        yield from self._count.problems(self.name, obj, where(obj, ".".join(self.path)), len(values), self._start)
        for index, value in enumerate(values):
            found = problems(self.structure, value) if value is not None else ()
            yield from (problem.within(f"{self.name}[{index}]") for problem in found)

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        count = self._count.of(obj)
        values = self.get(obj)
        if values is None:
            raise Refusal("holds nothing; the pointer must be valid")
        if self._start + count > len(values):
            raise Refusal(f"holds {len(values)} elements, {self._start + count} are to be written")
        values = values[self._start : self._start + count]
        split_runs = saver.format == "10.0"
        describing, previous_null = out is not None, False
        for index, value in enumerate(values):
            null = self._pointers and value is None
            left = count - index if split_runs else count
            if split_runs and null != previous_null:
                # a run of another kind begins: it is described anew
                previous_null, describing = null, out is not None
                left = next((j for j in range(index + 1, count) if (values[j] is None) != null), count) - index
            start = len(saver.writer)
            with Place(self._start + index):
                body = self._save_one(saver, value, null=null, describe=describing)
            if describing and out is not None:
                compressed = self.compressible
                where = (
                    ({"array_len": left} if left > 1 else {}) if compressed else {"index": index} if left > 1 else {}
                )
                out.append(self._entry(label, where, body, len(saver.writer) - start, null=null and split_runs))
                describing = not compressed

    def _save_one(self, saver: Saver, value: Any, *, null: bool, describe: bool) -> dict[str, Any] | None:
        if null:
            saver.writer.u8(NULL_MARKER)
            return {}
        if isinstance(self.element, Kind):
            self.element.write(saver.writer, value)
            return None
        if value is None:
            raise Refusal("holds nothing; the structure must exist")
        return saver.body(self.element, value, self._version, describe=describe)

    def _entry(
        self, label: str, where: dict[str, int], body: dict[str, Any] | None, size: int, *, null: bool
    ) -> JsonObject:
        if null or isinstance(self.element, Kind) or body is None:
            return {"name": label} | where | {"type": "nullptr" if null else self.type_name, "size": size}
        return struct_entry(label, where, self.type_name, body, size)

    def load(self, loader: Loader, obj: Any) -> None:
        count = self._count.of(obj)
        if self._alloc:
            self._load_fresh(loader, obj, count)
            return
        values = self.peek(obj)
        have = 0 if values is MISSING or values is None else len(values)
        if self._start + count > have:
            raise Refusal(f"{count} elements do not fit: there is room for {max(have - self._start, 0)}")
        for index in range(self._start, self._start + count):
            value = self._load_one(loader, values[index], index)
            if value is not values[index]:
                loader.on_undo(values.__setitem__, index, values[index])
                values[index] = value

    def _load_fresh(self, loader: Loader, obj: Any, count: int) -> None:
        assert self._new is not None
        if count > MAX_ELEMENTS:
            raise Refusal(f"{count} elements exceed the limit of {MAX_ELEMENTS}")
        # one by one, so that a stream that ends early costs no more than it sent
        made = [self._load_one(loader, self._new(), index) for index in range(count)]
        loader.put(self, obj, made, self.peek(obj))

    def _load_one(self, loader: Loader, value: Any, index: int) -> Any:
        at = loader.reader.offset
        with Place(index, at):
            if self._pointers and value is None:
                marker = loader.reader.u8()
                if marker != NULL_MARKER:
                    raise Refusal(f"null here, but {marker:#x} in the stream instead of {NULL_MARKER:#x}")
                return None
            if isinstance(self.element, Kind):
                return self.element.read(loader.reader, value)
            if value is None:
                raise Refusal("holds nothing here; the structure must exist before loading")
            loader.body(self.element, value, self._version)
        return value


class ListField(VMStateField):
    """A list of structures (`qtailq`, `qlist`), replaced on load: a byte 1 before each, a byte 0 at the end."""

    __slots__ = ("_new", "_version", "type_name", "vmsd")

    def __init__(
        self,
        name: str,
        vmsd: VMStateDescription,
        *,
        type_name: str,
        new: Callable[[], Any],
        element_version: int | None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.vmsd = vmsd
        self.type_name = type_name
        self._new = new
        self._version = vmsd.version_id if element_version is None else element_version
        if not vmsd.minimum_version_id <= self._version <= vmsd.version_id:
            raise ValueError(f"{name}: {vmsd.name} has no version {self._version}")

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        start = len(saver.writer)
        bodies = []
        for index, value in enumerate(self.get(obj)):
            saver.writer.u8(1)
            with Place(index):
                bodies.append(saver.body(self.vmsd, value, self.vmsd.version_id, describe=out is not None))
        saver.writer.u8(0)
        if out is not None:
            out.append(list_entry(label, self.type_name, bodies, len(saver.writer) - start))

    def load(self, loader: Loader, obj: Any) -> None:
        made: list[Any] = []
        reader = loader.reader
        while True:
            at = reader.offset
            if not reader.u8():
                break
            if len(made) == MAX_ELEMENTS:
                raise Refusal(f"more than {MAX_ELEMENTS} elements", at)
            value = self._new()
            with Place(len(made), at):
                loader.body(self.vmsd, value, self._version)
            made.append(value)
        old = self.peek(obj)
        if isinstance(old, MutableSequence):
            loader.on_undo(_replace, old, list(old))
            _replace(old, made)
        else:
            loader.put(self, obj, made, old)


def _replace(sequence: MutableSequence[Any], values: list[Any]) -> None:
    sequence.clear()
    sequence.extend(values)


def list_entry(label: str, kind: str, bodies: list[dict[str, Any] | None], size: int) -> JsonObject:
    """JSON entry whose nested members repeat once an element."""
    if len(bodies) <= 1:
        return {"name": label, "type": kind} | (bodies[0] if bodies and bodies[0] else {}) | {"size": size}
    return Members(
        [
            ("name", label),
            ("type", kind),
            *(member for body in bodies if body for member in body.items()),
            ("size", size),
        ]
    )


class TreeField(VMStateField):
    """A `gtree`: a dict from key to structure; keys are integers (u64, in rising order) or structures of their own."""

    __slots__ = ("_key", "_new_key", "_new_value", "vmsd")
    type_name = "gtree"

    def __init__(
        self,
        name: str,
        vmsd: VMStateDescription,
        *,
        new: Callable[[], Any],
        key: VMStateDescription | None,
        new_key: Callable[[], Any] | None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        if (key is None) != (new_key is None):
            raise ValueError(f"{name}: key= and new_key= belong together")
        self.vmsd = vmsd
        self._key = key
        self._new_value = new
        self._new_key = new_key

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        writer = saver.writer
        start = len(writer)
        tree: Mapping[Any, Any] = self.get(obj)
        writer.u32(len(tree))
        bodies: list[dict[str, Any] | None] = []
        for index, key in enumerate(sorted(tree) if self._key is None else list(tree)):
            with Place(index):
                writer.u8(1)
                if self._key is None:
                    writer.u64(key)
                else:
                    bodies.append(saver.body(self._key, key, self._key.version_id, describe=out is not None))
                bodies.append(saver.body(self.vmsd, tree[key], self.vmsd.version_id, describe=out is not None))
        writer.u8(0)
        if out is not None:
            out.append(list_entry(label, self.type_name, bodies, len(writer) - start))

    def load(self, loader: Loader, obj: Any) -> None:
        reader = loader.reader
        announced = reader.u32()
        if announced > MAX_ELEMENTS:
            raise Refusal(f"{announced} nodes exceed the limit of {MAX_ELEMENTS}")
        made: dict[Any, Any] = {}
        nodes = 0
        while True:
            at = reader.offset
            if not reader.u8():
                break
            if nodes == announced:
                raise Refusal(f"more nodes than the {announced} announced", at)
            with Place(nodes, at):
                key = self._load_key(loader)
                value = self._new_value()
                loader.body(self.vmsd, value, self.vmsd.version_id)
                if key in made:
                    raise Refusal("the same key twice")
            made[key] = value
            nodes += 1
        if nodes != announced:
            raise Refusal(f"{nodes} nodes instead of the {announced} announced", at)
        loader.put(self, obj, made, self.peek(obj))

    def _load_key(self, loader: Loader) -> Any:
        if self._key is None or self._new_key is None:
            return loader.reader.u64()
        key = self._new_key()
        loader.body(self._key, key, self._key.version_id)
        return key


class TmpField(VMStateField):
    """A scratch structure that exists only while it travels; its hooks move values to and from the parent."""

    __slots__ = ("_new", "vmsd")
    type_name = "tmp"
    valueless = True

    def __init__(self, vmsd: VMStateDescription, new: Callable[[Any], Any], **options: Any) -> None:
        super().__init__("tmp", **options)
        self.vmsd = vmsd
        self._new = new

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        start = len(saver.writer)
        body = saver.body(self.vmsd, self._new(obj), self.vmsd.version_id, describe=out is not None)
        if out is not None:
            out.append(list_entry(label, self.type_name, [body], len(saver.writer) - start))

    def load(self, loader: Loader, obj: Any) -> None:
        loader.body(self.vmsd, self._new(obj), self.vmsd.version_id)


class ValidateField(VMStateField):
    """Nothing on the wire: only the test, which must hold when saving and for what was read so far."""

    __slots__ = ()
    valueless = True

    def __init__(self, name: str, test: Exists) -> None:
        super().__init__(name, exists=test, must_exist=True)

    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        """Nothing to write."""

    def load(self, loader: Loader, obj: Any) -> None:
        """Nothing to read."""
