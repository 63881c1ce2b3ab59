"""Our own devices: which descriptions a stream's sections have, their layouts, and their values after power-on.

A description is asked how it would describe a device after power-on, with every subsection; that text is a layout like
any other. The bytes that it writes on the way are the values after power-on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qmig_e2k._core import Writer
from qmig_e2k.analyze.cursor import Cursor, StoredFile
from qmig_e2k.analyze.layout import Decoder, Layout, parse_layout
from qmig_e2k.analyze.model import leaves
from qmig_e2k.e2k.full import OPTIONS
from qmig_e2k.e2k.machines import build
from qmig_e2k.e2k.models import DEFAULT_MODEL, MAX_CPUS, MODELS
from qmig_e2k.errors import MigrationError
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, VmStateHandler
from qmig_e2k.savevm.configuration import CONFIGURATION_STATE, Configuration
from qmig_e2k.vmstate.engine import Saver

if TYPE_CHECKING:
    from qmig_e2k.analyze.model import Body
    from qmig_e2k.vmstate import Format, VMStateDescription

log = logging.getLogger(__name__)

FORMATS: tuple[Format, ...] = ("7.2", "10.0", "2.9")
BY_FORMAT = ("timer", "globalstate")
"""Sections that QEMU's generations describe differently."""
EVERYWHERE = ("timer", "globalstate", "cpu_common")
"""Sections that look alike on every machine; other names may mean another device elsewhere."""
TIMELESS = ("timer", "globalstate", "e2k-machine")
"""Sections to whose values a reset means nothing."""
PAGE_SIZE = 4096
IDENTITY = ("isa", "mdl", "ram_size", "cpus", "boot_mode", "tags")
"""What of the section `e2k-machine` decides which devices there are."""
Identity = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Own:
    """How one of our devices looks.

    Attributes:
        layout: its layout.
        reset: values after power-on by path; empty where that says nothing.
    """

    layout: Layout
    reset: dict[str, Any]

    def doubt(self, body: Body) -> int:
        """How unlikely it is that `body` was meant to be read by this layout, of several that fit: 0 for surely.

        What is a flag in the newer `globalstate` is always 1, and in the older one always 0, behind the name.
        """
        flag = next((item.value for item in body.fields if item.name == "has_vm_was_suspended"), None)
        return 1 if flag is None else 0 if flag else 2


def own_layout(description: VMStateDescription, obj: Any, version: int, format_: Format) -> Own:
    """The layout of `obj`'s payload at `version`, and the values that it has now.

    Raises:
        MigrationError: the object cannot be saved.
    """
    writer = Writer()
    made = _describe(description, obj, version, Saver(writer, format_))
    layout = parse_layout(made)
    file = StoredFile(writer.getvalue())
    try:
        decoder = Decoder(Cursor(file, 0), layout, version)
        decoder.run()
    finally:
        file.close()
    return Own(layout, {path: value for path, item, value in leaves(decoder.body) if item.type != "unused_buffer"})


def _describe(description: VMStateDescription, obj: Any, version: int, saver: Saver) -> dict[str, Any]:
    """Write all fields and every subsection, whatever its rule says; the JSON object of that."""
    entries: list[Any] = []
    for row, label in description.plan:
        if row.present(obj, version):
            row.save(saver, obj, label, entries)
    parts = []
    for part in description.subsections:
        saver.writer.write(part.announcement)
        parts.append(_describe(part, obj, part.version_id, saver))
    return {"vmsd_name": description.name, "version": version, "fields": entries, "subsections": parts}


class Known:
    """Finds our own layouts for the sections of one stream."""

    def __init__(self) -> None:
        """Nothing is known of the machine yet."""
        self.machine: str | None = None
        self._identity: Identity = ()

    def identify(self, body: Body) -> None:
        """Take over what the first section `e2k-machine` says: it decides what devices there are."""
        if not self._identity:
            said = body.plain()
            self._identity = tuple((name, said[name]) for name in IDENTITY if type(said.get(name)) is int)

    def configuration(self, machine: str) -> Own:
        """The configuration element's layout; its length of the name is that of `machine`."""
        config = Configuration(machine, capabilities=["mapped-ram"], uuid=bytes(16), page_bits=12)
        config.fill()
        made = own_layout(CONFIGURATION_STATE, config, 1, "10.0")
        return Own(made.layout, {})

    def find(self, idstr: str, instance_id: int, version: int) -> list[Own]:
        """Layouts that the section may have: several where QEMU's generations differ."""
        # our machine type of that name on the wire
        kind = {"e2k": "e2k-qemu", "e2k-1.0": "e2k-1.0"}.get(self.machine or "")
        if kind is None and idstr not in EVERYWHERE:
            return []
        machine = machine_of(kind or "e2k-qemu", self._identity)
        found: list[Own] = []
        for format_ in FORMATS[: None if idstr in BY_FORMAT else 1]:
            own = machine.own(format_, idstr, instance_id, version)
            if own is not None and own.layout not in [other.layout for other in found]:
                found.append(own)
        return found


class _Machine:
    """A machine after power-on. Its devices describe themselves once, however many sections and streams ask."""

    def __init__(self, kind: str, said: dict[str, int]) -> None:
        machine = _build(kind, said)
        self._registries: dict[Format, Registry] = {}
        self._made: dict[tuple[Format, str, int], Own | None] = {}
        for format_ in FORMATS:
            profile = Profile(format_)
            self._registries[format_] = registry = Registry(profile)
            machine.register(registry, VirtualClock(), GlobalState(profile))

    def own(self, format_: Format, idstr: str, instance_id: int, version: int) -> Own | None:
        """How that section looks; None: the machine has no such device, or none of that version."""
        entry = next((entry for entry in self._registries[format_] if entry.matches(idstr, instance_id)), None)
        if entry is None or not isinstance(entry.handler, VmStateHandler):
            return None
        description = entry.handler.description
        if not description.minimum_version_id <= version <= description.version_id:
            return None
        key = (format_, entry.path, version)
        if key not in self._made:
            try:
                made: Own | None = own_layout(description, entry.handler.obj, version, format_)
            except (MigrationError, ValueError, TypeError, AttributeError):
                log.exception("%s cannot describe itself", entry.path)
                made = None
            self._made[key] = Own(made.layout, {}) if made is not None and entry.idstr in TIMELESS else made
        return self._made[key]


@lru_cache(maxsize=8)
def machine_of(kind: str, identity: Identity) -> _Machine:
    """The machine of that type whose first section said this, built once."""
    return _Machine(kind, dict(identity))


def _build(kind: str, said: dict[str, int]) -> Any:
    options = OPTIONS if kind == "e2k-1.0" else ()
    model = next((m.name for m in MODELS.values() if (m.isa, m.mdl) == (said.get("isa"), said.get("mdl"))), None)
    try:
        return build(
            kind,
            said.get("ram_size", 16 * PAGE_SIZE),
            cpus=said.get("cpus", MAX_CPUS),
            model=model or DEFAULT_MODEL,
            kernel_size=PAGE_SIZE if said.get("boot_mode") else None,
            tags=bool(said.get("tags")),
            options=options,
        )
    except MigrationError as error:
        log.info("the stream's machine cannot be built here: %s", error)
        return build(kind, 16 * PAGE_SIZE, cpus=MAX_CPUS, options=options)
