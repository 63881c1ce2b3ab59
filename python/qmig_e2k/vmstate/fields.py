"""Constructors of fields, one a family of spec/stream.md 3.4.4, under the family's name.

Wherever an `element` is taken it is a kind (`uint32`, `bool_`, `timer`...) or a description (then the elements are
objects with a description of their own). A single number is made by calling its kind: `uint32("halted")`.

Options of every constructor:

* `version`: first stream version that has the field;
* `exists`: test `(obj, version) -> bool` instead (an array with a test is described element by element);
* `attr`: attribute (dotted) or dict key that holds the value if it is not the field's name; `.` is the object itself.

Counts and sizes given as a string name another member, which must travel before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmig_e2k.vmstate.arrays import ArrayField, BitmapField, BufferField, Count, UnusedField
from qmig_e2k.vmstate.kinds import Kind, ScalarField
from qmig_e2k.vmstate.structs import Element, ElementsField, ListField, StructField, TmpField, TreeField, ValidateField

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k.vmstate.description import Exists, VMStateDescription, VMStateField


def _elements(
    name: str,
    element: Element,
    count: Count,
    *,
    start: int = 0,
    new: Callable[[], Any] | None = None,
    alloc: bool = False,
    **options: Any,
) -> VMStateField:
    if isinstance(element, Kind):
        return ArrayField(name, element, count, start=start, alloc=alloc, **options)
    return ElementsField(name, element, count, start=start, new=new, alloc=alloc, **options)


def struct(
    name: str,
    vmsd: VMStateDescription,
    *,
    version: int = 0,
    exists: Exists | None = None,
    must_exist: bool = False,
    attr: str | None = None,
) -> VMStateField:
    """A nested structure, at its description's own version."""
    return StructField(name, vmsd, version=version, exists=exists, must_exist=must_exist, attr=attr)


def vstruct(
    name: str,
    vmsd: VMStateDescription,
    struct_version: int,
    *,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """A nested structure at the constant version `struct_version`."""
    return StructField(name, vmsd, struct_version=struct_version, version=version, exists=exists, attr=attr)


def pointer(
    name: str, element: Element, *, version: int = 0, exists: Exists | None = None, attr: str | None = None
) -> VMStateField:
    """One number or structure behind a pointer that is valid on both sides."""
    if isinstance(element, Kind):
        return ScalarField(name, element, version=version, exists=exists, attr=attr)
    return StructField(name, element, version=version, exists=exists, attr=attr)


def array(
    name: str,
    element: Element,
    num: int,
    *,
    start: int = 0,
    struct_version: int | None = None,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """`num` elements from element `start` on, one after the other.

    Args:
        name: field name.
        element: kind or description of one element.
        num: how many travel.
        start: first element (a sub-array).
        struct_version: constant version of nested structures.
        version: first stream version that has the field.
        exists: test instead.
        attr: where the list or numpy array is.
    """
    if struct_version is not None:
        return ElementsField(
            name,
            element,
            Count(num),
            start=start,
            struct_version=struct_version,
            version=version,
            exists=exists,
            attr=attr,
        )
    return _elements(name, element, Count(num), start=start, version=version, exists=exists, attr=attr)


def array2d(
    name: str,
    element: Element,
    rows: int,
    columns: int,
    *,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """`rows` by `columns` elements, row by row: nested lists or a 2D array; structures in one flat list."""
    return _elements(name, element, Count(rows * columns), version=version, exists=exists, attr=attr)


def varray(
    name: str,
    element: Element,
    count: str,
    *,
    multiply: int = 1,
    alloc: bool = False,
    new: Callable[[], Any] | None = None,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """As many elements as the member `count` says.

    Args:
        name: field name.
        element: kind or description of one element.
        count: member with the number, of any integer kind; it travels before.
        multiply: constant factor.
        alloc: the destination makes a fresh array; otherwise it must have room.
        new: makes one structure, for `alloc`.
        version: first stream version that has the field.
        exists: test instead.
        attr: where the list or numpy array is.
    """
    made = Count(count, times=multiply)
    return _elements(name, element, made, new=new, alloc=alloc, version=version, exists=exists, attr=attr)


def array_of_pointer(
    name: str, element: Element, num: int, *, version: int = 0, exists: Exists | None = None, attr: str | None = None
) -> VMStateField:
    """`num` pointers, each followed; None where the pointer is null, on both sides alike."""
    return ElementsField(name, element, Count(num), pointers=True, version=version, exists=exists, attr=attr)


def buffer(
    name: str, size: int, *, start: int = 0, version: int = 0, exists: Exists | None = None, attr: str | None = None
) -> VMStateField:
    """`size` raw bytes of a buffer from byte `start` on."""
    return BufferField(name, Count(size), start=start, version=version, exists=exists, attr=attr)


def vbuffer(
    name: str,
    size: str,
    *,
    start: int = 0,
    multiply: int = 1,
    alloc: bool = False,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """As many raw bytes as the member `size` says, times `multiply`; `alloc`: the destination makes a fresh buffer."""
    return BufferField(
        name, Count(size, times=multiply), start=start, alloc=alloc, version=version, exists=exists, attr=attr
    )


def bitmap(
    name: str, bits: str, *, version: int = 0, exists: Exists | None = None, attr: str | None = None
) -> VMStateField:
    """As many bits as the member `bits` says, in 64-bit words."""
    return BitmapField(name, Count(bits), version=version, exists=exists, attr=attr)


def unused(size: int, *, version: int = 0, exists: Exists | None = None) -> VMStateField:
    """`size` bytes that nobody uses any more."""
    return UnusedField(Count(1), size, version=version, exists=exists)


def unused_varray(count: str, size: int, *, version: int = 0, exists: Exists | None = None) -> VMStateField:
    """As many unused elements of `size` bytes as the member `count` says."""
    return UnusedField(Count(count), size, version=version, exists=exists)


def qtailq(
    name: str,
    vmsd: VMStateDescription,
    new: Callable[[], Any],
    *,
    element_version: int | None = None,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """A list of structures, replaced on load.

    Args:
        name: field name.
        vmsd: description of one element.
        new: makes an empty element.
        element_version: version at which elements are read, if not the description's own.
        version: first stream version that has the field.
        exists: test instead.
        attr: where the list (any mutable sequence) is.
    """
    return ListField(
        name,
        vmsd,
        type_name="qtailq",
        new=new,
        element_version=element_version,
        version=version,
        exists=exists,
        attr=attr,
    )


def qlist(
    name: str,
    vmsd: VMStateDescription,
    new: Callable[[], Any],
    *,
    element_version: int | None = None,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """The same bytes as `qtailq` under another type name."""
    return ListField(
        name,
        vmsd,
        type_name="qlist",
        new=new,
        element_version=element_version,
        version=version,
        exists=exists,
        attr=attr,
    )


def gtree(
    name: str,
    vmsd: VMStateDescription,
    new: Callable[[], Any],
    *,
    key: VMStateDescription | None = None,
    new_key: Callable[[], Any] | None = None,
    version: int = 0,
    exists: Exists | None = None,
    attr: str | None = None,
) -> VMStateField:
    """A dict of structures by key, replaced on load.

    Args:
        name: field name.
        vmsd: description of one value.
        new: makes an empty value.
        key: description of a key; None: keys are integers.
        new_key: makes an empty key, hashable when loaded.
        version: first stream version that has the field.
        exists: test instead.
        attr: where the dict is.
    """
    return TreeField(name, vmsd, new=new, key=key, new_key=new_key, version=version, exists=exists, attr=attr)


def with_tmp(
    vmsd: VMStateDescription, new: Callable[[Any], Any], *, version: int = 0, exists: Exists | None = None
) -> VMStateField:
    """A scratch structure made by `new(parent)`; its hooks move values to and from the parent."""
    return TmpField(vmsd, new, version=version, exists=exists)


def validate(name: str, test: Exists) -> VMStateField:
    """A check between the fields: `test(obj, version)` must hold for what was read so far."""
    return ValidateField(name, test)
