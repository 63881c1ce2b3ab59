"""The oracle: a whole stream, read as spec/stream.md has it and nothing else.

It was written from that document alone, to disagree with the decoder in Rust wherever one of the two is wrong. Slow and
obvious comes first: bytes in, one `Reading` or one `Refused` out. Where the document leaves a reader the choice, the
choice is the project's: the stricter one, said in docs/reference/errors.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from oracle.channels import Channels
from oracle.devices import subsection
from oracle.memory import PAGE, Block, Memory
from oracle.source import Refused, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

START, PART, END, FULL, SUBSECTION, DESCRIPTION, CONFIGURATION, COMMAND, FOOTER = 1, 2, 3, 4, 5, 6, 7, 8, 0x7E
NAME_MAX, CAPABILITIES_MAX = 255, 64
CAPABILITIES = {b"x-ignore-shared", b"mapped-ram"}
RAM_VERSION = 4

COMMANDS = {
    1: ("OPEN_RETURN_PATH", {0}),
    2: ("PING", {4}),
    3: ("POSTCOPY_ADVISE", {0, 16}),
    4: ("POSTCOPY_LISTEN", {0}),
    5: ("POSTCOPY_RUN", {0}),
    6: ("POSTCOPY_RAM_DISCARD", None),
    7: ("PACKAGED", {4}),
    8: ("ENABLE_COLO", {0}),
    9: ("POSTCOPY_RESUME", {0}),
    10: ("RECV_BITMAP", None),
    11: ("SWITCHOVER_START", {0}),
}
"""Section 7.1: number to name and lengths."""


class Devices(Protocol):
    """Consumes the payload of a device, and raises KeyError for one that it does not know."""

    def __call__(self, source: Source, idstr: bytes, instance: int, version: int) -> None: ...


class Announced(NamedTuple):
    """What a START or FULL said."""

    kind: int
    idstr: bytes
    instance: int
    version: int

    @property
    def ram(self) -> bool:
        return (self.idstr, self.instance) == (b"ram", 0)


@dataclass
class Reading:
    """What was read, up to the end or the refusal.

    Attributes:
        elements: kind, offset and what is in it, in order.
        blocks: RAM.
        refused: why the rest was not read.
    """

    elements: list[dict[str, Any]] = field(default_factory=list)
    blocks: dict[bytes, Block] = field(default_factory=dict)
    refused: Refused | None = None


class Reader:
    """One stream.

    Args:
        data: the main channel.
        devices: consumes the payloads of sections other than RAM.
        local: length of every block here; None: whatever the stream says.
    """

    def __init__(self, data: bytes, devices: Devices, local: dict[bytes, int] | None = None) -> None:
        self.source = Source(data)
        self.devices = devices
        self.memory = Memory(self.source, local)
        self.machine: bytes | None = None
        """The machine type here, if there is a machine."""
        self.capabilities = CAPABILITIES
        """Those that change the stream in a way that is known here."""
        self.announced: dict[int, Announced] = {}
        self.made = Reading(blocks=self.memory.blocks)
        self.package_end: int | None = None

    def read(self) -> Reading:
        channels = self.memory.channels
        try:
            self._header()
            self._elements()
            if channels is not None:
                channels.finish()
        except Refused as refused:
            # no frames: they would keep what their callers hold, files among it
            self.made.refused = refused.with_traceback(None)
        return self.made

    def _refuse(self, kind: str, offset: int) -> Refused:
        return self.source.refused(kind, offset)

    def _add(self, kind: str, offset: int, **more: Any) -> None:
        self.made.elements.append({"type": kind, "offset": offset} | more)

    # -- 1.2, 1.3

    def _header(self) -> None:
        if self.source.number(4) != 0x5145564D:
            raise self._refuse("bad-magic", 0)
        version = self.source.number(4)
        if version != 3:
            raise self._refuse("obsolete-version" if version == 2 else "bad-version", 4)
        if self.source.peek(1) == bytes([CONFIGURATION]):
            self._configuration()
        elif self.machine is not None and self.source.left():
            raise self._refuse("bad-configuration", self.source.at)

    def _configuration(self) -> None:
        source = self.source
        begin = source.at
        source.number(1)
        at = source.at
        length = source.number(4)
        if length > NAME_MAX:
            raise self._refuse("limit-exceeded", at)
        made: dict[str, Any] = {"machine": source.raw(length), "target_page_bits": None, "capabilities": []}
        made["uuid"] = None
        seen = set()
        while (name := subsection(source, b"configuration", only=True)) is not None:
            at = source.at
            source.number(1)
            source.text()
            if name in seen:
                raise self._refuse("bad-configuration", at)
            seen.add(name)
            part = name.removeprefix(b"configuration")
            if part not in {b"/target-page-bits", b"/capabilities", b"/uuid"}:
                raise self._refuse("bad-configuration", at)
            at = source.at
            if source.number(4) != 1:
                raise self._refuse("bad-version", at)
            at = source.at
            if part == b"/uuid":
                made["uuid"] = source.raw(16)
            elif part == b"/target-page-bits":
                made["target_page_bits"] = source.number(4)
                if made["target_page_bits"] != 12:
                    raise self._refuse("bad-configuration", at)
            else:
                count = source.number(4)
                if count > CAPABILITIES_MAX:
                    raise self._refuse("limit-exceeded", at)
                for _ in range(count):
                    at = source.at
                    name = source.text()
                    if name not in CAPABILITIES:
                        raise self._refuse("bad-configuration", at)
                    if name not in self.capabilities:
                        raise self._refuse("bad-configuration" if name == b"mapped-ram" else "unsupported", at)
                    made["capabilities"].append(name)
        if self.machine not in {None, made["machine"]}:
            raise self._refuse("bad-configuration", begin)
        self.memory.mapped = b"mapped-ram" in made["capabilities"]
        self.memory.shared = b"x-ignore-shared" in made["capabilities"]
        self._add("configuration", begin, **made)

    # -- 2

    def _elements(self) -> None:
        source = self.source
        while True:
            begin = source.at
            kind = source.number(1)
            if kind == 0:
                if self._in_package(begin):
                    raise self._refuse("unknown-element", begin)
                self._add("eof", begin)
                self._behind()
                return
            if kind in {START, FULL}:
                self._announce(kind, begin)
            elif kind in {PART, END}:
                at = source.number(4)
                if at not in self.announced:
                    raise self._refuse("unknown-section", begin)
                if self.announced[at].kind == FULL:
                    raise self._refuse("unknown-section", begin)
                self._section(kind, begin, at)
            elif kind == COMMAND:
                self._command(begin)
            else:
                raise self._refuse("unknown-element", begin)

    def _announce(self, kind: int, begin: int) -> None:
        source = self.source
        number = source.number(4)
        at = source.at
        idstr = source.text()
        if not idstr:
            raise self._refuse("unknown-section", at)
        instance = source.number(4)
        version_at = source.at
        said = Announced(kind, idstr, instance, source.number(4))
        if said.ram and kind == FULL:
            raise self._refuse("unknown-section", begin)
        before = self.announced.get(number)
        # 14.1: an id stands for one handler; a FULL may come twice (2.2), a START may not
        if before is not None and (kind == START or before[:3] != said[:3]):
            raise self._refuse("duplicate-section", begin)
        if kind == START and said[:3] in {other[:3] for other in self.announced.values()}:
            raise self._refuse("duplicate-section", begin)
        self.announced[number] = said
        if said.ram and said.version != RAM_VERSION:
            raise self._refuse("bad-version", version_at)
        self._section(kind, begin, number)

    def _section(self, kind: int, begin: int, number: int) -> None:
        said = self.announced[number]
        source = self.source
        more: dict[str, Any] = {"section_id": number, "idstr": said.idstr, "instance_id": said.instance}
        more["version_id"] = said.version
        if said.ram:
            more["pages"] = self.memory.section(start=kind == START)
        else:
            payload = source.at
            try:
                self.devices(source, said.idstr, said.instance, said.version)
            except KeyError:
                raise self._refuse("unknown-section", begin) from None
            more["size"] = source.at - payload
        at = source.at
        if source.number(1) != FOOTER:
            raise self._refuse("bad-footer", at)
        if source.number(4) != number:
            raise self._refuse("bad-footer", at)
        names = {START: "start", PART: "part", END: "end", FULL: "full"}
        self._add(names[kind], begin, **more)

    # -- 7

    def _command(self, begin: int) -> None:
        source = self.source
        number = source.number(2)
        if number not in COMMANDS:
            raise self._refuse("bad-command", begin)
        name, lengths = COMMANDS[number]
        at = source.at
        length = source.number(2)
        if lengths is not None and length not in lengths:
            raise self._refuse("bad-command", at)
        body = Source(source.data[: source.at + length], source.channel)
        body.at = source.at
        if source.left() < length:
            raise self._refuse("truncated", source.at)
        more: dict[str, Any] = {"name": name, "number": number}
        if name == "PING":
            more["token"] = body.number(4)
        elif name == "POSTCOPY_ADVISE" and length:
            more["page_sizes"], more["target_page"] = body.number(8), body.number(8)
            self.memory.page_sizes = more["page_sizes"]
        elif name == "RECV_BITMAP":
            if length < 2:
                raise self._refuse("bad-command", at)
            more["block"] = self._name(body)
            self._over(body)
        elif name == "POSTCOPY_RAM_DISCARD":
            if length < 20:
                raise self._refuse("bad-command", at)
            more |= self._discard(body)
        elif name == "PACKAGED":
            if self._in_package(begin):
                raise self._refuse("bad-command", begin)
            more["size"] = body.number(4)
        source.at += length
        if name == "PACKAGED":
            self.package_end = source.at + more["size"]
        elif name == "POSTCOPY_RUN":
            self.package_end = None
        self._add("command", begin, **more)

    def _in_package(self, at: int) -> bool:
        """RUN ends a package (7.5); one that never comes does not keep a file from being read on behind its end."""
        return self.package_end is not None and at < self.package_end

    def _name(self, body: Source) -> bytes:
        """A block's name in a command."""
        at = body.at
        if body.left() < 1 + body.peek(1)[0] or not body.peek(1)[0]:
            raise self._refuse("bad-command", at)
        return body.text()

    def _over(self, body: Source) -> None:
        if body.left():
            raise self._refuse("bad-command", body.at)

    def _discard(self, body: Source) -> dict[str, Any]:
        """7.6."""
        at = body.at
        if body.number(1) != 0:
            raise self._refuse("bad-command", at)
        name = self._name(body)
        at = body.at
        if not body.left() or body.number(1) != 0:
            raise self._refuse("bad-command", at)
        ranges = []
        while body.left() >= 16:
            at = body.at
            first, count = body.number(8), body.number(8)
            if count == 0 or first % PAGE or count % PAGE or first + count >= 1 << 64:
                raise self._refuse("bad-command", at)
            ranges.append((first, count))
        if not ranges:
            raise self._refuse("bad-command", body.at)
        self._over(body)
        return {"block": name, "ranges": ranges}

    # -- 1.4, 2.6

    def _behind(self) -> None:
        """What follows the end marker."""
        source = self.source
        begin = source.at
        if not source.left():
            return
        if source.peek(1) != bytes([DESCRIPTION]):
            raise self._refuse("trailing-data", begin)
        source.number(1)
        length = source.number(4)
        text = source.raw(length)
        self._add("description", begin, length=length, text=text)
        if source.left():
            raise self._refuse("trailing-data", source.at)


def read(
    data: bytes, devices: Devices, local: dict[bytes, int] | None = None, channels: Sequence[bytes] = ()
) -> Reading:
    """All of a stream.

    Args:
        data: the main channel.
        devices: consumes a device's payload: `devices(source, idstr, instance, version)`; KeyError: not known.
        channels: multifd channels.
    """
    reader = Reader(data, devices)
    if channels:
        reader.memory.channels = Channels(channels, reader.memory.blocks)
    return reader.read()
