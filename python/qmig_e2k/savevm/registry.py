"""The registry: all handlers of one machine, their names and their order.

It gives every handler its section id, idstr and instance id, and finds the handler of a section that arrives
(spec/stream.md 2.2, 3.8 to 3.10).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qmig_e2k.errors import migration_error, stream_error
from qmig_e2k.savevm.handlers import Handler, RamHandler, SaveVmHandler, VmStateHandler
from qmig_e2k.savevm.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from qmig_e2k.vmstate import VMStateDescription


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One registered handler.

    Attributes:
        idstr: name on the wire, 1 to 255 bytes of UTF-8.
        instance_id: number among the handlers of that idstr.
        section_id: number that our streams give it.
        handler: what saves and loads it.
        priority: higher is saved first; equal ones in the order of registration.
        alias_id: second instance id that it accepts; None: none.
        compat: (name, instance id) under which streams from before bus paths know it.
    """

    idstr: str
    instance_id: int
    section_id: int
    handler: Handler
    priority: int = 0
    alias_id: int | None = None
    compat: tuple[str, int] | None = None

    @property
    def path(self) -> str:
        """`idstr/instance`, as it stands in errors."""
        return f"{self.idstr}/{self.instance_id}"

    @property
    def optional(self) -> bool:
        """A stream may lack its section: the description says when it is needed, or it is live."""
        return self.handler.live or (
            isinstance(self.handler, VmStateHandler) and self.handler.description.needed is not None
        )

    def matches(self, idstr: str, instance_id: int) -> bool:
        """Whether a section of this name is for this handler."""
        if idstr == self.idstr:
            return instance_id in (self.instance_id, self.alias_id)
        return self.compat is not None and idstr == self.compat[0] and instance_id in (self.compat[1], self.alias_id)


class LoadRules(Protocol):
    """What a machine demands of a stream beyond each section by itself. Both refuse by raising."""

    def before_section(self, entry: Entry, loaded: Iterable[Entry]) -> None:
        """A section for `entry` arrives; `loaded` have arrived already, in no order."""

    def after_sections(self, entries: Iterable[Entry]) -> None:
        """All sections have arrived and the machine does not run yet; may be called more than once.

        A refusal's attribute `field`, if it has one, is the place at fault: `device/instance/field`.
        """


class Registry:
    """All handlers of one machine.

    Iteration gives the entries in the order in which they are saved.

    Attributes:
        profile: rules to write by.
        rules: the machine's own demands of a stream; None: none.
    """

    def __init__(self, profile: Profile | None = None) -> None:
        """An empty registry whose section ids are those of `profile`'s format."""
        self.profile = profile or Profile()
        self.rules: LoadRules | None = None
        self._entries: list[Entry] = []
        self._next_id = self.profile.facts.first_section_id

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(
        self,
        idstr: str,
        handler: Handler,
        *,
        instance_id: int | None = None,
        alias_id: int | None = None,
        bus_path: str | None = None,
        priority: int | None = None,
        section_id: int | None = None,
    ) -> Entry:
        """Add a handler.

        Args:
            idstr: its name (that of the description, if it has one).
            handler: what saves and loads it.
            instance_id: number among the handlers of that name; None: the next one.
            alias_id: second number to accept on load; None: 0 for live and old-style handlers, none for descriptions.
            bus_path: path of the device on its bus; the idstr becomes `bus_path/idstr`, the bare name stays known.
            priority: save order, higher first; None: the description's.
            section_id: number in our streams; None: the next one.

        Raises:
            MigrationError: `invalid-argument`: the name and number are taken, or the name is too long.
        """
        compat = None
        if bus_path:
            compat = (idstr, self._next_compat(idstr) if instance_id is None else instance_id)
            idstr, instance_id = f"{bus_path}/{idstr}", None
        size = len(idstr.encode())
        if not 1 <= size <= 255:
            raise migration_error("invalid-argument", f"section name {idstr!r} has {size} bytes, 1 to 255 are possible")
        if instance_id is None:
            instance_id = max((entry.instance_id for entry in self._entries if entry.idstr == idstr), default=-1) + 1
        if not 0 <= instance_id < 1 << 32:
            raise migration_error("invalid-argument", f"{idstr}: instance id {instance_id} does not fit in 32 bits")
        if any(entry.idstr == idstr and entry.instance_id == instance_id for entry in self._entries):
            raise migration_error(
                "invalid-argument", f"{idstr} {instance_id} is registered already; give it another instance_id"
            )
        if section_id is None:
            section_id = self._next_id
        if any(entry.section_id == section_id for entry in self._entries):
            raise migration_error("invalid-argument", f"section id {section_id} is taken")
        self._next_id = max(self._next_id, section_id + 1)
        if isinstance(handler, SaveVmHandler):
            alias_id = 0 if alias_id is None else alias_id
            if priority is None:
                priority = 0
        elif priority is None:
            priority = handler.description.priority
        entry = Entry(idstr, instance_id, section_id, handler, priority, alias_id, compat)
        # behind the last of the same or higher priority
        place = next((i for i, other in enumerate(self._entries) if other.priority < priority), len(self._entries))
        self._entries.insert(place, entry)
        return entry

    def register_description(
        self,
        description: VMStateDescription,
        obj: Any,
        *,
        instance_id: int | None = None,
        alias_id: int | None = None,
        bus_path: str | None = None,
    ) -> Entry:
        """Add a device with a description, named by it. Arguments and errors as for `register`."""
        handler = VmStateHandler(description, obj)
        return self.register(description.name, handler, instance_id=instance_id, alias_id=alias_id, bus_path=bus_path)

    def unregister(self, entry: Entry) -> None:
        """Remove a handler. Its section id is not given out again."""
        self._entries.remove(entry)

    def _next_compat(self, name: str) -> int:
        known = (entry.compat[1] for entry in self._entries if entry.compat is not None and entry.compat[0] == name)
        return max(known, default=-1) + 1

    @property
    def live(self) -> list[Entry]:
        """Entries with START, PART and END sections, RAM among them, in order."""
        return [entry for entry in self._entries if entry.handler.live]

    @property
    def ram(self) -> Entry | None:
        """The entry of RAM."""
        return next((entry for entry in self._entries if isinstance(entry.handler, RamHandler)), None)

    def unmigratable(self) -> list[str]:
        """Names of the devices that forbid saving and loading of the whole machine."""
        handlers = (entry.handler for entry in self._entries)
        return [h.description.name for h in handlers if isinstance(h, VmStateHandler) and h.description.unmigratable]

    def find(self, idstr: str, instance_id: int, version: int, *, offset: int | None = None) -> Entry:
        """The entry for a section that arrives.

        Raises:
            StreamError: `unknown-section`: no such handler; `bad-version`: the handler is older than the stream, or
                too new; its offset is that of the version: behind type, id, name and instance.
        """
        entry = next((entry for entry in self._entries if entry.matches(idstr, instance_id)), None)
        if entry is None:
            known = ", ".join(str(other.instance_id) for other in self._entries if other.idstr == idstr)
            hint = f"; instances here: {known}" if known else "; the machines differ in their devices"
            message = f"there is no such section here{hint}"
            raise stream_error("unknown-section", message, offset=offset, path=f"{idstr}/{instance_id}")
        newest = entry.handler.version_id
        oldest = entry.handler.description.oldest_version_id if isinstance(entry.handler, VmStateHandler) else 0
        if not oldest <= version <= newest:
            bound = f"at most {newest} is known here" if version > newest else f"at least {oldest} is needed here"
            message = f"version {version} in the stream, {bound}"
            at = None if offset is None else offset + 1 + 4 + 1 + len(idstr.encode()) + 4
            raise stream_error("bad-version", message, offset=at, path=entry.path)
        return entry

    def missing(self, loaded: Collection[Entry]) -> list[Entry]:
        """Entries whose section a complete stream must have and `loaded` lacks."""
        return [entry for entry in self._entries if not entry.optional and entry not in loaded]
