"""The engine: walks a description and moves bytes between an object and a stream, describing itself in the same pass.

`save` and `load` are for whoever owns the section around the payload (savevm). Fields call back into `Saver` and
`Loader` for nested descriptions. Rules: spec/stream.md 3.3 (algorithm), 3.6 (subsections), 2.6 (JSON), 14.2 (limits).

A load that fails gives every field that it had changed its old value back; what hooks did is not undone.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from qmig_e2k._core import Reader
from qmig_e2k.errors import MigrationError
from qmig_e2k.vmstate.description import MISSING, Format, VMStateDescription, VMStateField
from qmig_e2k.vmstate.refusal import Place, Refusal, pass_on
from qmig_e2k.vmstate.runs import Row, Run

if TYPE_CHECKING:
    from qmig_e2k._core import Writer
    from qmig_e2k.vmstate.json import JsonObject

CHANNEL_KINDS = frozenset(["cancelled", "closed", "io", "timeout"])
"""Failures of the channel, which say nothing about the device that was being read."""
MAX_NESTING = 64
"""Descriptions inside descriptions: they are static and shallow, this only stops one that contains itself."""


def save(
    description: VMStateDescription,
    obj: Any,
    writer: Writer,
    *,
    format: Format = "7.2",  # noqa: A002 - the contract's word
    version: int | None = None,
    describe: bool = True,
    path: str = "",
) -> JsonObject:
    """Write the payload of `obj` (no section header, no footer).

    Args:
        description: what to write.
        obj: object or dict that holds the values.
        writer: where the bytes go.
        format: QEMU generation whose rules apply (field versions, JSON of arrays).
        version: version to write, if not `version_id`.
        describe: build the JSON description too (else the result is empty).
        path: prefix for errors, `device/instance`.

    Returns:
        Members `vmsd_name`, `version`, `fields` and, if any was written, `subsections`.

    Raises:
        MigrationError: `device-state`: a value that does not fit, a hook that refuses, or an unmigratable device.
    """
    try:
        made = Saver(writer, format).body(
            description, obj, description.version_id if version is None else version, describe=describe
        )
    except Refusal as refusal:
        raise refusal.migration_error(path or description.name) from refusal.__cause__
    return made if made is not None else {}


def load(description: VMStateDescription, obj: Any, reader: Reader, version: int, *, path: str = "") -> None:
    """Read a payload of `version` into `obj`.

    Args:
        description: what to expect.
        obj: object or dict whose values are set; arrays are filled in place.
        reader: positioned at the first byte of the payload; afterwards at the first byte behind it.
        version: version from the section header.
        path: prefix for errors, `device/instance`.

    Raises:
        StreamError: refused, with offset and path; the fields of `obj` have their old values again.
        MigrationError: the channel failed or was cancelled.
    """
    loader = Loader(reader)
    try:
        loader.body(description, obj, version)
    except Refusal as refusal:
        loader.undo()
        cause = refusal.__cause__
        if isinstance(cause, MigrationError) and refusal.kind in CHANNEL_KINDS:
            raise cause from None
        raise refusal.stream_error(path or description.name) from cause
    except BaseException:
        loader.undo()
        raise


def check_hook(result: object, hook: str) -> None:
    """Refuse what a hook returned unless it is nothing (or 0, from ported code)."""
    if result is not None and (result is True or result != 0):
        raise Refusal(f"{hook} returned {result!r}")


class Saver:
    """One save: the writer and the rules of the chosen generation."""

    __slots__ = ("depth", "format", "writer")

    def __init__(self, writer: Writer, format: Format = "7.2") -> None:  # noqa: A002
        self.writer = writer
        self.format = format
        self.depth = 0

    def body(self, description: VMStateDescription, obj: Any, version: int, *, describe: bool) -> dict[str, Any] | None:
        """Write one description: hooks, fields, subsections."""
        if description.unmigratable:
            raise Refusal(f"{description.name} cannot be migrated")
        if self.depth >= MAX_NESTING:
            raise Refusal(f"{description.name}: nested more than {MAX_NESTING} deep")
        self.depth += 1
        if description.pre_save is not None:
            with Place():
                check_hook(description.pre_save(obj), "pre_save")
        try:
            made = self._parts(description, obj, version, describe=describe)
        except BaseException:
            if description.post_save is not None:
                # the first failure is the one to tell
                _quietly(description.post_save, obj)
            raise
        self.depth -= 1
        if description.post_save is not None:
            with Place():
                check_hook(description.post_save(obj), "post_save")
        return made

    def _parts(
        self, description: VMStateDescription, obj: Any, version: int, *, describe: bool
    ) -> dict[str, Any] | None:
        out: list[JsonObject] = []
        constant = description.constant
        if version != description.version_id:
            constant = None
            self._rows(description.plan, obj, version, out if describe else None)
        else:
            for step in description.steps:
                if not isinstance(step, Run):
                    self._rows((step,), obj, version, out if describe else None)
                    continue
                if not step.save(self, obj):
                    self._rows(step.rows, obj, version, None)
                if describe and constant is None:
                    out += step.entries
        subsections = self._subsections(description, obj, describe=describe) if description.subsections else []
        if not describe:
            return None
        if constant is not None:
            return constant
        made: dict[str, Any] = {"vmsd_name": description.name, "version": version, "fields": out}
        if subsections:
            made["subsections"] = subsections
        return made

    def _rows(self, rows: Sequence[Row], obj: Any, version: int, out: list[JsonObject] | None) -> None:
        """Write fields one by one."""
        # 2.9 writes fields of any version, only a test can leave one out
        all_versions = self.format == "2.9"
        with Place() as place:
            for field, label in rows:
                place.part = field.name
                if field.exists is None:
                    if field.version > version and not all_versions:
                        continue
                elif not field.exists(obj, version):
                    if field.must_exist:
                        raise Refusal("does not hold; the device is in a state it says is impossible")
                    continue
                field.save(self, obj, label, out)

    def _subsections(self, description: VMStateDescription, obj: Any, *, describe: bool) -> list[JsonObject]:
        made: list[JsonObject] = []
        with Place() as place:
            for sub in description.subsections:
                place.part = sub.name
                if sub.needed is not None and not sub.needed(obj):
                    continue
                self.writer.write(sub.announcement)
                body = self.body(sub, obj, sub.version_id, describe=describe)
                if body is not None:
                    made.append(body)
        return made


class Loader:
    """One load: the reader, and what is needed to take everything back.

    Attributes:
        reader: positioned at what comes next.
        undo_log: functions with their arguments, to be called from last to first.
    """

    __slots__ = ("_open", "_seen_ahead", "reader", "undo_log")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._open: list[VMStateDescription] = []
        self._seen_ahead = -1, b""
        self.undo_log: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    # -- values

    def put(self, field: VMStateField, obj: Any, value: Any, old: Any) -> None:
        """Set the field's value; `old` is what it was (MISSING: nothing)."""
        if value is old:
            return
        owner, name = field.owner(obj), field.attribute
        if isinstance(owner, MutableMapping):
            owner[name] = value
            self.undo_log.append(
                (owner.__setitem__, (name, old)) if old is not MISSING else (owner.__delitem__, (name,))
            )
        else:
            setattr(owner, name, value)
            self.undo_log.append((setattr, (owner, name, old)) if old is not MISSING else (delattr, (owner, name)))

    def on_undo(self, function: Callable[..., object], *arguments: Any) -> None:
        """What restores a container that is about to be changed in place."""
        self.undo_log.append((function, arguments))

    def undo(self) -> None:
        """Give every changed value back."""
        while self.undo_log:
            function, arguments = self.undo_log.pop()
            function(*arguments)

    # -- descriptions

    def body(self, description: VMStateDescription, obj: Any, version: int) -> None:
        """Read one description at stream version `version`: hooks, fields, subsections."""
        start = self.reader.offset
        if description.unmigratable:
            raise Refusal(f"{description.name} cannot be migrated", start)
        if version > description.version_id:
            most = description.version_id
            raise Refusal(f"version {version} in the stream, at most {most} is known here", start, "bad-version")
        if len(self._open) >= MAX_NESTING:
            raise Refusal(f"nested more than {MAX_NESTING} deep", start)
        if version < description.minimum_version_id:
            self._load_old(description, obj, version, start)
            return
        self._open.append(description)
        if description.pre_load is not None:
            self._hook("pre_load", start, description.pre_load, obj)
        if version == description.version_id:
            try:
                for step in description.steps:
                    if isinstance(step, Run):
                        step.load(self, obj)
                    else:
                        self._rows((step,), obj, version)
            except Exception as error:  # noqa: BLE001 - passed on
                pass_on(error)
        else:
            self._rows(description.plan, obj, version)
        self._subsections(description, obj)
        if description.post_load is not None:
            self._hook("post_load", start, description.post_load, obj, version)
        self._open.pop()

    def _rows(self, rows: Sequence[Row], obj: Any, version: int) -> None:
        """Read fields one by one."""
        reader = self.reader
        with Place() as place:
            for field, _ in rows:
                place.part, place.offset = field.name, reader.offset
                if field.exists is None:
                    if field.version > version:
                        continue
                elif not field.exists(obj, version):
                    if field.must_exist:
                        raise Refusal("does not hold for what was read")
                    continue
                field.load(self, obj)

    def replay(self, rows: Sequence[Row], obj: Any, raw: bytes, start: int) -> None:
        """Read fields that are always there one by one from `raw`, which is what the stream has from `start` on."""
        reader = self.reader
        self.reader = Reader(raw, start)
        try:
            with Place() as place:
                for field, _ in rows:
                    place.part, place.offset = field.name, self.reader.offset
                    field.load(self, obj)
        finally:
            self.reader = reader

    def _load_old(self, description: VMStateDescription, obj: Any, version: int, start: int) -> None:
        old, oldest = description.load_state_old, description.oldest_version_id
        if old is None or version < oldest:
            raise Refusal(f"version {version} in the stream, at least {oldest} is needed here", start, "bad-version")
        self._hook("load_state_old", start, old, obj, self.reader, version)

    def _hook(self, name: str, start: int, hook: Callable[..., object], *arguments: Any) -> None:
        try:
            check_hook(hook(*arguments), name)
        except Exception as error:  # noqa: BLE001 - passed on
            pass_on(error, None, start)

    def _subsections(self, owner: VMStateDescription, obj: Any) -> None:
        """Read the subsections that the coming bytes announce for `owner` (spec/stream.md 3.6)."""
        reader = self.reader
        seen: set[bytes] = set()
        while (name := self._announced(len(owner.wire_name) + 1)) is not None and name.startswith(owner.wire_name):
            start = reader.offset
            sub = owner.parts.get(name)
            if sub is None:
                if any(name in outer.parts for outer in self._open):
                    # `cpu/aau_prefetch` behind `cpu/aau`: it only looks like a part of the latter
                    return
                raise Refusal(f"subsection {name.decode('utf-8', 'backslashreplace')} unknown", start)
            if name in seen:
                raise Refusal(f"subsection {sub.name} comes twice", start)
            seen.add(name)
            try:
                reader.skip(2 + len(name))
                self.body(sub, obj, reader.u32())
            except Exception as error:  # noqa: BLE001 - passed on
                pass_on(error, sub.name, start)

    def _announced(self, shortest: int) -> bytes | None:
        """Name of the subsection that the coming bytes announce, if it has `shortest` bytes at least."""
        reader = self.reader
        at, name = self._seen_ahead
        if at == reader.offset:
            # a description that has ended has looked at it before
            return name if len(name) >= shortest else None
        if reader.peek(1) != b"\x05":
            return None
        head = reader.peek(2)
        if len(head) < 2 or head[1] < shortest:
            return None
        length = 2 + head[1]
        head = reader.peek(length)
        if len(head) < length:
            return None
        self._seen_ahead = reader.offset, head[2:]
        return head[2:]


def _quietly(hook: Callable[[Any], object], obj: Any) -> None:
    with suppress(Exception):
        hook(obj)
