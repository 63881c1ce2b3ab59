"""What Python writes to a stream and reads from it: the sections of all handlers but RAM; is one missing?"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from qmig_e2k._core import Reader, SectionEvent
from qmig_e2k.errors import stream_error
from qmig_e2k.savevm import (
    Configuration,
    Entry,
    RamHandler,
    Registry,
    SaveVmHandler,
    describe_exception,
    end_section,
    guarded,
    load_section,
    part_section,
    save_full,
    start_section,
    stream_head,
    stream_tail,
    timed,
)

__all__ = ["Loading", "Saving"]

log = logging.getLogger(__name__)

_PART_BUDGET = 1 << 20
"""Bytes that a live handler is asked to write at most in one turn: a tenth of a second at 10 MiB/s."""


class Saving:
    """One stream being written. RAM's sections are the core's; None stands for them."""

    def __init__(self, registry: Registry, configuration: Configuration, mark: Mapping[str, Any] | None = None) -> None:
        """`mark`: further members of the description, which then is written whatever the profile says."""
        self._microseconds: dict[str, int] = {}
        self._registry = registry
        self._profile = replace(registry.profile, description=True) if mark else registry.profile
        self._mark = mark
        self.head, self._described = stream_head(configuration, self._profile)
        live = ((entry, entry.handler) for entry in registry.live)
        self._live = [(e, h) for e, h in live if isinstance(h, SaveVmHandler) and guarded(e, h.is_active)]

    @property
    def ram_section_id(self) -> int:
        """Section id of RAM."""
        ram = self._registry.ram
        assert ram is not None, "every machine has RAM's handler"
        return ram.section_id

    def starts(self) -> list[bytes | None]:
        """The START sections in handler order."""
        return [None if _is_ram(handler) else start_section(entry, self._profile) for entry, handler in self._live]

    def pending(self) -> int:
        """Bytes that the live handlers still hold."""
        return sum(guarded(entry, handler.pending) for entry, handler in self._live)

    def parts(self) -> Iterator[bytes]:
        """One PART section of each live handler that has something to send."""
        for entry, handler in self._live:
            if guarded(entry, handler.pending) > 0:
                yield part_section(entry, self._profile, _PART_BUDGET)[0]

    def ends(self) -> list[bytes | None]:
        """The END sections in handler order; the machine is stopped."""
        return [None if _is_ram(handler) else self._end(entry) for entry, handler in self._live]

    def _end(self, entry: Entry) -> bytes:
        with timed(self._microseconds, entry.path):
            return end_section(entry, self._profile)

    def devices(self) -> tuple[bytes, bytes, dict[str, int]]:
        """All FULL sections, what follows them (end marker, description), and the microseconds that each device took.

        Called after `ends`, whose times are among them. The machine is stopped.
        """
        saved = save_full(self._registry)
        tail = stream_tail(self._profile, saved.devices, self._described, self._mark)
        return saved.data, tail, self._microseconds | saved.microseconds

    def cleanup(self) -> None:
        """The migration is over, whatever way it ended."""
        for entry, handler in self._live:
            try:
                handler.cleanup()
            except Exception:
                log.exception("cleanup of %s after a migration failed", entry.path)


class Loading:
    """One stream being read.

    Attributes:
        microseconds: what each device took that was loaded at once, by `idstr/instance`.
    """

    def __init__(self, registry: Registry) -> None:
        self.microseconds: dict[str, int] = {}
        self._registry = registry
        self._announced: dict[int, tuple[Entry, int]] = {}
        self._loaded: set[Entry] = set()

    def load(self, event: SectionEvent, reader: Reader) -> None:
        """Hand one section to its handler.

        Raises:
            StreamError: `unknown-section`, `duplicate-section`, `bad-version`, or what the handler refused.
        """
        if event.type in ("start", "full"):
            entry = self._registry.find(event.idstr, event.instance_id, event.version_id, offset=event.offset)
            if entry.handler.live != (event.type == "start"):
                sent, here = ("START", "at once (FULL)") if event.type == "start" else ("FULL", "live (START)")
                raise stream_error(
                    "unknown-section",
                    f"the section comes as {sent}, but here it is one that comes {here}",
                    offset=event.offset,
                    path=entry.path,
                )
            if event.type == "start":
                if entry in self._loaded:
                    raise stream_error(
                        "duplicate-section",
                        "this live section was announced before",
                        offset=event.offset,
                        path=entry.path,
                    )
                self._announced[event.section_id] = entry, event.version_id
            if self._registry.rules is not None:
                with _refusing(event.offset, entry.path):
                    self._registry.rules.before_section(entry, self._loaded)
            with timed(self.microseconds if event.type == "full" else {}, entry.path):
                load_section(entry, reader, event.version_id)
            self._loaded.add(entry)
            return
        if event.section_id not in self._announced:
            raise stream_error(
                "unknown-section", f"section id {event.section_id} was never announced", offset=event.offset
            )
        entry, version = self._announced[event.section_id]
        load_section(entry, reader, version)

    def ready(self) -> bool:
        """No handler wants more before the machine is stopped. Raises MigrationError for one that cannot say."""
        live = ((entry, entry.handler) for entry in self._registry.live)
        return all(guarded(entry, handler.ready) for entry, handler in live if isinstance(handler, SaveVmHandler))

    def check_complete(self) -> None:
        """Everything should be here, and the source may still have the machine.

        Raises:
            StreamError: `missing-section`: a device of this machine did not arrive; `device-state`: what has arrived
                does not fit together.
        """
        missing = self._registry.missing(self._loaded)
        if missing:
            names = ", ".join(entry.path for entry in missing)
            raise stream_error(
                "missing-section",
                f"the stream has no state of {names}; the machines differ in their devices",
                path=missing[0].path,
            )
        if self._registry.rules is not None:
            with _refusing():
                self._registry.rules.after_sections(self._registry)


@contextmanager
def _refusing(offset: int | None = None, path: str = "") -> Iterator[None]:
    """What a machine's rules raise refuses the stream."""
    try:
        yield
    except Exception as error:
        place = path or getattr(error, "field", "")
        raise stream_error("device-state", describe_exception(error), offset=offset, path=place) from error


def _is_ram(handler: SaveVmHandler) -> bool:
    return isinstance(handler, RamHandler)
