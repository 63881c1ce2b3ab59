"""Missing pages without a migration: arm a RAM block and serve its pages from a page source when they are touched.

This is the machinery of postcopy by itself, for those who measure it or need memory that comes late:

    block = RamBlock("ram", 1 << 30)
    with open("pages.bin", "rb") as file, faults.arm(block, file) as service:
        work(block.numpy())                            # each page comes from the file when it is first touched
        print(service.stats()["phases"]["total"])

A thread that touches a missing page waits in the kernel until the page is there, and keeps the interpreter lock all the
time if it has it. So pages come from where no Python is needed: a buffer, a file, a socket whose other end is another
process. A Python callable could never run and is refused.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from qmig_e2k import _core

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

    from qmig_e2k._core import Block

__all__ = ["Descriptor", "FaultService", "arm"]


@runtime_checkable
class Descriptor(Protocol):
    """A file or a socket."""

    def fileno(self) -> int:
        """The number of its descriptor."""


class FaultService:
    """A block that is being served, as `arm` makes it.

    As a context manager it is closed at the end: filled, unless something was raised.
    """

    def __init__(self, core: _core.FaultService) -> None:
        self._core = core

    def stats(self) -> dict[str, Any]:
        """What happened so far; may be called at any time.

        Returns:
            `pages` and `received`: pages of the backing memory, in all and so far. `requests`: pages that were asked
            for; `outstanding`: those of them that are not here yet. `unrecorded`: faults without a record, because too
            many were outstanding. `error`: what the source failed of, or None; who waits for a page then goes on
            waiting. `phases`: for `read`, `request`, `first-byte`, `place` and `total` of the faults that asked for a
            page: `count`, `p50_ns`, `p90_ns`, `p99_ns`, `p999_ns`, `max_ns`, `mean_ns` and `buckets` (a list of [least
            value in ns, width in ns, count]).
        """
        stats: dict[str, Any] = json.loads(self._core.stats())
        return stats

    def close(self, *, fill: bool = True) -> None:
        """End the service. Idempotent.

        Args:
            fill: fetch every page that is still missing, so that the block has all that the source has. Without it what
                is missing reads zero from now on, also for threads that are waiting for it.

        Raises:
            MigrationError: the source failed while filling. The block stays armed: close it without filling.
        """
        self._core.close(fill)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(fill=kind is None)


def arm(block: Block, source: Buffer | Descriptor) -> FaultService:
    """Empty `block` and serve its pages from `source` as they are touched.

    Args:
        block: a RAM block that no migration is using; any backing but a file on disk.
        source: what holds the block's content, at least as many bytes as the block has. A contiguous buffer (bytes,
            memoryview, mmap, array, another RamBlock) is kept until the service is closed. A regular file opened for
            reading is read from its beginning. A connected stream socket has *another process* at its other end: a
            request is two u64 in big-endian order, offset and length (the block's page size); the answer is the offset
            as u64 and that many bytes. Answers may come in any order; pages may also come unasked, each once. Files and
            sockets may be closed once this returns.

    Raises:
        TypeError: `source` is none of these.
        MigrationError: `invalid-argument` (too short, or the block itself), `not-permitted` (no userfaultfd for this
            memory; the message has the remedy), `invalid-state` (the block is in use).
    """
    if isinstance(source, Descriptor):
        return FaultService(_core.FaultService.arm(block, os.dup(source.fileno())))
    if isinstance(source, int) or callable(source):
        raise TypeError("a page source is a buffer, a file or a socket: Python could not answer who holds its lock")
    return FaultService(_core.FaultService.arm(block, source))
