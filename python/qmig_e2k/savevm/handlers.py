"""Handlers: what saves and loads one section.

Three kinds (spec/stream.md 3.1): a state description (`VmStateHandler`), a live handler and an old-style one (both
subclasses of `SaveVmHandler`). `RamHandler` only holds the place of RAM, whose bytes the core moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qmig_e2k import vmstate

if TYPE_CHECKING:
    from qmig_e2k._core import Reader, Writer


class SaveVmHandler:
    """Base class of a handler written in Python.

    A live handler overrides `setup`, `iterate`, `pending`, `complete` and `load`, and may override `ready`: it sends a
    START section, PART sections while the machine runs, and an END section when it has stopped. Whatever it writes must
    say itself where it ends, because `load` is called once for each of these sections.

    An old-style handler overrides `save` and `load` only: one FULL section while the machine is stopped.

    Any exception refuses: it fails the migration, and its text reaches the user.

    Attributes:
        version_id: version written, and the highest accepted.
        live: set by the base class: True for a live handler.
    """

    version_id: int = 1
    live: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        live = any(_overrides(cls, name) for name in ("setup", "iterate", "complete"))
        if live and _overrides(cls, "save"):
            raise TypeError(f"{cls.__name__} overrides save and live methods: a handler is either old-style or live")
        if "live" not in vars(cls):
            cls.live = live

    # live

    def is_active(self) -> bool:
        """Whether the handler takes part in this migration at all. Asked once, before START."""
        return True

    def setup(self, writer: Writer) -> None:
        """Write the payload of START. The machine runs."""

    def iterate(self, writer: Writer, budget: int) -> bool:  # noqa: ARG002
        """Write the payload of one PART, about `budget` bytes at most. The machine runs.

        Returns:
            True if nothing is left for now.
        """
        return True

    def pending(self) -> int:
        """Bytes still to be sent, as far as is known now."""
        return 0

    def complete(self, writer: Writer) -> None:
        """Write the payload of END: everything that is left. The machine is stopped."""

    def cleanup(self) -> None:
        """The migration is over, whatever way it ended."""

    def ready(self) -> bool:
        """At the destination, with the capability `switchover-ack`: enough is here for the machine to be stopped.

        Asked before the first section and after each. Until all handlers say True the source goes on sending, so the
        handler must be active there, too.
        """
        return True

    # old-style

    def save(self, writer: Writer) -> None:
        """Write the payload of FULL. The machine is stopped."""
        raise NotImplementedError(f"{type(self).__name__} has no save")

    # both

    def load(self, reader: Reader, version: int) -> None:
        """Read the payload of one section, all of it.

        Args:
            reader: positioned at the payload.
            version: version from the section header (that of START for PART and END).
        """
        raise NotImplementedError(f"{type(self).__name__} has no load")


def _overrides(cls: type[SaveVmHandler], name: str) -> bool:
    return getattr(cls, name) is not getattr(SaveVmHandler, name)


class RamHandler(SaveVmHandler):
    """The place of RAM among the live handlers. The core writes and reads its sections."""

    version_id = 4
    live = True


class VmStateHandler:
    """A device with a state description.

    Attributes:
        description: what of it travels.
        obj: the device.
    """

    live = False

    def __init__(self, description: vmstate.VMStateDescription, obj: Any) -> None:
        self.description = description
        self.obj = obj

    @property
    def version_id(self) -> int:
        """Version written, and the highest accepted."""
        return self.description.version_id

    def needed(self) -> bool:
        """Whether the section is written."""
        return self.description.needed is None or bool(self.description.needed(self.obj))

    def load(self, reader: Reader, version: int, *, path: str = "") -> None:
        """Read the payload of the section into the device."""
        vmstate.load(self.description, self.obj, reader, version, path=path)


Handler = SaveVmHandler | VmStateHandler
