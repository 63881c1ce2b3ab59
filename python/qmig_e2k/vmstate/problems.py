"""What will keep an object from being saved or loaded, found by looking at it: no hook but the tests is called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qmig_e2k.vmstate.mapped import where
from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.vmstate.description import VMStateDescription


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as a description needs it.

    Attributes:
        path: the field, seen from the description.
        text: what is wrong and what to do.
        stops: no stream will pass; else it is only worth knowing.
        absent: an attribute that is missing, which a hook could still make.
    """

    path: str
    text: str
    stops: bool = True
    absent: bool = False

    @classmethod
    def missing(cls, path: str, obj: Any, name: str) -> Problem:
        """There is no attribute `name`."""
        text = f"there is no {where(obj, name)}; add it, or name its place by mapping= at registration"
        return cls(path, text, absent=True)

    def within(self, part: str) -> Problem:
        """The same, seen from the description that holds `part`."""
        path = f"{part}{self.path if self.path.startswith('[') else '.' + self.path if self.path else ''}"
        return replace(self, path=path)


def problems(description: VMStateDescription, obj: Any) -> Iterator[Problem]:
    """Everything about `obj` that does not fit `description`, in its order."""
    made_by_hook = description.pre_save is not None and not description.pre_save.__module__.startswith("qmig_e2k.")
    for problem in _problems(description, obj):
        if problem.absent and (made_by_hook or hasattr(obj, "before_save")):
            yield replace(problem, text=f"{problem.text} (unless it is made just before saving)", stops=False)
        else:
            yield problem


def _problems(description: VMStateDescription, obj: Any) -> Iterator[Problem]:
    for name in description.reads:
        if not hasattr(obj, name):
            yield Problem.missing(name, obj, name)
    for row in description.fields:
        try:
            there = row.present(obj, description.version_id)
        except Exception as error:  # noqa: BLE001 - anybody's test
            yield Problem(row.name, f"its test cannot be asked: {Refusal.of(error).message}")
            continue
        if there:
            yield from row.problems(obj)
    for part in description.subsections:
        found = [problem.within(part.name) for problem in _problems(part, obj)]
        try:
            if part.needed is not None and not part.needed(obj):
                continue  # it stays at home
        except Exception as error:  # noqa: BLE001 - anybody's test
            if not found:
                found.append(Problem(part.name, f"needed cannot be asked: {Refusal.of(error).message}"))
        yield from found
