"""The exception that travels inside the engine while the path to the refused field is being put together.

It never leaves the engine: `save` turns it into a MigrationError, `load` into a StreamError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Self

from qmig_e2k.errors import MigrationError, StreamError, migration_error, stream_error

if TYPE_CHECKING:
    from types import TracebackType


class Refusal(Exception):  # noqa: N818 - a refusal is the word
    """Why a field was refused, where in the stream, and the names passed on the way up (innermost first)."""

    def __init__(self, message: str, offset: int | None = None, kind: str = "device-state") -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.kind = kind
        self.parts: list[str] = []

    @classmethod
    def of(cls, error: Exception, offset: int | None = None) -> Refusal:
        """The refusal that `error` stands for: itself, a stream error, or whatever a device's hook raised."""
        if isinstance(error, Refusal):
            if error.offset is None:
                error.offset = offset
            return error
        if isinstance(error, MigrationError):
            # an error made by plain construction has no attributes
            made = cls(
                getattr(error, "message", str(error)),
                getattr(error, "offset", None) if isinstance(error, StreamError) else offset,
                getattr(error, "kind", "device-state"),
            )
            inner = getattr(error, "path", "")
            if inner:
                made.parts.append(inner)
        else:
            text = str(error)
            made = cls(text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}", offset)
            # a hook that checked several fields may say which one it was
            field = getattr(error, "field", "")
            if isinstance(field, str) and field:
                made.parts.append(field)
        if made.offset is None:
            made.offset = offset
        return made

    def within(self, part: str) -> Refusal:
        """The same, seen from the description that holds `part` (a field name, or `[i]`)."""
        self.parts.append(part)
        return self

    def path(self, prefix: str) -> str:
        """`prefix/field[i].sub`."""
        inner = ""
        for part in reversed(self.parts):
            inner += part if part.startswith("[") or not inner else f".{part}"
        return f"{prefix}/{inner}" if inner else prefix

    def stream_error(self, prefix: str) -> StreamError:
        """What `load` raises."""
        return stream_error(self.kind, self.message, offset=self.offset, path=self.path(prefix))

    def migration_error(self, prefix: str) -> MigrationError:
        """What `save` raises."""
        path = self.path(prefix)
        error = migration_error(self.kind, f"{path}: {self.message}")
        error.path = path
        return error


def pass_on(error: Exception, part: str | None = None, offset: int | None = None) -> NoReturn:
    """What `Place` does at its end, for where a `with` costs too much: called in an `except Exception`."""
    refusal = Refusal.of(error, offset)
    if part is not None:
        refusal.within(part)
    if refusal is error:
        raise error
    raise refusal from error


class Place:
    """`with Place(part, offset):` makes a refusal of every exception inside and names the part it came from.

    In a loop the attributes are simply set again.
    """

    __slots__ = ("offset", "part")

    def __init__(self, part: str | int | None = None, offset: int | None = None) -> None:
        self.part = part
        self.offset = offset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception):
            return
        pass_on(error, f"[{self.part}]" if isinstance(self.part, int) else self.part, self.offset)
