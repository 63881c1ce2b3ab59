"""Streams that must be refused: one clear error, nothing written outside a block, and a good stream still loads.

Each case changes one thing in a stream that our own writer made. The machine under test has two blocks with guards
around them, and one device that checks what it reads.
"""

import json
import mmap
import struct
from dataclasses import dataclass, field

import numpy as np
import pytest

from elements import take_apart
from qmig_e2k import StreamError, Vm
from qmig_e2k.vmstate import VMStateDescription, uint8, uint32, uint32_equal, varray, vbuffer
from support import PAGE, assert_same_memory, mixed_ram

RAM, AUX, GUARD = 16 * PAGE, 4 * PAGE, 4 * PAGE
CONTENT = {"ram": mixed_ram(RAM), "aux": mixed_ram(AUX, seed=2)}
WORD = 0xAAAAAAAA


@dataclass
class Device:
    """State of `dev`."""

    kind: int = 7
    count: int = 2
    values: list[int] = field(default_factory=lambda: [1, 2, 0, 0])
    size: int = 3
    data: bytearray = field(default_factory=lambda: bytearray(b"abc\0"))
    level: int = 0

    def check(self, _version: int) -> None:
        if self.level > 9:
            raise ValueError(f"level {self.level} is above 9")


DEV = VMStateDescription(
    "dev",
    version_id=2,
    minimum_version_id=2,
    fields=[
        uint32_equal("kind"),
        uint32("count"),
        varray("values", uint32, "count"),
        uint32("size"),
        vbuffer("data", "size"),
        uint8("level"),
    ],
    post_load=Device.check,
)
LEVEL = 4 + 4 + 2 * 4 + 4 + 3  # offset of `level` in the payload


class Target:
    """A machine whose blocks have guards around them."""

    def __init__(self, **options) -> None:
        self.memory = mmap.mmap(-1, 3 * GUARD + RAM + AUX, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        self.bytes[:] = 0xAA
        self.vm = Vm("none", **options)
        parts = {"ram": (GUARD, RAM), "aux": (2 * GUARD + RAM, AUX)}
        self.blocks = {name: self.bytes[at : at + size] for name, (at, size) in parts.items()}
        for name, view in self.blocks.items():
            self.vm.add_ram(name, buffer=view)
        self.device = Device()
        self.vm.register(DEV, self.device)

    def guards(self) -> np.ndarray:
        return np.concatenate(
            [self.bytes[:GUARD], self.bytes[GUARD + RAM : 2 * GUARD + RAM], self.bytes[2 * GUARD + RAM + AUX :]]
        )

    def info(self) -> dict:
        return json.loads(self.vm.machine.control.query_migrate())


@pytest.fixture
def target():
    made = Target()
    yield made
    made.vm.close()


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A whole stream of the machine."""
    source = Target()
    for name, view in source.blocks.items():
        view[:] = memoryview(CONTENT[name])
    source.device.level = 5
    path = tmp_path_factory.mktemp("good") / "stream"
    source.vm.migrate(f"file:{path}").wait(20)
    source.vm.close()
    return path.read_bytes()


class Stream:
    """A stream in pieces that can be changed; keys are the names of its elements.

    Attributes:
        pieces: header, configuration, start, part, last, timer, dev, globalstate, end, description.
    """

    def __init__(self, stream: bytes) -> None:
        elements = take_apart(stream).elements
        ends = [element.offset for element in elements[1:]] + [len(stream)]
        self.pieces = {e.name: stream[e.offset : end] for e, end in zip(elements, ends, strict=True)}

    def __getitem__(self, name: str) -> bytes:
        return self.pieces[name]

    def begin(self, name: str) -> int:
        """Offset of an element."""
        names = list(self.pieces)
        return sum(len(self.pieces[other]) for other in names[: names.index(name)])

    def put(self, name: str, old: bytes, new: bytes) -> None:
        """Replace the first `old` in an element."""
        assert old in self.pieces[name]
        self.pieces[name] = self.pieces[name].replace(old, new, 1)

    def patch(self, name: str, at: int, new: bytes) -> None:
        """Overwrite bytes of an element."""
        piece = self.pieces[name]
        self.pieces[name] = piece[:at] + new + piece[at + len(new) :]

    def cut(self, name: str, at: int) -> None:
        """End the stream inside an element."""
        names = list(self.pieces)
        self.pieces[name] = self.pieces[name][:at]
        for other in names[names.index(name) + 1 :]:
            self.pieces[other] = b""

    def bytes(self) -> bytes:
        return b"".join(self.pieces.values())


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def insert(name, new):
    """Put bytes before an element."""

    def change(s):
        s.pieces[name] = new + s.pieces[name]

    return change


def record(word, name=b"", payload=b""):
    """Put a RAM record in front of those of the PART section, whose header has 5 bytes."""

    def change(s):
        s.pieces["part"] = s["part"][:5] + u64(word) + name + payload + s["part"][5:]

    return change


def delta(value: bytes) -> bytes:
    """What an XBZRLE record has behind the block's name."""
    return b"\1" + struct.pack(">H", len(value)) + value


def put(name, old, new):
    return lambda s: s.put(name, old, new)


def patch(name, at, new):
    return lambda s: s.patch(name, at, new)


def drop(name):
    return lambda s: s.pieces.update({name: b""})


def cut(name, at):
    return lambda s: s.cut(name, at)


def blocks(*entries, total=None):
    """Another block list in the START section: header 17 bytes, then list, EOS and footer."""

    def change(s):
        total_ = sum(length for _, length in entries) if total is None else total
        listed = b"".join(text(name) + u64(length) for name, length in entries)
        s.pieces["start"] = s["start"][:17] + u64(total_ | 4) + listed + s["start"][-13:]

    return change


SECTION = 1 + 4 + 1 + 3 + 4 + 4  # header of `ram` and `dev`
TIMER = SECTION + 2
CONFIGURED = 5  # configuration: type and length of the name

# change, kind of the error, element in which its offset lies (and how far in, if that is sure), path
CASES = {
    # truncated
    "nothing": (cut("header", 0), "truncated", "header", 0, "header"),
    "ends in the header": (cut("header", 6), "truncated", "header", 4, "header"),
    "ends in the machine's name": (cut("configuration", 7), "truncated", "configuration", None, "configuration"),
    "ends in the block list": (cut("start", 30), "truncated", "start", None, "ram"),
    "ends in a page": (cut("part", 1000), "truncated", "part", None, "ram/ram"),
    "ends between sections": (cut("timer", 0), "truncated", "timer", 0, ""),
    "ends in a section's name": (cut("timer", 7), "truncated", "timer", 5, ""),
    "ends in a device": (cut("dev", SECTION + 9), "truncated", "dev", SECTION + 8, "dev/0/values"),
    "ends before a footer": (cut("dev", SECTION + LEVEL + 1), "truncated", "dev", SECTION + LEVEL + 1, "dev/0"),
    "ends before the end": (cut("end", 0), "truncated", "end", 0, ""),
    # header and configuration
    "wrong magic": (patch("header", 0, b"QEVN"), "bad-magic", "header", 0, "header"),
    "version 2": (patch("header", 4, u32(2)), "obsolete-version", "header", 4, "header"),
    "version 4": (patch("header", 4, u32(4)), "bad-version", "header", 4, "header"),
    "no configuration": (drop("configuration"), "bad-configuration", "start", 0, "configuration"),
    "another machine": (
        put("configuration", b"none", b"nine"),
        "bad-configuration",
        "configuration",
        0,
        "configuration",
    ),
    "a longer machine": (
        put("configuration", u32(4) + b"none", u32(5) + b"none2"),
        "bad-configuration",
        "configuration",
        0,
        "configuration",
    ),
    "a machine without a name": (
        put("configuration", u32(4) + b"none", u32(0)),
        "bad-configuration",
        "configuration",
        0,
        "configuration",
    ),
    "a machine's name of 4 GiB": (
        patch("configuration", 1, u32(0xFFFFFFFF)),
        "limit-exceeded",
        "configuration",
        1,
        "configuration",
    ),
    "unknown subsection of the configuration": (
        put("configuration", b"none", b"none\5" + text(b"configuration/moon") + u32(1)),
        "bad-configuration",
        "configuration",
        9,
        "configuration/moon",
    ),
    "four billion capabilities": (
        put("configuration", b"none", b"none\5" + text(b"configuration/capabilities") + u32(1) + u32(0xFFFFFFFF)),
        "limit-exceeded",
        "configuration",
        None,
        "configuration/capabilities",
    ),
    # elements
    "no element": (insert("timer", b"\x99"), "unknown-element", "timer", 0, ""),
    "a second configuration": (insert("timer", b"\x07"), "unknown-element", "timer", 0, ""),
    "unknown command": (insert("start", b"\x08\0\x77\0\0"), "bad-command", "start", None, "command"),
    "a command that is too long": (
        insert("start", b"\x08\0\x02\xff\xff" + bytes(0xFFFF)),
        "bad-command",
        "start",
        None,
        "command/PING",
    ),
    "a return path where none can be": (insert("start", b"\x08\0\x01\0\0"), "bad-command", "start", 0, ""),
    "a command of another feature": (insert("start", b"\x08\0\x08\0\0"), "unsupported", "start", 0, ""),
    "a package of 4 GiB": (insert("timer", b"\x08\0\x07\0\x04" + u32(0xFFFFFFFF)), "bad-command", "timer", 0, ""),
    # sections
    "unknown section": (put("timer", b"timer", b"tamer"), "unknown-section", "timer", 0, "tamer/0"),
    "a section's name of 255 bytes": (
        put("timer", b"\x05timer", text(b"\xff" * 255)),
        "unknown-section",
        "timer",
        0,
        "\\xff" * 255 + "/0",
    ),
    "a section without a name": (put("timer", b"\x05timer", b"\0"), "unknown-section", "timer", 5, ""),
    "unknown instance": (patch("dev", 9, u32(1)), "unknown-section", "dev", 0, "dev/1"),
    "a section's version above": (patch("dev", 13, u32(3)), "bad-version", "dev", 13, "dev/0"),
    "a section's version below": (patch("dev", 13, u32(1)), "bad-version", "dev", 13, "dev/0"),
    "a section's version 0": (patch("timer", 15, u32(0)), "bad-version", "timer", 15, "timer/0"),
    "version of RAM": (patch("start", 13, u32(5)), "bad-version", "start", 13, "ram"),
    "a device that starts as if it were live": (patch("timer", 0, b"\1"), "unknown-section", "timer", 0, "timer/0"),
    "RAM at once": (patch("start", 0, b"\4"), "unknown-section", "start", 0, "ram"),
    "RAM twice": (lambda s: insert("part", s["start"])(s), "duplicate-section", "part", 0, "ram"),
    "a part that never started": (patch("part", 1, u32(99)), "unknown-section", "part", 0, ""),
    "no footer": (lambda s: s.pieces.update(dev=s["dev"][:-5]), "bad-footer", "end", 0, "dev/0"),
    "another's footer": (lambda s: s.patch("dev", len(s["dev"]) - 4, u32(9)), "bad-footer", "dev", None, "dev/0"),
    "bytes left over": (
        lambda s: s.pieces.update(dev=s["dev"][:-5] + bytes(3) + s["dev"][-5:]),
        "bad-footer",
        "dev",
        SECTION + LEVEL + 1,
        "dev/0",
    ),
    "a missing device": (drop("dev"), "missing-section", None, None, "dev/0"),
    "missing RAM": (
        lambda s: s.pieces.update(start=b"", part=b"", last=b""),
        "missing-section",
        "end",
        0,
        "ram",
    ),
    "a missing clock": (drop("timer"), "missing-section", None, None, "timer/0"),
    # devices
    "a value that must be equal": (patch("dev", SECTION, u32(8)), "device-state", "dev", SECTION, "dev/0/kind"),
    "a count beyond the array": (patch("dev", SECTION + 4, u32(5)), "device-state", "dev", None, "dev/0/values"),
    "a count of four billion": (
        patch("dev", SECTION + 4, u32(0xFFFFFFFF)),
        "device-state",
        "dev",
        None,
        "dev/0/values",
    ),
    "a length beyond the buffer": (patch("dev", SECTION + 16, u32(5)), "device-state", "dev", None, "dev/0/data"),
    "a length that is negative": (
        patch("dev", SECTION + 16, u32(0x80000000)),
        "device-state",
        "dev",
        None,
        "dev/0/data",
    ),
    "a device that refuses": (patch("dev", SECTION + LEVEL, b"\x0a"), "device-state", "dev", SECTION, "dev/0"),
    "unknown subsection": (
        lambda s: s.pieces.update(dev=s["dev"][:-5] + b"\5" + text(b"dev/new") + u32(1) + s["dev"][-5:]),
        "device-state",
        "dev",
        SECTION + LEVEL + 1,
        "dev/0",
    ),
    "unknown run state": (
        put("globalstate", b"prelaunch", b"frozen\0\0\0"),
        "device-state",
        "globalstate",
        None,
        "globalstate/0",
    ),
    "a run state without an end": (
        lambda s: s.pieces.update(globalstate=s["globalstate"][:-105] + b"r" * 100 + s["globalstate"][-5:]),
        "device-state",
        "globalstate",
        None,
        "globalstate/0",
    ),
    # the block list
    "unknown block": (blocks((b"ram", RAM), (b"rom", AUX)), "unknown-block", "start", None, "ram"),
    "a block's name of 255 bytes": (blocks((b"\xfe" * 255, RAM), (b"aux", AUX)), "unknown-block", "start", None, "ram"),
    "a missing block": (blocks((b"ram", RAM)), "unknown-block", "start", None, "ram"),
    "a block twice": (blocks((b"ram", RAM), (b"ram", RAM)), "block-mismatch", "start", None, "ram/ram"),
    "a block too long": (blocks((b"ram", RAM + PAGE), (b"aux", AUX)), "block-mismatch", "start", None, "ram/ram"),
    "a block too short": (blocks((b"ram", RAM - PAGE), (b"aux", AUX)), "block-mismatch", "start", None, "ram/ram"),
    "a block of 2^63 bytes": (blocks((b"ram", 1 << 63), (b"aux", AUX)), "block-mismatch", "start", None, "ram/ram"),
    "a block of no bytes": (
        blocks((b"ram", RAM), (b"aux", 0), total=RAM + AUX),
        "block-mismatch",
        "start",
        None,
        "ram/aux",
    ),
    "a block of half a page": (blocks((b"ram", RAM + 5), total=RAM + PAGE), "block-mismatch", "start", None, "ram/ram"),
    "a total too small": (
        blocks((b"ram", RAM), (b"aux", AUX), total=RAM + PAGE),
        "block-mismatch",
        "start",
        None,
        "ram/aux",
    ),
    "too many blocks": (
        blocks(*((b"%d" % number, PAGE) for number in range(1025))),
        "limit-exceeded",
        "start",
        None,
        "ram",
    ),
    "a block list that is none": (patch("start", 17, u64(PAGE | 8)), "bad-flags", "start", 17, "ram"),
    # pages
    "a page outside its block": (record(RAM | 8, text(b"ram"), bytes(PAGE)), "bad-address", "part", 5, "ram/ram"),
    "a page in the next block": (
        record((RAM + GUARD) | 8, text(b"ram"), bytes(PAGE)),
        "bad-address",
        "part",
        5,
        "ram/ram",
    ),
    "a page at the end of the world": (
        record((1 << 64) - PAGE | 8, text(b"aux"), bytes(PAGE)),
        "bad-address",
        "part",
        5,
        "ram/aux",
    ),
    "zeros outside their block": (record(AUX | 2, text(b"aux"), b"\0"), "bad-address", "part", 5, "ram/aux"),
    "a page of an unknown block": (record(8, text(b"rom"), bytes(PAGE)), "unknown-block", "part", 13, "ram"),
    "a page without a block": (record(8 | 32, b"", bytes(PAGE)), "bad-flags", "part", 5, "ram"),
    "a page without flags": (record(0), "bad-flags", "part", 5, "ram"),
    "a page of two kinds": (record(8 | 2, text(b"ram"), bytes(PAGE)), "bad-flags", "part", 5, "ram"),
    "a second block list": (record(RAM | 4), "bad-flags", "part", 5, "ram"),
    # differences: word, name, encoding, length, delta
    "an XBZRLE page outside its block": (
        record(RAM | 64, text(b"ram") + delta(b"\0\1\1")),
        "bad-address",
        "part",
        5,
        "ram/ram",
    ),
    "an XBZRLE page of another encoding": (
        record(64, text(b"ram") + b"\2\0\3\0\1\1"),
        "bad-page",
        "part",
        17,
        "ram/ram",
    ),
    "a delta longer than a page": (record(64, text(b"ram") + b"\1\x10\1"), "limit-exceeded", "part", 18, "ram/ram"),
    "a delta that ends in a number": (record(64, text(b"aux") + delta(b"\5")), "bad-page", "part", 5, "ram/aux"),
    "a delta that ends in a run": (record(64, text(b"aux") + delta(b"\0\3\1\1")), "bad-page", "part", 5, "ram/aux"),
    "a delta with a third byte of a number": (
        record(64, text(b"aux") + delta(b"\x80\x80\1\1\1")),
        "bad-page",
        "part",
        5,
        "ram/aux",
    ),
    "a delta of a run that is empty": (record(64, text(b"aux") + delta(b"\5\0\0")), "bad-page", "part", 5, "ram/aux"),
    "a delta that skips nothing": (
        record(64, text(b"aux") + delta(b"\0\1\1\0\1\1")),
        "bad-page",
        "part",
        5,
        "ram/aux",
    ),
    "a delta that leaves its page": (
        record(64 | RAM - PAGE, text(b"ram") + delta(b"\xff\x1f\2\7\7")),
        "bad-page",
        "part",
        5,
        "ram/ram",
    ),
    "a compressed page": (record(256, text(b"ram")), "unsupported", "part", 5, "ram"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(target, good, tmp_path, case):
    change, kind, element, into, path = CASES[case]
    stream = Stream(good)
    change(stream)
    bad = stream.bytes()
    (tmp_path / "bad").write_bytes(bad)
    (tmp_path / "good").write_bytes(good)

    arrival = target.vm.incoming(f"file:{tmp_path}/bad")
    with pytest.raises(StreamError) as caught:
        arrival.wait(20)
    error = caught.value

    assert (error.kind, error.path) == (kind, path), str(error)
    if element is None:
        assert error.offset is None
    elif into is not None:
        assert error.offset == stream.begin(element) + into, str(error)
    else:
        begin = stream.begin(element)
        assert begin <= error.offset <= begin + len(stream[element]), str(error)
    assert error.message
    assert str(error).startswith(f"{path}: " if path else error.message)
    assert str(error).endswith("" if error.offset is None else f" (at stream offset {error.offset:#x})")
    assert target.info() == {"status": "failed", "error-desc": str(error)}
    assert target.vm.run_state == "inmigrate"
    assert (target.guards() == 0xAA).all()

    # what a half-loaded machine may hold in RAM and devices does not matter to the next attempt
    for view in target.blocks.values():
        view[:] = 0x55
    target.vm.incoming(f"file:{tmp_path}/good").wait(20)
    assert target.vm.run_state == "prelaunch"
    for name, view in target.blocks.items():
        assert_same_memory(view.tobytes(), CONTENT[name])
    assert target.device == Device(level=5)
    assert (target.guards() == 0xAA).all()
