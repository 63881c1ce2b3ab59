"""Handles of migrations, one class for each side: watch, wait, cancel, and what postcopy adds: pause and recover."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any, Self

from qmig_e2k._core import Control, Incoming
from qmig_e2k.errors import MigrationError, migration_error, twin
from qmig_e2k.migration.blockers import POSTCOPY
from qmig_e2k.migration.descriptors import closed_on_error, refuse_unwanted
from qmig_e2k.migration.lifetime import guard

__all__ = ["Arrival", "Handle", "Migration"]

_LOOK = 0.1
"""Seconds between two looks at a migration that may end or be paused."""


class Handle(ABC):
    """What both sides have in common. Usable from any thread, and awaitable.

    Leaving a `with` block, or an `async with` block, waits for the end, and cancels first if the block was left by an
    exception; `wait` or `await` tell how it ended. One that is `postcopy-paused` then is not waited for: nobody can end
    it, and whoever could recover it has left.
    """

    def __init__(self, control: Control, uri: str) -> None:
        self.uri = uri
        self._control = control
        self._done: Future[MigrationError | None] = Future()
        self._final: dict[str, Any] | None = None

    @property
    @abstractmethod
    def status(self) -> str:
        """QMP status name of this side."""

    @abstractmethod
    def _query(self) -> dict[str, Any]:
        """What `info` says now."""

    def info(self) -> dict[str, Any]:
        """What `query-migrate` says of this side: now, or of the end of this migration once it has ended."""
        final = self._final
        return dict(final) if final is not None else self._query()

    def progress(self, interval: float = 0.2) -> Iterator[dict[str, Any]]:
        """What `info` says every `interval` seconds, and once more at the end; never raises for a failed migration."""
        while not self.done():
            yield self.info()
            self.ended(interval)
        yield self.info()

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
        self._tell()

    def ended(self, timeout: float | None = None) -> bool:
        """Wait as `wait` does, but say only whether it has ended."""
        try:
            self._done.result(timeout)
        except FutureTimeoutError:
            return False
        return True

    def __await__(self) -> Generator[Any, None, None]:
        return self._awaited().__await__()

    async def _awaited(self) -> None:
        await self._over()
        self._tell()

    def _tell(self) -> None:
        error = self._done.result()
        if error is not None:
            raise twin(error)

    async def _over(self) -> None:
        """Wait for the end without holding up the loop. Giving that up, or the end of the loop, ends no migration."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell(_: Future[MigrationError | None]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(over.set)

        self._done.add_done_callback(tell)
        await over.wait()

    @abstractmethod
    def cancel(self) -> bool:
        """Ask for the end; False if it is too late. `wait` tells when it is over."""

    def pause(self) -> None:
        """Cut the connection of a postcopy under way; a moment later both sides are `postcopy-paused`.

        Raises MigrationError (`invalid-state`) outside of postcopy.
        """
        self._control.pause()

    @abstractmethod
    def recover(self, uri: str, *, fd: int | None = None) -> None:
        """Go on, over another connection, with a postcopy that is `postcopy-paused`. Returns at once.

        Args:
            uri: `tcp:`, `unix:`, or `fd:` with a connected socket.
            fd: the descriptor behind `fd:`, owned from here on.
        """

    def finish(self, error: MigrationError | None) -> None:
        """Called once, at the very end, by the thread behind the handle: freeze `info`, then wake those who wait."""
        self._final = self._query()
        # A traceback keeps the frames of that thread, and with them the descriptors of this migration. Neither the
        # caller's error, which one of those frames may hold, nor the twin that is kept here has one.
        self._done.set_result(None if error is None else twin(error.with_traceback(None)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.ended()
            return
        self.cancel()
        while self.status != "postcopy-paused" and not self.ended(_LOOK):
            pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None:
            await self._over()
            return
        self.cancel()
        while self.status != "postcopy-paused" and not self.done():
            await asyncio.sleep(_LOOK)


class Arrival(Handle):
    """One incoming migration, from `Vm.incoming` on; over when machine and memory are here, or the load failed.

    Attributes:
        addresses: where it listens, or listened last, in the form of query-migrate's `socket-address`.
    """

    def __init__(self, control: Control, uri: str, addresses: list[dict[str, Any]], source: Incoming) -> None:
        super().__init__(control, uri)
        self.addresses = addresses
        self._source = source

    @property
    def status(self) -> str:
        """QMP status name: `none` until a source connects, `active`, `postcopy-active`, ..., `completed`, `failed`."""
        return self._control.incoming_status

    def cancel(self) -> bool:
        """Close listener and channel, so that the load fails.

        False, and nothing is done, if it is too late: the machine is here, or in postcopy, where it may run already.
        """
        if self.done() or self.status in POSTCOPY:
            return False
        self._source.close()
        return True

    def abandon(self) -> None:
        """End it whatever is lost by that: a machine that runs without all of its memory is worth nothing then.

        Whoever waits for a page goes on waiting, until `let_go` or the end of the process.
        """
        self._source.abandon()
        self._source.close()

    def guard(self) -> None:
        """Before `abandon` in postcopy: a program that stands still in a page of the machine from now on ends."""
        guard(self._source)

    @property
    def waiting(self) -> int:
        """How many missing pages of the machine somebody waits for."""
        return self._source.waiting()

    def let_go(self) -> None:
        """After `abandon`, when nothing acts on the memory: it can be used again. Nothing while somebody waits."""
        if not self.waiting:
            self._source.let_go()

    def recover(self, uri: str, *, fd: int | None = None) -> None:
        """Listen at `uri` for the source, which recovers as well; `addresses` then says where.

        A postcopy that is `completed` answers a source whose connection broke before it heard so, and stays as it is.

        Raises:
            MigrationError: `invalid-state` unless it is `postcopy-paused` or such a one; `bad-uri`, `listen`.
        """
        with closed_on_error(fd):
            refuse_unwanted(uri, fd)
        self._control.recover(uri, fd)
        self.addresses = self._query().get("socket-address", self.addresses)

    def _query(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._control.query_incoming())
        return answer


class Migration(Handle):
    """One outgoing migration, from `Vm.migrate` on."""

    @property
    def status(self) -> str:
        """QMP status name: `setup`, `active`, ..., at the end `completed`, `failed` or `cancelled`."""
        return str(self.info().get("status", "none"))

    def cancel(self) -> bool:
        """Ask for the end.

        False if it was too late (it had ended, or the destination owns the machine). `wait` tells when it is over.
        """
        return not self.done() and self._control.cancel()

    def start_postcopy(self) -> None:
        """Let the machine run on the destination as soon as possible, and fetch the rest of its memory from here.

        Raises MigrationError (`invalid-state`) without the capability `postcopy-ram`, which both sides need.
        """
        self._control.start_postcopy()

    def give_up(self) -> None:
        """End one that is `postcopy-paused` and whose destination was not heard since the hand-over.

        `wait` then raises MigrationError (`ownership-unknown`), and the machine stays stopped here. Only who knows that
        the destination has ended without running it says `Vm.start`.

        Raises MigrationError (`invalid-state`) unless it is paused, and if the destination was heard: it is there.
        """
        self._control.give_up_outgoing()

    def recover(self, uri: str, *, fd: int | None = None) -> None:
        """Connect to the destination, which recovers as well, at `uri`.

        A connection that cannot be made leaves it `postcopy-paused`, with the reason in `info()["error-desc"]`; then
        this may be called again.

        Raises:
            MigrationError: `invalid-state` unless it is `postcopy-paused`, and with the capability `release-ram`;
                `bad-uri`.
        """
        with closed_on_error(fd):
            refuse_unwanted(uri, fd)
        self._control.resume(uri, fd)

    def _query(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._control.query_migrate())
        return answer
