"""Writing and reading sections: bytes around what the handlers say.

Writers return bytes that go into the stream as they are; a device that fails to save is named in the error. RAM is
not here: the core writes its sections. Layouts: spec/stream.md 2.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.errors import MigrationError, StreamError, migration_error, stream_error
from qmig_e2k.savevm.handlers import SaveVmHandler, VmStateHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmig_e2k.savevm.profile import Profile
    from qmig_e2k.savevm.registry import Entry, Registry
    from qmig_e2k.vmstate import JsonObject

Result = TypeVar("Result")

SECTION_START, SECTION_PART, SECTION_END, SECTION_FULL, SECTION_FOOTER = 0x01, 0x02, 0x03, 0x04, 0x7E


@dataclass(frozen=True, slots=True)
class SavedDevices:
    """The FULL sections of a machine.

    Attributes:
        data: all sections, header to footer.
        devices: one JSON object a section, for the description.
        microseconds: time that each section took, by `idstr/instance`.
    """

    data: bytes
    devices: list[JsonObject]
    microseconds: dict[str, int]


def start_section(entry: Entry, profile: Profile) -> bytes:
    """The START section of a live handler of our own (not RAM)."""
    return _live_section(entry, profile, SECTION_START, _live(entry).setup)[0]


def part_section(entry: Entry, profile: Profile, budget: int) -> tuple[bytes, bool]:
    """One PART section, and whether nothing is left for now."""
    handler = _live(entry)
    return _live_section(entry, profile, SECTION_PART, lambda writer: handler.iterate(writer, budget))


def end_section(entry: Entry, profile: Profile) -> bytes:
    """The END section; the machine is stopped."""
    return _live_section(entry, profile, SECTION_END, _live(entry).complete)[0]


def save_full(registry: Registry, profile: Profile | None = None) -> SavedDevices:
    """Every FULL section that is needed, in order; the machine is stopped.

    Args:
        registry: the machine's handlers.
        profile: rules to write by; None: the registry's.

    Raises:
        MigrationError: `device-state`, naming device and field.
    """
    profile = profile or registry.profile
    writer = Writer()
    devices: list[JsonObject] = []
    microseconds: dict[str, int] = {}
    for entry in registry:
        if entry.handler.live:
            continue
        with timed(microseconds, entry.path):
            made = _save_entry(entry, profile, writer)
        if made is None:
            del microseconds[entry.path]
        else:
            devices.append(made)
    return SavedDevices(writer.getvalue(), devices, microseconds)


@contextmanager
def timed(microseconds: dict[str, int], path: str) -> Iterator[None]:
    """Notes what the block takes, in microseconds."""
    begun = time.perf_counter_ns()
    try:
        yield
    finally:
        microseconds[path] = (time.perf_counter_ns() - begun) // 1000


def load_section(entry: Entry, reader: Reader, version: int) -> None:
    """Read the payload of a section into its handler; the footer is the caller's.

    Args:
        entry: from `Registry.find`, or remembered from START.
        reader: positioned at the payload.
        version: version from the section header.

    Raises:
        StreamError: with offset and path `idstr/instance/field`.
        MigrationError: the channel failed or was cancelled.
    """
    start = reader.offset
    handler = entry.handler
    if isinstance(handler, VmStateHandler):
        handler.load(reader, version, path=entry.path)
        return
    try:
        handler.load(reader, version)
    except StreamError as error:
        offset = getattr(error, "offset", None)
        made = stream_error(
            getattr(error, "kind", "device-state"),
            getattr(error, "message", str(error)),
            offset=start if offset is None else offset,
            path="/".join(filter(None, (entry.path, getattr(error, "path", "")))),
        )
        raise made from error
    except MigrationError:
        raise
    except Exception as error:
        raise stream_error("device-state", describe_exception(error), offset=start, path=entry.path) from error


def describe_exception(error: Exception) -> str:
    """What a handler's exception says to users."""
    text = str(error)
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _live(entry: Entry) -> SaveVmHandler:
    assert isinstance(entry.handler, SaveVmHandler)
    assert entry.handler.live
    return entry.handler


def _live_section(
    entry: Entry, profile: Profile, kind: int, payload: Callable[[Writer], Result]
) -> tuple[bytes, Result]:
    writer = Writer()
    _header(writer, entry, kind)
    result = guarded(entry, lambda: payload(writer))
    _footer(writer, entry, profile)
    return writer.getvalue(), result


def _save_entry(entry: Entry, profile: Profile, writer: Writer) -> JsonObject | None:
    """The FULL section of one handler; its JSON object, or None if it is not needed."""
    head: dict[str, object] = {"name": entry.idstr, "instance_id": entry.instance_id}
    handler = entry.handler
    if isinstance(handler, VmStateHandler):
        if not guarded(entry, handler.needed):
            return None
        _header(writer, entry, SECTION_FULL)
        body = vmstate.save(handler.description, handler.obj, writer, format=profile.format, path=entry.path)
        made = head | dict(body)
    else:
        _header(writer, entry, SECTION_FULL)
        start = len(writer)
        guarded(entry, lambda: handler.save(writer))
        size = len(writer) - start
        made = head | {"size": size, "fields": [{"name": "data", "size": size, "type": "buffer"}]}
    _footer(writer, entry, profile)
    return made


def _header(writer: Writer, entry: Entry, kind: int) -> None:
    writer.u8(kind)
    writer.u32(entry.section_id)
    if kind in (SECTION_START, SECTION_FULL):
        writer.cstr8(entry.idstr.encode())
        writer.u32(entry.instance_id)
        writer.u32(entry.handler.version_id)


def _footer(writer: Writer, entry: Entry, profile: Profile) -> None:
    if profile.footers:
        writer.u8(SECTION_FOOTER)
        writer.u32(entry.section_id)


def guarded(entry: Entry, action: Callable[[], Result]) -> Result:
    """What `action`, a call of the entry's handler, returns.

    Raises:
        MigrationError: `device-state`, naming the device, for whatever it raised.
    """
    try:
        return action()
    except MigrationError:
        raise
    except Exception as error:
        made = migration_error("device-state", f"{entry.path}: {describe_exception(error)}")
        made.path = entry.path
        raise made from error
