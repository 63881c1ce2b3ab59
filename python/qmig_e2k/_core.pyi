"""The native half of qmig_e2k (Rust). All classes are frozen; blocking calls release the interpreter lock.

No thread of the core ever takes that lock, so `Monitor` answers and `Control.cancel` works while Python is stuck.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

__version__: str

class MigrationError(Exception):
    """A migration that failed, or a call it refused. `kind` is the stable name of the cause."""

    kind: str
    offset: int | None
    path: str
    message: str

class StreamError(MigrationError):
    """A stream that was refused: `offset` of the first byte of the refused element, `path` inside the stream."""

# ---- memory (rust/py/src/block.rs) ----------------------------------------------------------------------------------

def next_log() -> tuple[int, str, str] | None:
    """What the core has to say next, waiting for it with the interpreter lock released: level of Python's logging, module of the core, text. None
    once close_log() was called."""

def close_log() -> None:
    """Wake who waits in next_log(), when all has been fetched; nothing more is kept."""

def probe() -> dict[str, tuple[bool, str, str]]:
    """What kernel and permissions allow: name -> (ok, detail, remedy). Names: `userfaultfd`, `missing`, `missing-shmem`, `missing-hugetlb`, `kernel-faults`, `minor`,
    `poison`, `wp-async`, `pagemap-scan`, `memfd`, `hugetlb`, `thp`."""

def check_postcopy(blocks: Sequence[Block]) -> str | None:
    """A caution, with its remedy, where only user code may touch pages of these blocks that come late; else None. Raises MigrationError
    (`not-permitted`, with the remedy) if they cannot come late on this host."""

@final
class Block:
    """A range of guest RAM with its idstr. Exports a writable uint8 buffer (`np.frombuffer(block, np.uint8)`) over `max_size` bytes."""

    def __new__(
        cls,
        name: str,
        size: int,
        *,
        backing: Literal["anon", "memfd", "file", "hugetlb"] = "anon",
        path: str | None = None,
        max_size: int | None = None,
        thp: bool = True,
    ) -> Self: ...
    @staticmethod
    def adopt(name: str, buffer: Buffer, *, dirty_log: Literal["auto", "explicit"] = "auto") -> Block:
        """A block over the caller's own page-aligned writable memory, which stays the caller's; its size is the buffer's.

        Raises MigrationError (`bad-block`: not page-aligned, read-only, locked, private file mapping; `no-dirty-log`: a disk file with "auto").
        """
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int:
        """Used length in bytes: what migrates."""
    @property
    def max_size(self) -> int: ...
    @property
    def resizable(self) -> bool:
        """Whether a stream may bring another length: it was made with a `max_size`."""
    @property
    def page_size(self) -> int:
        """Page size of the backing memory in bytes."""
    @property
    def backing(self) -> str:
        """`anon`, `memfd`, `file`, `hugetlb` or `adopted`."""
    @property
    def address(self) -> int: ...
    @property
    def dirty_log(self) -> Literal["wp-async", "explicit"]:
        """The kind that `auto` chooses for this block."""
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: Buffer) -> None:
        """Write and mark dirty."""
    def mark_dirty(self, offset: int, length: int) -> None:
        """Say that these bytes were written by a way the kernel's log does not see. Call it after the write."""
    def prefault(self, offset: int, length: int) -> None: ...
    def resize(self, size: int) -> None: ...
    def dump_dirty(self, expected: bool = False) -> str:
        """The dirty bitmap of the last migration, 128 pages a line as `1` and `.`; lines that are wholly `expected` are left out."""
    def numpy(self) -> npt.NDArray[np.uint8]:
        """An array over the used length; no copy."""
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def close(self) -> None:
        """Unmap. Raises MigrationError (`invalid-state`) while views are exported or a migration uses the block."""

# ---- bytes (rust/py/src/wire.rs) ------------------------------------------------------------------------------------

@final
class Reader:
    """Bytes of one section payload. Integers are big-endian. A short read raises StreamError `truncated` with the stream offset."""

    def __new__(cls, data: Buffer, offset: int = 0) -> Self: ...
    @property
    def offset(self) -> int:
        """Stream offset of the next byte."""
    def u8(self) -> int: ...
    def u16(self) -> int: ...
    def u32(self) -> int: ...
    def u64(self) -> int: ...
    def i8(self) -> int: ...
    def i16(self) -> int: ...
    def i32(self) -> int: ...
    def i64(self) -> int: ...
    def read(self, length: int) -> bytes: ...
    def skip(self, length: int) -> None: ...
    def cstr8(self) -> bytes: ...
    def peek(self, length: int) -> bytes:
        """Up to `length` (at most 512) coming bytes without consuming them; shorter only where the stream ends."""

@final
class Writer:
    """A growing buffer of stream bytes. Integers are big-endian and checked against their range (OverflowError)."""

    def __new__(cls) -> Self: ...
    def u8(self, value: int) -> None: ...
    def u16(self, value: int) -> None: ...
    def u32(self, value: int) -> None: ...
    def u64(self, value: int) -> None: ...
    def i8(self, value: int) -> None: ...
    def i16(self, value: int) -> None: ...
    def i32(self, value: int) -> None: ...
    def i64(self, value: int) -> None: ...
    def write(self, data: Buffer) -> None: ...
    def zeros(self, length: int) -> None: ...
    def cstr8(self, data: bytes) -> None: ...
    def __len__(self) -> int: ...
    def getvalue(self) -> bytes: ...

def xbzrle_encode(old: Buffer, new: Buffer, dlen: int = 4096) -> bytes | None:
    """What makes `new` of `old` (spec/stream 5.2, 5.3): runs of unchanged and changed bytes. `b""`: they are equal.

    None: it does not fit into `dlen` bytes, decided in the same order as QEMU does.

    Raises:
        ValueError: the pages differ in size or are larger than 16384 bytes.
        BufferError: a buffer that is not contiguous.
    """

def xbzrle_decode(delta: Buffer, page: Buffer) -> int:
    """Patch `page`, a writable buffer, in place; returns the position behind the last changed byte (spec/stream 5.4).

    Raises:
        StreamError: a delta that cannot be (`bad-page`); the page is as it was.
        BufferError: a buffer that is not contiguous, or a page that is read-only.
    """

def is_zero(buffer: Buffer) -> bool:
    """True if every byte reads zero.

    Raises:
        BufferError: a buffer that is not contiguous.
    """

def compress_page(page: Buffer, level: int = 1, method: str = "zlib") -> bytes:
    """A page as one zlib stream (spec/stream 6.1; levels 0 to 9) or, with `method="zstd"`, as one frame (levels up to 22).

    Raises:
        StreamError: a level that the method does not have (`bad-page`).
        ValueError: another method.
        BufferError: a buffer that is not contiguous.
    """

def decompress_page(data: Buffer, page_size: int = 4096, method: str = "zlib") -> bytes:
    """The page of `page_size` bytes that `compress_page` was given. Never makes more bytes than that.

    Bytes behind the end of a zlib stream are ignored, as QEMU does (spec/stream 6.2); a zstd frame stands alone.

    Raises:
        StreamError: damaged, or of another length (`bad-page`).
        ValueError: another method.
        BufferError: a buffer that is not contiguous.
    """

@final
class CompressPool:
    """Threads that compress and decompress many pages of 4096 bytes at a time, as those of the capability `compress` do.

    Leaving it as a context manager ends its threads, and so does its end. Several threads may use one: in turn.

    Args:
        threads: how many compress, and how many decompress, 1 to 255; they start when they are first needed.
        level: of zlib, 0 to 9.

    Raises:
        ValueError: another number of either.
    """

    def __new__(cls, threads: int = 2, level: int = 1) -> Self: ...
    def compress(self, pages: Buffer) -> list[bytes]:
        """Each page of `pages` as it travels: a zero page as b"", one that does not shrink as its 4096 bytes, any other as a zlib stream.

        Raises:
            ValueError: a buffer that is not whole pages, or a pool that is closed.
            BufferError: a buffer that is not contiguous.
        """

    def decompress(self, packed: list[Buffer]) -> bytes:
        """The pages that `compress` made `packed` of, one behind the other.

        Raises:
            StreamError: `bad-page`; the path names the first page that is none, by its number.
            ValueError: a pool that is closed.
            BufferError: a buffer that is not contiguous.
        """

    def close(self) -> None:
        """End the threads. Idempotent."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_exc: object) -> None: ...

@final
class PageCache:
    """The last version of pages that were sent, each in the one slot that its address allows (spec/stream 5.5).

    Args:
        size: bytes of pages it may hold, a power of two.
        page_size: bytes of a page, a power of two.

    Raises:
        ValueError: sizes that are no powers of two, or no room for one page.
        MemoryError: there is not as much memory.
    """

    def __new__(cls, size: int, page_size: int = 4096) -> Self: ...
    @property
    def size(self) -> int:
        """Bytes of pages it may hold."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    def get(self, address: int, age: int) -> bytes | None:
        """A copy of the page at `address` (bytes), which is as young as `age` (the number of dirty syncs) from now on; None if it is not there."""

    def insert(self, address: int, page: Buffer, age: int) -> bool:
        """Keep `page`. False: its slot holds another page, used at `age` or at one of the two numbers before.

        Raises:
            ValueError: a page of another size.
            BufferError: a buffer that is not contiguous.
        """

    def resize(self, size: int) -> None:
        """Become an empty cache of `size` bytes; the same size keeps what is there.

        Raises:
            ValueError: a size that is no power of two, or no room for one page.
            MemoryError: there is not as much memory.
        """

def decode(
    data: Buffer, resolver: Callable[[str, int, int, Reader], None] | None = None, *, footers: bool = True
) -> list[dict[str, Any]]:
    """Every element of a whole stream as dicts with `type` and `offset` (of the type byte). Detects whether there is a configuration.

    `configuration`: `machine`, `target_page_bits`, `capabilities`, `uuid`. `start`, `part`, `end`, `full`: `section_id`, `idstr`, `instance_id`,
    `version_id` and either `size` (payload bytes) or, for RAM, `pages` {`normal`, `zero`} and on `start` `blocks` [{`name`, `size`, `offset`, `sha256`}]: RAM goes
    nowhere but is counted and hashed; the hash is None if the stream is too short for every page. `command`: `name`, `number` and its arguments. `eof`.
    `description`: `length`, `text`.

    Args:
        data: the whole stream.
        resolver: `resolver(idstr, instance, version, reader)` consumes a device payload; without it a few fixed layouts are known (QEMU's `none`
            and the public qemu-system-e2k).
        footers: whether sections have footers.

    Raises:
        StreamError: the stream is refused; `partial` holds the elements before. `trailing-data`: bytes after the end.
    """

@final
class StoredStream:
    """The elements of a stored stream one by one, whatever its RAM is coded in, and that RAM.

    Memory grows with the records that come, not with what the stream announces; pages that stand in a file as they are stay there.
    """

    def __new__(
        cls,
        main: int,
        channels: Sequence[int],
        *,
        footers: bool | None = None,
        limits: tuple[int, int, int] | None = None,
    ) -> Self:
        """Over descriptors of seekable files, which it takes over: the main channel, and the multifd channels in any order.

        `footers`: whether sections have footers; None: as the first one shows. `limits`: as those of Incoming.
        """
    def next(self) -> dict[str, Any] | None:
        """The next element as `decode` has it, without `size` and `blocks`; None behind the last one. RAM sections are read on the way, with
        multifd channels caught up with where the main channel says. An error in a channel has `channel N` in its path, and that file's offset.

        Raises:
            StreamError: the stream is refused. RAM keeps what came before.
        """
    @property
    def reader(self) -> Reader:
        """The payload of the section that next() returned (not RAM), until section_done()."""
    def section_done(self) -> None:
        """The payload is consumed: check the footer."""
    @property
    def offset(self) -> int:
        """Stream offset of the next byte."""
    @property
    def footers(self) -> bool | None:
        """Whether sections have footers; None until the first one ended."""
    def finish_channels(self) -> None:
        """Read what the multifd channels have behind their last point of synchronisation."""
    def channels(self) -> list[dict[str, Any]]:
        """What each multifd channel brought: `id` (None: nothing yet), `packets`, `normal` and `zero` pages, bytes of `device_state`."""
    def blocks(self) -> list[dict[str, Any]]:
        """RAM blocks: `name`, `raw_name` (bytes), `size` (used length), `offset` of the entry, `page_size`, `address` (None: not said), `mapped` (mapped-ram), `complete`: every page came, `pages`: how many did."""
    def next_run(self, block: int, offset: int) -> tuple[int, int] | None:
        """(offset, length) of the first pages of a block from `offset` on that came and may hold something else than zeros."""
    def read(self, block: int, offset: int, length: int) -> bytearray:
        """The last contents of whole pages; what did not come reads as zero."""

# ---- control (rust/py/src/control.rs) -------------------------------------------------------------------------------

@final
class TlsCreds:
    """The certificates and keys of one side, read from a directory with QEMU's file names when it is made. It never changes."""

    def __new__(
        cls,
        endpoint: Literal["client", "server"],
        dir: str | os.PathLike[str],
        verify_peer: bool = True,
        sanity_check: bool = True,
    ) -> Self:
        """`ca-cert.pem` and `server-cert.pem` with `server-key.pem` must be there; `client-cert.pem` with `client-key.pem` are used if both
        are, `ca-crl.pem` if it is. verify_peer: the other side must have a certificate of the CA. sanity_check: what the other side would
        refuse is an error now. Raises MigrationError (`tls`) with the file and what to do."""
    @property
    def endpoint(self) -> str: ...
    @property
    def verify_peer(self) -> bool: ...

@final
class TlsAuthz:
    """Who may come in, by the distinguished name in the certificate, in the certificate's order (`C=...,O=...,CN=...`), as QEMU has it; the
    first rule that matches decides."""

    def __new__(cls, rules: Sequence[tuple[str, str, str]], default_policy: str = "deny") -> Self:
        """rules: (match, `allow` or `deny`, `exact` or `glob` with * and ?). Raises ValueError for other words."""
    def allows(self, name: str) -> bool: ...

@final
class Control:
    """State of one machine's migrations: run state, both status words, ownership, capability and parameter snapshot, counters, events."""

    def __new__(cls, name: str | None = None) -> Self: ...
    # run state (spec/control-plane 8); legality is checked here, STOP and RESUME are emitted by the caller
    @property
    def run_state(self) -> str: ...
    def set_run_state(self, state: str) -> None:
        """Raises MigrationError (`invalid-state`) on an illegal transition."""
    def emit(self, event: str, data: str | None = None) -> None:
        """Send a QMP event (data: JSON text of an object) to every monitor in command mode and every subscriber."""
    def subscribe(self) -> Events: ...
    # the snapshot that Rust threads read
    def set_capabilities(self, enabled: Sequence[str]) -> None: ...
    def set_parameters(self, json: str) -> None:
        """JSON object of all parameters by QMP name; integers are what Rust reads (max-bandwidth, downtime-limit, ...). Takes effect at once."""
    def set_blocked_reasons(self, reasons: Sequence[str]) -> None: ...
    def set_tls(self, creds: TlsCreds | None, hostname: str = "", authz: TlsAuthz | None = None) -> None:
        """What channels are secured with; None: not at all. Read by begin_outgoing(), Incoming.listen(), resume() and recover(); a connection
        that stands keeps what it has. A source needs `client` credentials, a destination `server` ones, or it fails as `invalid-argument`.

        hostname: what the destination's certificate must be for; empty: the host of the URI. authz: whom a destination lets in; None:
        everybody with a good certificate. Raises MigrationError (`invalid-argument`) for authz with credentials that verify nobody."""
    # outgoing
    @property
    def outgoing_status(self) -> str: ...
    @property
    def incoming_status(self) -> str: ...
    @property
    def received(self) -> int:
        """Bytes that have come on all channels of the present or last incoming migration (not: pages of a mapped-ram file)."""
    def begin_outgoing(self, snapshot: bool = False) -> None:
        """Status none -> setup (event), fresh counters and ownership. Raises `invalid-state` until finish_outgoing() was called for the one before.

        `snapshot`: the stream is kept here and so is the machine; the status stays `setup` up to its final one, and a failure after
        Outgoing.finish() is an ordinary one.
        """
    def set_outgoing_status(self, old: str, new: str) -> bool:
        """Compare-and-swap; True if it was `old` and no error is recorded. Emits MIGRATION if the `events` capability is set."""
    def fail_outgoing(self, message: str) -> None:
        """Record the first error and end all that waits; finish_outgoing() makes the status failed (cancelled after a cancel). Never undoes a commit."""
    def owned(self) -> bool:
        """True while the source may still run the machine (nothing was committed)."""
    def mark_stopped(self) -> None:
        """The machine has just been stopped for the switchover: downtime counts from here."""
    def finish_outgoing(self) -> str:
        """Reach the final status and freeze times; returns it. Idempotent. Call it when the machine is where it belongs: who sees a final status acts at once.

        `cancelled` after a cancel, `failed` after an error or without a commit, else `completed`.
        """
    @property
    def throttle(self) -> int:
        """Percent of their time that auto-converge takes from the vCPUs."""
    def end_throttle(self) -> None:
        """It takes nothing any more."""
    def deadline_reason(self) -> str | None:
        """What to say of a migration that was cancelled by its deadline; None for any other."""
    def outgoing_error(self) -> str | None: ...
    def cancel(self) -> bool:
        """migrate_cancel: channels shut down; outgoing: status cancelling; incoming, whose source has connected and has no promise yet: it fails.
        False if there was nothing to cancel or the machine may be the other side's. Never blocks."""
    # postcopy: everything here works while Python is stuck in a missing page, and none of it waits for the peer
    def start_postcopy(self) -> None:
        """migrate-start-postcopy: the outgoing migration switches as soon as it can. Raises MigrationError (`invalid-state`) without
        the capability `postcopy-ram` and without a migration; harmless when asked again or too late."""
    def pause(self) -> None:
        """migrate-pause: cut the connection of the outgoing migration in postcopy, else of the incoming one; the status becomes
        `postcopy-paused` a moment later. Raises `invalid-state` if neither is `postcopy-active` or `postcopy-recover`."""
    def give_up_outgoing(self) -> None:
        """x-migrate-give-up: a paused outgoing migration whose destination was not heard since the hand-over fails as `ownership-unknown`. Raises
        `invalid-state` unless it is `postcopy-paused`, and if the destination was heard: it has the machine."""
    def recover(self, uri: str, fd: int | None = None) -> None:
        """migrate-recover: the paused incoming migration listens at `uri` (tcp:, unix:, or fd: with a connected socket, `fd` owned from here
        on) instead of anywhere before; `socket-address` of query-migrate says where. Raises `invalid-state` unless it is
        `postcopy-paused`, `bad-uri`, `listen`."""
    def resume(self, uri: str, fd: int | None = None) -> None:
        """Migrate with `resume`: the paused outgoing migration connects to `uri`. Returns at once; a connection that cannot be made leaves it
        `postcopy-paused` with the reason in `error-desc`. The last URI given counts. Raises `invalid-state` unless it is
        `postcopy-paused`, and with the capability `release-ram`."""
    def fault_latency(self) -> str | None:
        """JSON of the present or last incoming postcopy, in ns: {phase: {count, p50_ns, p90_ns, p99_ns, p999_ns, max_ns, mean_ns, buckets}}; phases `read`,
        `request`, `first-byte`, `place`, `total`; a bucket is [least value, how many values wide, count]. None without a postcopy."""
    # incoming
    def begin_incoming(self) -> None:
        """Emits MIGRATION setup as 7.2 does; the status stays none. Raises `invalid-state` if one is under way; a failed one may be followed by another."""
    def set_incoming_status(self, old: str, new: str) -> bool: ...
    def fail_incoming(self, message: str) -> None:
        """Keep the first error, status failed, forget the socket addresses. No effect on a final status."""
    def set_socket_addresses(self, json: str | None) -> None: ...
    # answers, the same that the monitor gives
    def query_migrate(self) -> str: ...
    def query_incoming(self) -> str:
        """The destination's part of query-migrate alone."""
    def query_status(self) -> str: ...
    def note_time(self, phase: str, microseconds: int) -> None:
        """One entry of query-migrate's `x-downtime`: stop, sync, pages, switchover, load, start."""
    def note_device_time(self, device: str, microseconds: int) -> None: ...

@final
class DirtyRate:
    """A measurement, by a thread of its own, of how fast RAM is written."""

    def __new__(
        cls, blocks: Sequence[Block], milliseconds: int, *, sample_pages: int | None = None, explicit: bool = False
    ) -> Self:
        """By hashes of `sample_pages` pages for each GiB, or by the dirty log; `explicit`: by that of mark_dirty. Raises MigrationError
        (`invalid-state`, `no-dirty-log`) if a log is in use or cannot be had."""
    def measured(self) -> tuple[int, int | None] | None:
        """(milliseconds that passed, MiB/s or None if there was nothing to look at); None while it measures."""
    def cut(self) -> None:
        """End it now; no log is held any more when this returns. Idempotent."""

@final
class Events:
    """A subscription to the events of a Control; at most 4096 wait, then the oldest are dropped and `lost` counts them."""

    @property
    def lost(self) -> int: ...
    def next(self, timeout: float | None = None) -> tuple[str, str | None, float] | None:
        """(name, JSON data or None, seconds since the epoch), or None after `timeout` seconds. Releases the interpreter lock."""
    def close(self) -> None: ...

# ---- the two sides (rust/py/src/outgoing.rs, incoming.rs) -----------------------------------------------------------

def check_uri(uri: str) -> None:
    """Raises MigrationError (`bad-uri`) if `uri` cannot be a migration URI; looks at its form only."""

@final
class Outgoing:
    """The source of one migration. Called in this order from one Python thread: connect, setup, run (repeatedly), finish or postcopy, close."""

    def __new__(
        cls,
        control: Control,
        blocks: Sequence[Block],
        *,
        format: Literal["2.9", "7.2", "10.0"] = "7.2",
        section_id: int = 2,
        footers: bool = True,
        switchover_start: bool | None = None,
        dirty_log: Literal["auto", "explicit"] = "auto",
    ) -> Self:
        """`section_id` is that of the `ram` section; `switchover_start` None: as the format has it."""
    def connect(self, uri: str, fd: int | None = None, *, uuid: bytes = ...) -> None:
        """Open the channel, and those of multifd, which say `uuid` (16 bytes, default zeros); may block for sockets. `fd` (owned from here on)
        belongs to `fd:` URIs. Cancellable."""
    @property
    def two_way(self) -> bool:
        """The channel has a return path. Valid after connect."""
    def setup(self, head: bytes, sections: Sequence[bytes | None]) -> None:
        """Send file header and configuration (`head`), the return-path commands, then every START section in handler order; None stands for RAM's own."""
    def run(self, pending: int = 0) -> Literal["switchover", "iterate", "postcopy", "throttle"]:
        """RAM rounds until the machine should be stopped. `pending`: bytes that Python's live handlers still hold; with it, returns "iterate" once a turn so that
        they can write their PART sections. "postcopy": `start_postcopy` was called; stop the machine and call `postcopy`.
        "throttle": take `Control.throttle` percent of their time from the vCPUs, and call this again. Raises MigrationError on failure and cancel."""
    def write(self, data: bytes) -> None:
        """Complete PART sections of Python's live handlers; counted against the rate limit."""
    def finish(self, ends: Sequence[bytes | None], full: bytes, tail: bytes) -> None:
        """The machine is stopped: END sections in handler order (None: RAM's), all FULL sections, fence, check that no writer is left, commit, `tail` (EOF, description),
        and the destination's word. Raises MigrationError; whether the machine is still ours is `Control.owned()`."""
    def postcopy(self, full: bytes, ends: Sequence[bytes] = ...) -> None:
        """The machine is stopped: END sections of Python's live handlers (`ends`), all FULL sections (`full`, no EOF, no description), the hand-over, then the memory
        as the destination asks for it. One call until the destination has everything; a lost connection is waited out in it (status `postcopy-paused`). Raises
        MigrationError; whether the machine is still ours is `Control.owned()`."""
    def close(self) -> None:
        """Close channels, stop dirty logging. Idempotent."""

@final
class SectionEvent:
    """One thing for Python to do. `type`: "configuration", "start", "part", "end", "full", "fence", "run", "eof".

    "fence": the source asks whether all is well, and may give the machine away when the following next() answers.
    "run" (postcopy, instead of "eof"): the source has given the machine away. Check that all is there, start the machine, then call wait(); if it
    cannot be started, finish(1) gives it back, as long as wait() was not called.
    """

    @property
    def type(self) -> Literal["configuration", "start", "part", "end", "full", "fence", "run", "eof"]: ...
    @property
    def offset(self) -> int: ...
    @property
    def section_id(self) -> int: ...
    @property
    def idstr(self) -> str: ...
    @property
    def instance_id(self) -> int: ...
    @property
    def version_id(self) -> int: ...
    @property
    def machine(self) -> str:
        """configuration: machine type name."""
    @property
    def page_bits(self) -> int | None:
        """configuration: log2 of the page size, None if the stream does not say it."""
    @property
    def capabilities(self) -> list[str]:
        """configuration: names of `configuration/capabilities`."""
    @property
    def uuid(self) -> bytes | None: ...

@final
class Life:
    """Signs of life of this process's interpreter, for `Incoming.guard`."""

    def beat(self) -> None:
        """One of them."""

@final
class Incoming:
    """The destination of one migration: listen, accept, then next() until "eof", then finish. One object per attempt.

    In postcopy next() ends with "run": start the machine, then wait(), then close(). From the first device section on the machine's memory may be
    missing: a touch waits inside the kernel until the page is here, and so does whoever needs the interpreter lock of the thread that touched.
    The core's threads bring the pages without that lock. Once next() or section_done() has raised, or finish(1) was called, the pages that are missing read
    zero: the machine is unusable until a reset or another load.
    """

    def __new__(
        cls,
        control: Control,
        blocks: Sequence[Block],
        *,
        configuration: bool = True,
        footers: bool = True,
        description: bool = True,
        cpus: int = 0,
        uuid: bytes = ...,
        limits: tuple[int, int, int] | None = None,
    ) -> Self:
        """`limits`: most sections, most RAM blocks, most bytes of a package. `cpus`: vCPUs of the machine, for `postcopy-blocktime` (0: the threads that ever waited for a page). `uuid`: what multifd channels must
        say, 16 bytes (default zeros)."""
    def listen(self, uri: str, fd: int | None = None) -> str:
        """Bind (sockets) or open (file, fd, exec). Returns the JSON list for `socket-address`. Raises MigrationError at once."""
    def accept(self) -> None:
        """Wait for the main channel. Cancellable by close() from another thread."""
    def next(self) -> SectionEvent:
        """Read up to the next thing that Python must do; RAM and commands are done inside. Raises StreamError."""
    @property
    def reader(self) -> Reader:
        """The payload of the section that next() returned, until section_done()."""
    def section_done(self) -> None:
        """The payload is consumed: check the footer."""
    def wait(self) -> None:
        """After "run", when the machine has been started (or stays paused): wait until its memory is complete. Releases the interpreter lock; may last
        for days, for a lost connection only pauses it (status `postcopy-paused`, `Control.recover`). On return the source has its SHUT 0, and the
        status is `completed`. Raises MigrationError (`cancelled`) after abandon(), and the cause if the machine was aborted before."""
    def hold_ack(self) -> None:
        """Before next(): a device wants more of its state before the machine is stopped, so the capability `switchover-ack` lets the source wait."""
    def devices_ready(self) -> None:
        """They have it now: a source that waits is told. Raises MigrationError if it cannot be told."""
    def guard(self, life: Life, patience: float) -> None:
        """Before the machine is given up in postcopy: if for `patience` seconds somebody waits for a page and `life` has no beat, the process ends
        with status 1 and a line on standard error, until the memory is complete or let go. Once; ValueError for a time that is none."""
    def waiting(self) -> int:
        """How many pages of the machine somebody waits for, in postcopy."""
    def let_go(self) -> None:
        """After abandon(), when the emulator has stopped: nobody acts on the memory any more. Its blocks are free again; a thread that
        waits for a page all the same finds zeros."""
    def abandon(self) -> None:
        """The machine runs and its memory is incomplete, but it will never run again: wait() raises, and threads that wait for a page wait on, until
        let_go() or the end of the process. Before "run" the source gets the machine back, and has a second to hear so. Any thread."""
    def finish(self, status: int = 0) -> None:
        """Answer SHUT(status) if there is a return path, and close. Another status than 0: the machine does not run here; a source that gave it away in
        postcopy gets it back. Without effect after wait()."""
    def close(self) -> None:
        """Cut everything; idempotent, callable from any thread. From "run" on it cuts the connection only, as `Control.pause` does."""

# ---- QMP transport (rust/py/src/monitor.rs) -------------------------------------------------------------------------

@final
class Command:
    """One in-band QMP command that Python must answer exactly once."""

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> str:
        """JSON text of the arguments object (`{}` if there were none)."""
    @property
    def client(self) -> int: ...
    def take_fd(self, name: str) -> int | None:
        """Remove a descriptor stored by `getfd` on this connection; the caller owns the number returned."""
    def reply(self, value: str) -> None:
        """Answer `{"return": value}`; `value` is JSON text."""
    def fail(self, text: str, error_class: str = "GenericError") -> None: ...

@final
class Monitor:
    """QMP for any number of listeners and clients. Answers qmp_capabilities, query-status, query-migrate, migrate_cancel, getfd, closefd, query-version and
    out-of-band commands itself; all else waits for `next_command`."""

    def __new__(cls, control: Control, commands: Sequence[str], package: str) -> Self:
        """`commands`: names that Python answers (for query-commands and CommandNotFound)."""
    def listen(self, address: str) -> str:
        """`unix:PATH` or `tcp:HOST:PORT` (port 0: chosen). Returns the bound address in the same form. Raises MigrationError `listen`."""
    def next_command(self, timeout: float | None = None) -> Command | None:
        """The next in-band command in arrival order per client; None after `timeout` seconds or close()."""
    def arm_exit(self, seconds: float) -> None:
        """`quit` or SIGTERM: if close() was not called within `seconds`, a core thread ends the process with status 0."""
    def handle_signals(self) -> None:
        """Catch SIGTERM, SIGINT, SIGHUP, whichever threads there are; a core thread turns each into a `quit` command, then arm_exit. This thread, and
        those that it starts later, mask them."""
    def close(self) -> None: ...

# ---- missing pages without a migration (rust/py/src/faults.rs) ------------------------------------------------------

@final
class FaultService:
    """A block whose missing pages are served from a page source, by threads of the core. `qmig_e2k.faults` has the face for users."""

    @staticmethod
    def arm(block: Block, source: Buffer | int) -> FaultService:
        """Empty the block and serve it. `source`: a contiguous buffer, or a descriptor (a regular file or a connected stream socket) that is the
        service's from here on, also if this fails. Raises MigrationError (`invalid-argument`, `not-permitted`, `invalid-state`)."""
    def stats(self) -> str:
        """JSON object: `pages`, `received`, `requests`, `outstanding`, `unrecorded`, `error` (text or null), `phases`."""
    def close(self, fill: bool = True) -> None:
        """End the service; with `fill` what is missing is fetched before, without it reads zero. Raises what the source failed of (then the block stays armed)."""

# ---- model guest (rust/py/src/guest.rs) -----------------------------------------------------------------------------

@final
class ModelGuest:
    """Deterministic vCPU threads over one block. Their whole state is 16 u64 registers each, readable and settable while stopped."""

    REGISTERS: int
    def __new__(cls, block: Block, spec: str, *, seed: int = 0, threads: int = 1) -> Self:
        """`spec` as in `--guest` (`idle`, `seq`, `random`, `zipf`; threads=, wss=, rate=, read=). Raises ValueError with the reason."""
    @property
    def threads(self) -> int: ...
    def start(self) -> None: ...
    def stop(self) -> None:
        """Returns when every vCPU has finished its step."""
    @property
    def running(self) -> bool: ...
    def registers(self, vcpu: int) -> list[int]: ...
    def set_registers(self, vcpu: int, values: Sequence[int]) -> None: ...
    def steps(self) -> int: ...
    def verify(self) -> tuple[int, bool, int | None]:
        """Replay all steps on fresh memory: (steps, equal, first differing offset). Raises MigrationError while running."""
    def throttle(self, percent: int) -> None: ...

# ---- experiments (rust/py/src/lab.rs) -------------------------------------------------------------------------------

@final
class Toucher:
    """A thread of the core that touches the pages of a block and measures each touch."""

    def __new__(
        cls,
        block: Block,
        *,
        order: str = "random",
        seed: int = 0,
        page: int = 4096,
        write: bool = False,
        faults: int = 0,
    ) -> Self:
        """Touches one word in every `page` bytes, in the `order` `seq`, `random` (each page once) or `zipf`; ends after `faults` faults (0: with the order).
        Raises ValueError with the reason."""
    @staticmethod
    def fill(block: Block) -> None:
        """Give the block the content by which a toucher knows its pages: every byte of page n is n % 251 + 1."""
    def order(self, count: int) -> list[int]:
        """The first `count` pages in the order in which they are touched; the seed alone makes it."""
    def start(self) -> None:
        """Begin; nothing if it has begun before."""
    def stop(self) -> None:
        """End after the present touch; returns then."""
    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; False if it has not come within `timeout` seconds."""
    def record(self) -> str:
        """JSON: `touches`, `wrong` (pages with another content than `fill` gave), `seconds` (null until the end), `faults`: {count, p50_ns, p90_ns, p99_ns,
        p999_ns, max_ns, mean_ns, buckets} of the touches that took more than 2 us, as the touching thread saw them."""

@final
class Shaper:
    """A relay to a port of 127.0.0.1 that is a link of a known length and speed. Runs in threads of the core."""

    def __new__(cls, port: int, *, delay_us: int = 0, mbit: int = 0) -> Self:
        """One-way delay, and bandwidth each way shared by all connections (0: no limit)."""
    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
    def close(self) -> None:
        """Cut all connections and end the threads. Idempotent."""
