"""Random whole streams: any format, any records of RAM in any order, devices of any shape, and what all of it means."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from qmig_e2k.codec import xbzrle_encode
from qmig_e2k.e2k.machines import bare
from qmig_e2k.savevm import (
    Configuration,
    GlobalState,
    Profile,
    Registry,
    VirtualClock,
    save_full,
    stream_head,
    stream_tail,
)
from qmig_e2k.savevm.sections import SECTION_END, SECTION_FOOTER, SECTION_PART, SECTION_START
from qmig_e2k.testing.strategies.devices import Device, devices

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from qmig_e2k.savevm import Entry
    from qmig_e2k.vmstate import Format

PAGE = 4096
_COMMAND = 0x08
_ZERO, _SIZES, _RAW, _EOS, _CONTINUE, _XBZRLE, _ZLIB = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x100
_OPEN_RETURN_PATH, _PING = 1, 2
_RAM_VERSION = 4


@dataclass(repr=False)
class Stream:
    """A stream, and what it says.

    Attributes:
        elements: its top-level elements in order, header and configuration first.
        machine: machine type on the wire.
        profile: what format it is in.
        blocks: RAM blocks, bytes of each by name.
        memory: what they hold at the end; a page that does not travel is zero.
        encodings: how pages travel in it.
        devices: those that it has besides `timer` and `globalstate`.
    """

    elements: list[bytes]
    machine: str
    profile: Profile
    blocks: dict[str, int]
    memory: dict[str, bytes]
    encodings: set[str] = field(default_factory=set)
    devices: list[Device] = field(default_factory=list)

    def __repr__(self) -> str:
        """How each element begins: an example that fails is shown, and pages say little."""
        shown = [f"{len(element)} bytes {element[:40].hex()}" for element in self.elements]
        return f"Stream({self.machine!r}, {self.profile}, {self.blocks}, {shown}, {self.devices})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every field

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self.elements)

    @property
    def offsets(self) -> list[int]:
        """Where each element begins."""
        made = [0]
        for element in self.elements[:-1]:
            made.append(made[-1] + len(element))
        return made


def pages() -> st.SearchStrategy[bytes]:
    """A page of 4 KiB as they are found in memory: of one byte, of text, of noise, or mostly zero."""
    return st.tuples(st.integers(0, 3), st.integers(0, 1 << 32)).map(_page)


def _page(drawn: tuple[int, int]) -> bytes:
    kind, seed = drawn
    if kind == 0:
        return bytes([seed & 0xFF]) * PAGE
    if kind == 1:
        return (b"page %d of a guest's text; " % seed * 500)[:PAGE]
    noise = random.Random(seed)  # noqa: S311  no secret
    if kind == 2:
        return noise.randbytes(PAGE)
    made = bytearray(PAGE)
    for _ in range(noise.randrange(1, 20)):
        made[noise.randrange(PAGE)] = noise.randrange(256)
    return bytes(made)


@st.composite
def streams(
    draw: st.DrawFn,
    machine: str = "none",
    *,
    formats: Collection[Format] = ("2.9", "7.2", "10.0"),
    blocks: Mapping[str, int] | None = None,
    encodings: Collection[str] = ("zero", "page", "xbzrle", "zlib"),
    commands: bool = True,
    switches: bool = True,
    max_devices: int = 2,
) -> Stream:
    """A stream of a migration that a reader must accept which knows the devices.

    Args:
        draw: hypothesis' own.
        machine: machine type; its devices are not in the stream, those that are drawn stand for them.
        formats: whose layout, one of them.
        blocks: RAM blocks by name, bytes each; None: one to three of up to eight pages.
        encodings: how pages may travel, some of `zero`, `page`, `xbzrle` and `zlib` (at least one of the first two).
        commands: there may be commands of a source that has a way back.
        switches: configuration, footers and description may be off.
        max_devices: devices of random descriptions that are in it at most.
    """
    on = st.booleans() if switches else st.just(value=True)
    profile = Profile(
        draw(st.sampled_from(list(formats))), configuration=draw(on), footers=draw(on), description=draw(on)
    )
    if blocks is None:
        sizes = st.integers(1, 8).map(lambda count: count * PAGE)
        blocks = draw(st.dictionaries(st.sampled_from(["ram", "vga.vram", "pc.bios", "x" * 255]), sizes, min_size=1))
    hardware = bare(machine)
    registry = Registry(profile)
    hardware.register(registry, VirtualClock(), GlobalState(profile))
    some = [draw(devices(f"dev{index}", depth=1)) for index in range(draw(st.integers(0, max_devices)))]
    for device in some:
        registry.register_description(device.description, device.values)

    head, described = stream_head(Configuration(hardware.wire_name), profile)
    assert registry.ram is not None
    ram = _Ram(registry.ram, profile, blocks, list(encodings))
    elements = [head[:8], head[8:]] if profile.configuration else [head]
    if commands and draw(st.booleans()):
        elements.append(_command(_OPEN_RETURN_PATH))
    elements.append(ram.start())
    for _ in range(draw(st.integers(0, 3))):
        elements.append(ram.section(draw, SECTION_PART))
        if commands and draw(st.booleans()):
            elements.append(_command(_PING, struct.pack(">I", draw(st.integers(0, (1 << 32) - 1)))))
    elements.append(ram.section(draw, SECTION_END))
    saved: list[Any] = []
    for entry in registry:
        if not entry.handler.live:
            section, description = _full(entry, profile)
            elements.append(section)
            saved += description
    tail = stream_tail(profile, saved, described)
    elements += [tail[:1], tail[1:]] if len(tail) > 1 else [tail]
    memory = {name: bytes(content) for name, content in ram.memory.items()}
    return Stream(elements, hardware.wire_name, profile, dict(blocks), memory, ram.used, some)


def _full(entry: Entry, profile: Profile) -> tuple[bytes, list[Any]]:
    """The FULL section of one device, and its part of the description."""
    alone = Registry(profile)
    alone.register(entry.idstr, entry.handler, instance_id=entry.instance_id, section_id=entry.section_id)
    made = save_full(alone)
    return made.data, list(made.devices)


def _command(number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BHH", _COMMAND, number, len(payload)) + payload


def _counted(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


class _Ram:
    """The sections of RAM, and the memory that they make."""

    def __init__(self, entry: Entry, profile: Profile, blocks: Mapping[str, int], encodings: list[str]) -> None:
        self.memory = {name: bytearray(size) for name, size in blocks.items()}
        self.used: set[str] = set()
        self._entry = entry
        self._footer = struct.pack(">BI", SECTION_FOOTER, entry.section_id) if profile.footers else b""
        self._encodings = encodings
        self._current: str | None = None
        self._packed: set[tuple[str, int]] = set()
        self._touched: set[tuple[str, int]] = set()

    def start(self) -> bytes:
        total = sum(map(len, self.memory.values()))
        listed = b"".join(_counted(name) + struct.pack(">Q", len(content)) for name, content in self.memory.items())
        header = struct.pack(">BI", SECTION_START, self._entry.section_id) + _counted("ram")
        header += struct.pack(">II", self._entry.instance_id, _RAM_VERSION)
        return header + struct.pack(">Q", total | _SIZES) + listed + struct.pack(">Q", _EOS) + self._footer

    def section(self, draw: st.DrawFn, kind: int) -> bytes:
        self._packed.clear()
        self._touched.clear()
        records = [self._record(draw) for _ in range(draw(st.integers(0, 4)))]
        header = struct.pack(">BI", kind, self._entry.section_id)
        return header + b"".join(records) + struct.pack(">Q", _EOS) + self._footer

    def _record(self, draw: st.DrawFn) -> bytes:
        name = draw(st.sampled_from(sorted(self.memory)))
        offset = draw(st.integers(0, len(self.memory[name]) // PAGE - 1)) * PAGE
        place = slice(offset, offset + PAGE)
        if (name, offset) in self._packed:
            return b""  # readers unpack the pages of a section in any order (stream.md 6.2)
        flag, content, payload = self._encoded(draw, bytes(self.memory[name][place]), (name, offset) in self._touched)
        (self._packed if flag == _ZLIB else self._touched).add((name, offset))
        self.memory[name][place] = content
        elided = name == self._current and draw(st.booleans())
        self._current = name
        return (
            struct.pack(">Q", offset | flag | (_CONTINUE if elided else 0))
            + (b"" if elided else _counted(name))
            + payload
        )

    def _encoded(self, draw: st.DrawFn, before: bytes, again: bool) -> tuple[int, bytes, bytes]:
        """Flag of the record, the page that it makes, and what stands in it; `again`: not the first of its section."""
        how = draw(st.sampled_from(self._encodings))
        if how == "zlib" and again:
            how = "page"
        content = bytes(PAGE) if how == "zero" else draw(pages())
        if how == "xbzrle":
            begin = draw(st.integers(0, PAGE - 1))
            content = before[:begin] + content[begin : begin + 32] + before[begin + 32 :]
            delta = xbzrle_encode(before, content)
            if delta:
                self.used.add(how)
                return _XBZRLE, content, struct.pack(">BH", 1, len(delta)) + delta
            how = "page"
        self.used.add(how)
        if how == "zero":
            return _ZERO, content, b"\0"
        if how == "zlib":
            packed = zlib.compress(content, draw(st.integers(0, 9)))
            return _ZLIB, content, struct.pack(">I", len(packed)) + packed
        return _RAW, content, content
