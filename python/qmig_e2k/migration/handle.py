"""Handles of migrations, one class for each side: watch, wait, cancel."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Self

from qmig_e2k._core import Control
from qmig_e2k.errors import migration_error

__all__ = ["Arrival", "Handle", "Migration"]


class Handle(ABC):
    """What both sides have in common. Usable from any thread, and awaitable.

    Leaving a `with` block waits for the end, and cancels first if the block was left by an exception.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._done: Future[None] = Future()

    def done(self) -> bool:
        """True once it has ended, well or not."""
        return self._done.done()

    def wait(self, timeout: float | None = None) -> None:
        """Return when it has completed.

        Args:
            timeout: seconds to wait at most.

        Raises:
            MigrationError: it failed or was cancelled (`cancelled`); `timeout` if it has not ended in time (it goes
                on).
        """
        if not self.ended(timeout):
            raise migration_error("timeout", f"the migration ({self.uri}) has not ended within {timeout} seconds")
        self._done.result()

    def ended(self, timeout: float | None = None) -> bool:
        """Wait as `wait` does, but say only whether it has ended."""
        try:
            self._done.exception(timeout)
        except FutureTimeoutError:
            return False
        return True

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.shield(asyncio.wrap_future(self._done)).__await__()

    @abstractmethod
    def cancel(self) -> bool:
        """Ask for the end; False if it is too late. `wait` tells when it is over."""

    def finish(self, error: BaseException | None) -> None:
        """Called once, at the very end, by the thread behind the handle: wake those who wait."""
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.cancel()
        self.ended()


class Arrival(Handle):
    """One incoming migration, from `Vm.incoming` on; it is over when the machine has arrived or the load has failed.

    Attributes:
        addresses: where it listens, in the form of query-migrate's `socket-address`.
    """

    def __init__(self, uri: str, addresses: list[dict[str, Any]], cut: Callable[[], None]) -> None:
        super().__init__(uri)
        self.addresses = addresses
        self._cut = cut

    def cancel(self) -> bool:
        """Close listener and channel; the load fails unless the machine has arrived."""
        late = self.done()
        self._cut()
        return not late


class Migration(Handle):
    """One outgoing migration, from `Vm.migrate` on."""

    def __init__(self, control: Control, uri: str) -> None:
        super().__init__(uri)
        self._control = control
        self._final: dict[str, Any] | None = None

    @property
    def status(self) -> str:
        """QMP status name: `setup`, `active`, ..., at the end `completed`, `failed` or `cancelled`."""
        return str(self.info().get("status", "none"))

    def info(self) -> dict[str, Any]:
        """What `query-migrate` says: now, or of the end of this migration once it has ended."""
        final = self._final
        return dict(final) if final is not None else self._query()

    def progress(self, interval: float = 0.2) -> Iterator[dict[str, Any]]:
        """What `info` says every `interval` seconds, and once more at the end; never raises for a failed migration."""
        while not self.done():
            yield self.info()
            self.ended(interval)
        yield self.info()

    def cancel(self) -> bool:
        """Ask for the end.

        False if it was too late (it had ended, or the destination owns the machine). `wait` tells when it is over.
        """
        return not self.done() and self._control.cancel()

    def start_postcopy(self) -> None:
        """Refused: postcopy is not built yet."""
        raise migration_error(
            "unsupported", "postcopy cannot be started: it is not built yet in this version of qmig_e2k"
        )

    def recover(self, uri: str) -> None:
        """Refused: only a paused postcopy can be recovered, and postcopy is not built yet."""
        raise migration_error(
            "unsupported", f"cannot recover through {uri}: postcopy is not built yet in this version of qmig_e2k"
        )

    def finish(self, error: BaseException | None) -> None:
        """Freeze `info`, then wake those who wait."""
        self._final = self._query()
        super().finish(error)

    def _query(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._control.query_migrate())
        return answer
