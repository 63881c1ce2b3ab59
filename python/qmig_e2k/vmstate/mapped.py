"""`Mapped`: an emulator's own object under the names that a description uses.

    vm.register(CPU, core, mapping={"regs_lo": "file.low", "psp_lo": "psp.0", "chn.rx": "received"})

A name that is not in the mapping is the object's own. A path goes through attributes, members of dicts and elements of
sequences alike. Engine and hooks see attributes, whatever the emulator keeps its registers in; arrays are the
emulator's own and are filled in place; single numbers are Python integers even if they live in a numpy array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from qmig_e2k.vmstate.description import VMStateDescription

_NOTHING = object()


Tree: TypeAlias = "dict[str, Tree]"
"""Members that hold structures, with those of the structures."""


class Mapped:
    """A view of `target`. It has no attributes of its own that a field could be hidden by."""

    __slots__ = ("_Mapped__inner", "_Mapped__paths", "_Mapped__target")

    def __init__(self, target: Any, mapping: Mapping[str, str], structures: Tree | None = None) -> None:
        """The view.

        Args:
            target: the emulator's object or dict.
            mapping: path by name; `chn.rx` is a name of the structures that `chn` holds.
            structures: members that hold structures, of which dicts get views as well.
        """
        inner: dict[str, tuple[dict[str, str], Tree]] = {n: ({}, tree) for n, tree in (structures or {}).items()}
        paths = {}
        for name, path in mapping.items():
            first, dot, rest = name.partition(".")
            if dot:
                inner.setdefault(first, ({}, {}))[0][rest] = path
            else:
                paths[name] = path.split(".")
        put = super().__setattr__
        put("_Mapped__target", target)
        put("_Mapped__paths", paths)
        put("_Mapped__inner", inner)

    def __getattr__(self, name: str) -> Any:
        value = self.__target
        for step in self.__paths.get(name, (name,)):
            value = _step(value, step)
        if name in self.__inner:
            return _within(value, *self.__inner[name])
        return value.item() if isinstance(value, np.generic) else value

    def __holder(self, name: str) -> tuple[Any, str]:
        """What holds the value, and its name there."""
        *way, last = self.__paths.get(name, (name,))
        owner = self.__target
        for step in way:
            owner = _step(owner, step)
        return owner, last

    def __setattr__(self, name: str, value: Any) -> None:
        owner, last = self.__holder(name)
        if is_mapping(owner.__class__):
            owner[last] = value
        elif last.isdecimal():
            owner[int(last)] = value
        else:
            setattr(owner, last, value)

    def __delattr__(self, name: str) -> None:
        owner, last = self.__holder(name)
        if not isinstance(owner, Mapping):
            delattr(owner, last)
        elif owner.pop(last, _NOTHING) is _NOTHING:  # type: ignore[attr-defined]
            raise AttributeError(f"there is no {last}")

    # a dict's hooks may go on using it as one

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise KeyError(name) from error

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and hasattr(self, name)

    def __repr__(self) -> str:
        return f"Mapped({self.__target!r})"

    def __where(self, name: str) -> str:
        return where(self.__target, ".".join(self.__paths.get(name, (name,))))


def _within(value: Any, mapping: Mapping[str, str], structures: Tree) -> Any:
    """The view of a structure, or of each of several; one that needs none is itself."""
    if isinstance(value, list | tuple):
        return [_within(each, mapping, structures) for each in value]
    return Mapped(value, mapping, structures) if mapping or _has_dicts(value, structures) else value


def _has_dicts(value: Any, structures: Tree) -> bool:
    """It is a dict, or one of its structures is."""
    if isinstance(value, Mapping):
        return True
    members = ((getattr(value, name, None), tree) for name, tree in structures.items())
    return any(
        _has_dicts(each, tree)
        for member, tree in members
        for each in (member if isinstance(member, list | tuple) else (member,))
    )


def _step(value: Any, step: str) -> Any:
    """One step of a path: a member, an element or an attribute; AttributeError if there is none."""
    if is_mapping(value.__class__):
        if step in value:
            return value[step]
    elif step.isdecimal():
        if int(step) < len(value):
            return value[int(step)]
        raise AttributeError(f"{type(value).__name__} of {len(value)} elements has no element {step}")
    return getattr(value, step)


@lru_cache
def is_mapping(kind: type) -> bool:
    """What `isinstance` would say, at a fraction of its price."""
    return issubclass(kind, Mapping)


def view(description: VMStateDescription, obj: Any, mapping: Mapping[str, str] | None) -> Any:
    """`obj` itself, or the view of it through which engine and hooks find everything under the expected names.

    Args:
        description: what of it travels.
        obj: the emulator's object; one with dicts in it gets a view in any case, for hooks read attributes.
        mapping: where the values are that have another name.

    Raises:
        ValueError: a name in the mapping that the description does not know, with the nearest one that it does.
    """
    structures = _structures(description)
    if mapping is None:
        # a tuple with names is one object
        return obj if isinstance(obj, list | tuple) else _within(obj, {}, structures)
    if not isinstance(mapping, Mapping):
        raise ValueError(f"mapping: {mapping!r} is no dict from names to paths, e.g. {{'regs_lo': 'file.low'}}")  # noqa: TRY004
    known = set(names_of(description))
    for name, path in mapping.items():
        if not isinstance(path, str) or not all(path.split(".")):
            raise ValueError(f"mapping: the place of {name!r} must be a path such as 'file.low', not {path!r}")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"mapping: {description.name} has no {name!r}; {hint}")
    return Mapped(obj, mapping, structures)


def target_of(obj: Any) -> Any:
    """The emulator's own object behind a view, or `obj` itself."""
    return obj._Mapped__target if isinstance(obj, Mapped) else obj  # noqa: SLF001  a public name could be a field's


def holder(obj: Any, name: str) -> tuple[Any, str]:
    """The object or dict that holds `name` of `obj`, and its name there."""
    if isinstance(obj, Mapped):
        owner, member = obj._Mapped__holder(name)  # noqa: SLF001
        return owner, str(member)
    return obj, name


def where(obj: Any, name: str) -> str:
    """In words: the place of `name` of `obj`."""
    if isinstance(obj, Mapped):
        return str(obj._Mapped__where(name))  # noqa: SLF001  a public name could be a field's
    return f"{name} of {'the dict' if isinstance(obj, Mapping) else type(obj).__name__}"


def names_of(description: VMStateDescription) -> Iterator[str]:
    """What the object may be asked for: fields, those of inner structures behind a dot, and what hooks read."""
    yield from (name.partition(".")[0] for name in description.reads)
    yield from (*description.may_read, "before_save", "after_load")
    for row in description.fields:
        first = row.path[0]
        if first:
            yield first
        if row.structure is not None:
            yield from (f"{first}.{name}" if first else name for name in names_of(row.structure))
    for part in description.subsections:
        yield from names_of(part)


def _structures(description: VMStateDescription) -> Tree:
    made: Tree = {}
    for part in (description, *description.subsections):
        for row in part.fields:
            if row.structure is not None:
                inner = _structures(row.structure)
                made |= {row.path[0]: inner} if row.path[0] else inner
    return made
