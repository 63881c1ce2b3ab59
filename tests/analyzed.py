"""Streams for the tests of the analyser: recorded ones, one of our own machine with everything in it, made-up ones."""

from __future__ import annotations

import json
import lzma
import struct
from functools import cache
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k import build
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
from qmig_e2k.testing import filled
from support import PAGE, STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORDED = sorted(path.stem for path in STREAMS.glob("*.json"))


@cache
def facts(name: str) -> dict[str, Any]:
    """What is known of a recorded stream."""
    made: dict[str, Any] = json.loads((STREAMS / f"{name}.json").read_text())
    return made


@cache
def recorded(name: str) -> list[bytes]:
    """The files of a recorded stream, main channel first."""
    return [lzma.decompress((STREAMS / file).read_bytes()) for file in facts(name)["files"]]


def start(blocks: dict[bytes, int], section_id: int = 2) -> bytes:
    """START, PART and END of RAM that is all zero."""
    header = b"\1" + struct.pack(">I", section_id) + b"\3ram" + struct.pack(">II", 0, 4)
    listed = b"".join(bytes([len(name)]) + name + struct.pack(">Q", size) for name, size in blocks.items())
    total = struct.pack(">Q", sum(blocks.values()) | 4)
    end = struct.pack(">Q", 16) + b"\x7e" + struct.pack(">I", section_id)
    pages = b"".join(
        struct.pack(">QB", offset | 2, len(name)) + name + b"\0"
        for name, size in blocks.items()
        for offset in range(0, size, PAGE)
    )
    part, last = (bytes([kind]) + struct.pack(">I", section_id) for kind in (2, 3))
    return header + total + listed + end + part + pages + end + last + end


def stream(devices: Iterable[bytes], tail: bytes = b"\0", head: bytes = b"QEVM\0\0\0\3\7\0\0\0\4none") -> bytes:
    """A stream with a page of RAM and these sections."""
    return head + start({b"ram": PAGE}) + b"".join(devices) + tail


def full(name: bytes, payload: bytes, *, section_id: int = 9, instance: int = 0, version: int = 1) -> bytes:
    """A FULL section."""
    header = b"\4" + struct.pack(">IB", section_id, len(name)) + name + struct.pack(">II", instance, version)
    return header + payload + b"\x7e" + struct.pack(">I", section_id)


def described(*devices: dict[str, Any]) -> bytes:
    """End marker and description."""
    text = json.dumps({"page_size": PAGE, "devices": devices}).encode()
    return b"\0\6" + struct.pack(">I", len(text)) + text


@cache
def our_stream(model: str = "e16c", *, description: bool = True, fill: bool = True) -> bytes:
    """A stream of the full machine with two CPUs, every option, and every register off its reset value if `fill`."""
    machine = build("e2k-1.0", 16 * PAGE, cpus=2, model=model, options=("rtc", "lmscon", "spmc", "i2c-spi", "gpio"))
    if fill:
        filled(machine)
    profile = Profile("7.2", description=description)
    registry = Registry(profile)
    machine.register(registry, VirtualClock(), GlobalState(profile))
    head, configuration = stream_head(Configuration(machine.wire_name), profile)
    saved = save_full(registry)
    blocks = {block.name.encode(): 16 * PAGE for block in machine.blocks}
    return head + start(blocks) + saved.data + stream_tail(profile, saved.devices, configuration)
