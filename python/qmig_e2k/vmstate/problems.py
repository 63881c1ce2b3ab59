"""What will keep an object from being saved or loaded, found by looking at it: no hook but the tests is called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from qmig_e2k.vmstate.mapped import holder, names_of, target_of, where
from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmig_e2k.vmstate.description import VMStateDescription


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as a description needs it.

    Attributes:
        path: the field, seen from the description.
        text: what is wrong and what to do.
        stops: no stream will pass; else it is only worth knowing.
        absent: the attribute that is missing, which a hook could still make; empty: none is.
    """

    path: str
    text: str
    stops: bool = True
    absent: str = ""

    @classmethod
    def missing(cls, path: str, obj: Any, name: str) -> Problem:
        """There is no attribute `name`."""
        text = f"there is no {where(obj, name)}; add it, or name its place by mapping= at registration"
        return cls(path, text, absent=name)

    def within(self, part: str) -> Problem:
        """The same, seen from the description that holds `part`."""
        path = f"{part}{self.path if self.path.startswith('[') else '.' + self.path if self.path else ''}"
        return replace(self, path=path)


def problems(description: VMStateDescription, obj: Any) -> Iterator[Problem]:
    """Everything about `obj` that does not fit `description`, in its order."""
    target = target_of(obj)
    found = list(_problems(description, obj))
    if isinstance(target, type) and any(problem.stops for problem in found):
        name = target.__name__
        yield Problem("", f"{name} is a class and lacks what its objects may have; register one of them: {name}()")
        return
    spare = _members(target) - set(names_of(description)) if any(problem.absent for problem in found) else set()
    made_by_hook = description.pre_save is not None and not description.pre_save.__module__.startswith("qmig_e2k.")
    for problem in found:
        near = get_close_matches(problem.absent, spare, 1, 0.75) if problem.absent else []
        text = f"{problem.text}; did you mean {near[0]!r}, which it has?" if near else problem.text
        if problem.absent and (made_by_hook or hasattr(obj, "before_save")):
            yield replace(problem, text=f"{text} (unless it is made just before saving)", stops=False)
        else:
            yield replace(problem, text=text)
    shipped = any(hook is not None and hook.__module__.startswith("qmig_e2k.") for hook in _hooks(description))
    yield from _told("", obj, lambda: _own_hooks(obj)) if shipped else ()
    yield from _shared(description, obj) if target is not obj else ()


def unsettable(obj: Any, name: str) -> str | None:
    """Why a stream could not set `name` of `obj`; None: it could, as far as can be seen."""
    owner, member = holder(obj, name)
    kind = type(owner)
    rule = inspect.getattr_static(kind, member, None)
    if isinstance(rule, property) and rule.fset is None:
        return "a property without a setter"
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    return f"held by a {kind.__name__}, which cannot be changed" if frozen or isinstance(owner, tuple) else None


def _shared(description: VMStateDescription, obj: Any) -> Iterator[Problem]:
    """Fields that a mapping has put at one place: the last of them that a stream brings would stay."""
    seen: dict[tuple[int, str], str] = {}
    for part in (description, *description.subsections):
        for row in part.fields:
            name = row.path[0]
            try:
                owner, member = holder(obj, name)
            except Exception:  # noqa: BLE001, S112 - told as missing
                continue
            first = seen.setdefault((id(owner), member), name)
            if name and first != name:
                yield Problem(name, f"{where(obj, name)} is the place of {first}, too", stops=False)


def _hooks(description: VMStateDescription) -> tuple[Any, ...]:
    return description.pre_save, description.post_load


def _own_hooks(obj: Any) -> Iterator[Problem]:
    """The emulator's two hooks, which the shipped descriptions call."""
    for name, arguments in (("before_save", ()), ("after_load", (1,))):
        hook = getattr(obj, name, None)
        if hook is None:
            continue
        if not callable(hook):
            yield Problem(name, f"{where(obj, name)} is {hook!r}; it must be a method")
            continue
        try:
            inspect.signature(hook).bind(*arguments)
        except TypeError:
            wanted = f"{name}({'version' if arguments else ''})"
            yield Problem(name, f"{where(obj, name)} is called as {wanted}, but takes {inspect.signature(hook)}")
        except ValueError:
            pass  # something built in, which does not tell


def _members(obj: Any) -> set[str]:
    try:
        names = obj if isinstance(obj, Mapping) else dir(obj)
    except Exception:  # noqa: BLE001 - a __dir__ of anybody's; only a hint is lost
        return set()
    return {name for name in names if isinstance(name, str) and not name.startswith("_")}


def _fact(obj: Any, name: str) -> Iterator[Problem]:
    """What hooks read is there: an attribute, or an attribute of it."""
    first, *rest = name.split(".")
    try:
        value = getattr(obj, first)
    except AttributeError:
        yield Problem.missing(first, obj, first)
        return
    for step in rest:
        if not hasattr(value, step):
            yield Problem(first, f"{where(obj, first)} is {value!r}, which has no {step}")


def _problems(description: VMStateDescription, obj: Any) -> Iterator[Problem]:
    for name in description.reads:
        yield from _told(name, obj, lambda name=name: _fact(obj, name))  # type: ignore[misc]
    for row in description.fields:
        try:
            there = row.present(obj, description.version_id)
        except Exception as error:  # noqa: BLE001 - anybody's test
            yield Problem(row.name, f"its test cannot be asked: {Refusal.of(error).message}")
            continue
        if there:
            yield from _told(row.name, obj, lambda row=row: row.problems(obj), ".".join(row.path))  # type: ignore[misc]
    for part in description.subsections:
        found = [problem.within(part.name) for problem in _problems(part, obj)]
        try:
            if part.needed is not None and not part.needed(obj):
                # it stays at home: what is not there may never be, but what is there should fit
                later = f" (it matters as soon as {part.name} travels)"
                yield from (replace(p, text=p.text + later, stops=False) for p in found if p.stops and not p.absent)
                continue
        except Exception as error:  # noqa: BLE001 - anybody's test
            if not found:
                found.append(Problem(part.name, f"needed cannot be asked: {Refusal.of(error).message}"))
        yield from found


def _told(path: str, obj: Any, look: Callable[[], Iterator[Problem]], place: str = "") -> Iterator[Problem]:
    """What `look` finds, or that it could not look: a property of the emulator's may raise anything."""
    try:
        found = list(look())
    except Exception as error:  # noqa: BLE001 - anybody's property
        found = [Problem(path, f"{where(obj, place or path)} cannot be read: {Refusal.of(error).message}")]
    yield from found
