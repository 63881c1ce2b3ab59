"""What an analysis consists of: plain data with the shape of contract section 2, and how it becomes a JSON record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k._core import StoredStream

SCHEMA = "qmig_e2k/analyze/1"

Value = Any
"""int, bool, float, None (a null pointer), str (bytes in hex), `Body` (a structure), or a list of these."""


@dataclass(slots=True)
class Field:
    """One field of a device.

    Attributes:
        name: its name; repeated ones are `name[k]`.
        type: type name, as in the JSON description of a stream (spec/stream.md 3.5).
        offset: stream offset of the first byte.
        size: bytes in the stream.
        value: what was read.
    """

    name: str
    type: str
    offset: int
    size: int = 0
    value: Value = None


@dataclass(slots=True)
class Body:
    """The fields of a device, structure or subsection, in stream order.

    Attributes:
        name: name of the description.
        version: version in the stream; that of the description where the stream has none (nested structures).
        fields: the fields.
        subsections: optional parts that are there.
    """

    name: str
    version: int
    fields: list[Field] = field(default_factory=list)
    subsections: list[Body] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Values by name; structures as dicts, their subsections under `subsections`."""
        made = {item.name: plain(item.value) for item in self.fields}
        if self.subsections:
            made["subsections"] = {part.name: part.record() for part in self.subsections}
        return made

    def record(self) -> dict[str, Any]:
        """The same with the version apart from the fields."""
        made: dict[str, Any] = {
            "version": self.version,
            "fields": {item.name: plain(item.value) for item in self.fields},
        }
        if self.subsections:
            made["subsections"] = {part.name: part.record() for part in self.subsections}
        return made


NESTED = frozenset((Body, list))


def plain(value: Value) -> Any:
    """A value with structures as dicts."""
    if isinstance(value, Body):
        return value.plain()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def leaves(body: Body, prefix: str = "") -> Iterator[tuple[str, Field, Value]]:
    """Every number, buffer and array of numbers in a body: path (`chn[0].wregs`, `cpu/wd/tag.x`), field, value.

    An array of one structure looks like the structure itself: a stream's description does not tell them apart.
    """
    for item in body.fields:
        yield from _leaves(f"{prefix}{item.name}", item, item.value)
    for part in body.subsections:
        yield from leaves(part, f"{prefix}{part.name}.")


def _leaves(path: str, item: Field, value: Value) -> Iterator[tuple[str, Field, Value]]:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Body):
        yield from leaves(value, f"{path}.")
    elif isinstance(value, list) and not NESTED.isdisjoint(map(type, value)):
        for index, element in enumerate(value):
            yield from _leaves(f"{path}[{index}]", item, element)
    else:
        yield path, item, value


@dataclass(slots=True)
class Device:
    """One section that is not RAM.

    Attributes:
        name: idstr of the section.
        instance_id: which of several of that name.
        version: version in the section header.
        offset: stream offset of the section's first byte.
        size: bytes of the payload.
        kind: `full`, or `start`, `part`, `end` of a live handler.
        body: the fields; a single `data` where no layout is known.
        source: whose layout it was: `description` (in the stream), `ours`, `none`.
        disagreements: where the stream's description and ours differ: dicts with `path`, `what`, `stream`, `ours`.
        reset: values after power-on by path, where the device is one of ours.
        note: what there is to say about it.
        partial: the stream is damaged inside.
    """

    name: str
    instance_id: int
    version: int
    offset: int
    size: int
    kind: str
    body: Body
    source: str = "none"
    disagreements: list[dict[str, Any]] = field(default_factory=list)
    reset: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    partial: bool = False

    @property
    def path(self) -> str:
        """`name/instance`, as in errors."""
        return f"{self.name}/{self.instance_id}"

    @property
    def changed(self) -> set[str]:
        """Paths of what is not at its value after power-on; empty for devices that are none of ours."""
        return {path for path, _, value in leaves(self.body) if path in self.reset and self.reset[path] != value}

    def record(self) -> dict[str, Any]:
        """The JSON object."""
        made: dict[str, Any] = {
            "name": self.name,
            "instance_id": self.instance_id,
            "version": self.version,
            "offset": self.offset,
            "size": self.size,
            "fields": {item.name: plain(item.value) for item in self.body.fields},
            "subsections": {part.name: part.record() for part in self.body.subsections},
        }
        if self.kind != "full":
            made["kind"] = self.kind
        for name in ("disagreements", "note", "partial"):
            if value := getattr(self, name):
                made[name] = value
        return made


@dataclass(slots=True)
class Block:
    """One RAM block.

    Attributes:
        name: its name.
        raw_name: the name's bytes.
        size: used length in bytes.
        page_size: bytes of a page of the backing memory (the target page unless the stream says otherwise).
        sha256: hash over the used length, in hex; None if a page did not come, or was not asked for.
        complete: every page came.
        address: guest address, where the stream says it.
    """

    name: str
    raw_name: bytes
    size: int
    page_size: int
    sha256: str | None = None
    complete: bool = False
    address: int | None = None

    def record(self) -> dict[str, Any]:
        """The JSON object."""
        made: dict[str, Any] = {
            "name": self.name,
            "size": self.size,
            "page_size": self.page_size,
            "sha256": self.sha256,
            "complete": self.complete,
        }
        if self.address is not None:
            made["address"] = self.address
        return made


@dataclass(slots=True)
class Analysis:
    """Everything about one stream.

    Attributes:
        version: version in the file header; None if the stream does not begin with one.
        length: bytes of the main channel.
        configuration: `offset`, `machine`, `target_page_bits`, `capabilities`, `uuid` (hex); None if there is none.
        blocks: RAM blocks.
        pages: how many came, by coding.
        channels: what each multifd channel brought.
        devices: sections other than RAM, in order.
        commands: `name`, `number`, `offset` and arguments, in order.
        description: `offset` and `length` of the JSON description; None if there is none.
        end_offset: offset behind the last element that was read.
        error: `kind`, `offset`, `path`, `message` of the damage; None if there is none.
        notes: what else there is to say.
        files: device and inode of the stream's files.
    """

    length: int
    version: int | None = None
    configuration: dict[str, Any] | None = None
    blocks: list[Block] = field(default_factory=list)
    pages: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("normal", "zero", "xbzrle", "compressed", "multifd"), 0)
    )
    channels: list[dict[str, Any]] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    description: dict[str, int] | None = None
    end_offset: int = 0
    error: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    files: frozenset[tuple[int, int]] = frozenset()
    stream: StoredStream | None = field(default=None, repr=False)

    @property
    def machine(self) -> str | None:
        """Machine type on the wire."""
        return None if self.configuration is None else str(self.configuration["machine"])

    @property
    def complete(self) -> bool:
        """The stream was read to its end."""
        return self.error is None

    def read_ram(self, block: int, offset: int, length: int) -> bytearray:
        """Whole pages of a block by its index in `blocks`, in bytes; what did not come reads as zero.

        Raises:
            MigrationError: `invalid-argument`: no whole pages of a block.
        """
        assert self.stream is not None
        return self.stream.read(block, offset, length)

    def ram_runs(self, block: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what came of a block and may be other than zero, ascending.

        Raises:
            MigrationError: the stream's file can no longer be read.
        """
        assert self.stream is not None
        at = 0
        while (run := self.stream.next_run(block, at)) is not None:
            yield run
            at = sum(run)

    def record(self) -> dict[str, Any]:
        """The JSON record (contract section 2)."""
        made: dict[str, Any] = {
            "schema": SCHEMA,
            "version": self.version,
            "machine": self.machine,
            "configuration": self.configuration,
            "ram": {"blocks": [block.record() for block in self.blocks], "pages": self.pages},
            "devices": [device.record() for device in self.devices],
            "commands": self.commands,
            "end_offset": self.end_offset,
            "complete": self.complete,
        }
        if self.channels:
            made["ram"]["channels"] = self.channels
        if self.notes:
            made["notes"] = self.notes
        if self.error is not None:
            made["error"] = self.error
        return made
