"""`VMStateDescription`: the table that says what of a device travels, and `VMStateField`, the face of one row of it.

A description is data: it holds no device state and may be shared by any number of machines and threads. The engine
(`engine.py`) walks it; the rows themselves are in `kinds.py`, `arrays.py` and `structs.py`, made by `fields.py`.
Rules: spec/stream.md 3.2 to 3.7.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qmig_e2k.vmstate.json import ConstantObject, JsonObject
from qmig_e2k.vmstate.problems import Problem
from qmig_e2k.vmstate.runs import Row, Run, Shape, steps

if TYPE_CHECKING:
    from qmig_e2k._core import Reader
    from qmig_e2k.vmstate.engine import Loader, Saver

Format = Literal["2.9", "7.2", "10.0"]
Exists = Callable[[Any, int], bool]

MISSING: Any = object()


def peek_attribute(obj: Any, name: str) -> Any:
    """Value of `name` in a dict or on an object; MISSING if there is none."""
    if isinstance(obj, Mapping):
        return obj.get(name, MISSING)
    return getattr(obj, name, MISSING)


class VMStateField(ABC):
    """One row of a description.

    Attributes:
        name: name in the JSON description and in error paths.
        version: first stream version that has the field (ignored when `exists` is given).
        exists: test `(obj, version) -> bool`; the only criterion when present.
        must_exist: a failing test refuses the stream instead of leaving the field out.
        path: attributes or dict keys that lead to the value; the last of them is `attribute`.
        type_name: `type` member of the JSON description.
    """

    __slots__ = ("_owners", "attribute", "exists", "must_exist", "name", "path", "version")
    type_name: str = "unknown"
    valueless = False
    """The object holds no value for it."""

    def __init_subclass__(cls) -> None:
        # a kind of field that moves its bytes in a way of its own is not joined with its neighbours
        if {"save", "load"} & vars(cls).keys() and "shape" not in vars(cls):
            cls.shape = VMStateField.shape  # type: ignore[method-assign]

    def __init__(
        self,
        name: str,
        *,
        version: int = 0,
        exists: Exists | None = None,
        must_exist: bool = False,
        attr: str | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.exists = exists
        self.must_exist = must_exist
        # `.` is the object itself: a base class described by a nested description of its own
        path = (attr or name).split(".") if attr != "." else [""]
        self.path = tuple(path)
        self._owners, self.attribute = self.path[:-1], path[-1]

    # -- where the value lives

    def owner(self, obj: Any) -> Any:
        """The object that holds the value: `obj`, or what the dotted attribute leads to."""
        for name in self._owners:
            obj = obj[name] if isinstance(obj, Mapping) else getattr(obj, name)
        return obj

    def get(self, obj: Any) -> Any:
        """The value; AttributeError or KeyError if there is none."""
        owner = self.owner(obj)
        if not self.attribute:
            return owner
        return owner[self.attribute] if isinstance(owner, Mapping) else getattr(owner, self.attribute)

    def peek(self, obj: Any) -> Any:
        """The value, or MISSING."""
        return peek_attribute(self.owner(obj), self.attribute) if self.attribute else obj

    def find(self, obj: Any) -> Any:
        """The value, or MISSING also where the way to it is."""
        try:
            return self.peek(obj)
        except (AttributeError, KeyError):
            return MISSING

    # -- what the engine calls

    def present(self, obj: Any, version: int) -> bool:
        """True if a stream of `version` has the field."""
        return self.exists(obj, version) if self.exists is not None else self.version <= version

    def shape(self, label: str) -> Shape | None:  # noqa: ARG002 - for those that have one
        """How the field looks, named `label`, if it always takes the same bytes and has no test; None: that varies.

        A class that overrides `save` or `load` has none unless it says so anew.
        """
        return None

    @property
    def direct(self) -> bool:
        """It has no test, and the value is a member of the object itself."""
        return self.exists is None and bool(self.attribute) and not self._owners

    @property
    def compressible(self) -> bool:
        """One JSON entry may stand for all elements of an array of this field."""
        return self.exists is None

    @property
    def structure(self) -> VMStateDescription | None:
        """What describes the object, or each of the objects, in the field that stay the same when a stream comes."""
        return None

    def problems(self, obj: Any) -> Iterator[Problem]:
        """What will keep the field of `obj` from being saved or loaded, as far as can be seen beforehand."""
        if not self.valueless and self.find(obj) is MISSING:
            yield Problem.missing(self.name, obj, ".".join(self.path))

    @abstractmethod
    def save(self, saver: Saver, obj: Any, label: str, out: list[JsonObject] | None) -> None:
        """Write the field of `obj`; append its JSON entries, named `label`, to `out` unless that is None."""

    @abstractmethod
    def load(self, loader: Loader, obj: Any) -> None:
        """Read the field into `obj`."""


@dataclass(frozen=True, eq=False, slots=True)
class VMStateDescription:
    """What of a device travels, and in which versions.

    Hooks return nothing; they refuse by raising (any exception; its text reaches the user with device, path and
    offset). For the sake of ported code a hook may return 0, but any other result is a refusal too.

    Attributes:
        name: section name suffix, or the full name of a subsection (begins with the owner's name).
        version_id: version written, and the highest accepted.
        fields: rows in stream order.
        minimum_version_id: lowest version that `fields` can read; when not given, `version_id`.
        subsections: descriptions of optional parts, in stream order.
        needed: whether the section or subsection is written; never asked on load. None: always.
        pre_load: called before the first field is read.
        post_load: called with the stream version when all is read; checks and recomputes.
        pre_save: called before `needed` of the subsections and before the first field is written.
        post_save: called after everything was written, or writing failed.
        load_state_old: reads the whole payload of versions from `minimum_version_id_old` up to `minimum_version_id`.
        unmigratable: a machine with this device can be neither saved nor loaded.
        priority: higher is saved first (spec/stream.md 3.10).
        reads: attributes that hooks and tests read besides the fields, or attributes of theirs behind a dot
            (`model.isa`); what is missing is told beforehand.
        may_read: further ones, which need not be there.

    What the engine reads, made from the above:

    Attributes:
        plan: the fields, with the names that tell repeated ones apart.
        steps: the same for streams of `version_id`, with neighbours joined to runs.
        constant: the JSON description, if it is the same for every object.
        compressible: one JSON entry may stand for all elements of an array of this.
        wire_name: `name` in bytes.
        announcement: what precedes the payload where this is a subsection.
        parts: subsections by name on the wire.
    """

    name: str
    version_id: int = 1
    fields: Sequence[VMStateField] = ()
    minimum_version_id: int = -1
    subsections: Sequence[VMStateDescription] = ()
    needed: Callable[[Any], bool] | None = None
    pre_load: Callable[[Any], object] | None = None
    post_load: Callable[[Any, int], object] | None = None
    pre_save: Callable[[Any], object] | None = None
    post_save: Callable[[Any], object] | None = None
    load_state_old: Callable[[Any, Reader, int], object] | None = None
    minimum_version_id_old: int = -1
    unmigratable: bool = False
    priority: int = 0
    reads: Sequence[str] = ()
    may_read: Sequence[str] = ()
    plan: tuple[Row, ...] = field(init=False, repr=False)
    steps: tuple[Run | Row, ...] = field(init=False, repr=False)
    constant: ConstantObject | None = field(init=False, repr=False)
    compressible: bool = field(init=False, repr=False)
    wire_name: bytes = field(init=False, repr=False)
    announcement: bytes = field(init=False, repr=False)
    parts: dict[bytes, VMStateDescription] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # frozen only from here on

        wire_name = self.name.encode()
        if not 1 <= len(wire_name) <= 255:
            raise ValueError(f"description name {self.name!r} is {len(wire_name)} bytes long, 1 to 255 are possible")
        put("wire_name", wire_name)
        self._check_types()
        put("fields", tuple(self.fields))
        put("subsections", tuple(self.subsections))
        put("reads", tuple(self.reads))
        put("may_read", tuple(self.may_read))
        if self.minimum_version_id < 0:
            put("minimum_version_id", self.version_id)
        if not 0 <= self.minimum_version_id <= self.version_id < 1 << 31:
            raise ValueError(
                f"{self.name}: versions must rise: minimum {self.minimum_version_id}, current {self.version_id}"
            )
        if self.load_state_old is not None and not 0 <= self.minimum_version_id_old <= self.minimum_version_id:
            raise ValueError(f"{self.name}: load_state_old needs minimum_version_id_old below minimum_version_id")
        names = [sub.name for sub in self.subsections]
        for name in names:
            if not name.startswith(self.name) or name == self.name:
                raise ValueError(f"subsection {name!r} must begin with its owner's name, e.g. {self.name}/part")
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: two subsections have the same name")
        count = Counter(row.name for row in self.fields)
        seen: Counter[str] = Counter()
        plan = []
        for row in self.fields:
            label = row.name
            if count[label] > 1:
                label = f"{row.name}[{seen[row.name]}]"
                seen[row.name] += 1
            plan.append((row, label))
        put("plan", tuple(plan))
        put("steps", steps(plan, self.version_id))
        put("constant", self._constant())
        put("announcement", b"\x05" + bytes([len(wire_name)]) + wire_name + self.version_id.to_bytes(4, "big"))
        put("parts", {sub.wire_name: sub for sub in self.subsections})
        put("compressible", not self.subsections and all(row.compressible for row in self.fields))

    @property
    def oldest_version_id(self) -> int:
        """The oldest version that can be loaded."""
        return self.minimum_version_id if self.load_state_old is None else self.minimum_version_id_old

    def _check_types(self) -> None:
        """Refuse by name what would only fail later, and then say little."""
        for name in ("version_id", "minimum_version_id", "minimum_version_id_old", "priority"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{self.name}: {name} is {getattr(self, name)!r}, no whole number")
        for name in ("needed", "pre_load", "post_load", "pre_save", "post_save", "load_state_old"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise TypeError(f"{self.name}: {name} is {hook!r}, no function")
        for name, kind, example in (
            ("fields", VMStateField, 'uint32("level")'),
            ("subsections", VMStateDescription, "VMStateDescription(...)"),
        ):
            rows = getattr(self, name)
            if not isinstance(rows, Sequence):
                raise TypeError(f"{self.name}: {name} is {rows!r}, no list of such as {example}")
            for at, row in enumerate(rows):
                if not isinstance(row, kind):
                    raise TypeError(f"{self.name}: {name}[{at}] is {row!r}, nothing such as {example}")

    def _constant(self) -> ConstantObject | None:
        """The JSON description of an object at `version_id`, if it is the same for all."""
        if self.subsections or len(self.steps) != 1 or not isinstance(self.steps[0], Run):
            return None
        return ConstantObject({"vmsd_name": self.name, "version": self.version_id, "fields": self.steps[0].entries})
