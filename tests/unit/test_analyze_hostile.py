"""analyze of streams made to cost: time and memory follow what the file holds, and what is left out is said."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import struct
import subprocess
import sys

import pytest

from analyzed import described, full, recorded, start, stream
from qmig_e2k.analyze import analyze, layout
from qmig_e2k.analyze.ram import extract
from qmig_e2k.analyze.tree import tree
from qmig_e2k.limits import Limits
from support import PAGE

TIMER = struct.pack(">qqq", 5, 0, 7)


def listed(name, *fields):
    return {"name": name, "instance_id": 0, "vmsd_name": name, "version": 1, "fields": list(fields)}


def lines_of(made):
    return ["".join(piece for piece, _ in line) for line in tree(made)]


# ---- descriptions


BODY = {"vmsd_name": "b", "version": 1, "fields": [{"name": "n", "type": "uint8", "size": 1}]}
NONE = {
    "vmsd_name": "e",
    "version": 1,
    "fields": [{"name": str(i), "array_len": 0, "type": "x", "size": 1} for i in range(99)],
}
EXPENSIVE = {
    "fields": {"name": "a", "array_len": 500, "type": "struct", "struct": BODY, "size": 1},
    "numbers": {"name": "a", "array_len": 1000 * layout.NUMBERS_PER_FIELD, "type": "uint8", "size": 1},
    "bytes": {"name": "a", "type": "buffer", "size": 1000 * layout.BYTES_PER_FIELD},
    "nothing": {"name": "a", "array_len": 10, "type": "struct", "struct": NONE, "size": 1},
}


@pytest.mark.parametrize("kind", EXPENSIVE)
def test_one_budget_for_all_described_sections(kind):
    """Each of them would do for itself."""
    payload = {"fields": 500, "numbers": 4000, "bytes": 64_000, "nothing": 0}[kind]
    sections = [full(b"d%d" % i, bytes(payload), section_id=20 + i) for i in range(20)]
    devices = [listed(f"d{i}", EXPENSIVE[kind]) for i in range(20)]
    timer = full(b"timer", TIMER, section_id=0, version=2)
    made = analyze(stream([*sections, timer], described(*devices)), limits=Limits(fields=10_000))
    assert made.complete, made.error
    sources = [device.source for device in made.devices]
    cut = sources.index("none")
    assert 5 <= cut <= 10
    assert sources == ["description"] * cut + ["none"] * (20 - cut) + ["ours"]
    assert "10000 fields in all sections" in made.devices[cut].note
    assert made.devices[cut].size == payload


def test_a_budget_pays_for_large_streams():
    """Real machines are far below it."""
    made = analyze(recorded("qemu7-pc-xbzrle"), hashes=False)
    assert {device.source for device in made.devices} == {"description"}


def test_damaged_devices_are_counted():
    made = analyze(stream([full(b"timer", TIMER, version=2)], described(*[{}] * 1000)))
    (note,) = made.notes
    assert "1000 damaged devices; the first: " in note
    assert f"note  {note}" in lines_of(made)


@pytest.mark.parametrize(
    "text",
    [
        b'{"configuration":[1],"devices":[]}',
        b'{"configuration":[[]],"devices":[]}',
        b'{"configuration":{}}',
        b"[]",
        b"1",
    ],
)
def test_a_description_of_other_types(text):
    made = analyze(stream([], b"\0\6" + struct.pack(">I", len(text)) + text))
    (note,) = made.notes
    assert "damaged" in note


def test_a_description_of_too_many_values():
    made = analyze(
        stream([full(b"timer", TIMER, version=2)], described(listed("timer", *[{}] * 200))),
        limits=Limits(description_values=100),
    )
    assert made.devices[0].source == "ours"
    assert made.notes == ["the stream's description is not used: it has more than 100 values"]


def test_a_description_that_is_too_long():
    data = stream(
        [full(b"toaster", b"brown")], described(listed("toaster", {"name": "a", "type": "buffer", "size": 5}))
    )
    assert analyze(data).devices[0].source == "description"
    made = analyze(data, limits=Limits(description=50))
    assert made.complete
    assert made.devices[0].source == "none"
    (note,) = made.record()["notes"]
    assert "not used: it has" in note
    assert f"note  {note}" in lines_of(made)


def test_a_description_with_bytes_behind_it():
    data = stream(
        [full(b"toaster", b"brown")], described(listed("toaster", {"name": "a", "type": "buffer", "size": 5}))
    )
    made = analyze(data + bytes(512))
    assert made.complete
    assert made.devices[0].source == "none"
    assert made.record()["notes"][0] == "512 bytes behind the end of the stream"
    assert "not used: it is looked for at the very end" in made.record()["notes"][1]


@pytest.mark.parametrize("length", [7, 70 << 20])
def test_a_description_that_breaks_off(tmp_path, length):
    """What is missing is missing of all that was announced, whatever is read at once."""
    path = tmp_path / "stream"
    data = stream([], b"\0\6\xff\xff\xff\xff")
    path.write_bytes(data)
    os.truncate(path, len(data) + length)
    made = analyze(path)
    assert (made.error["kind"], made.error["path"], made.error["offset"]) == ("truncated", "description", len(data))
    assert f" {0xFFFFFFFF - length} bytes are missing" in made.error["message"]


# ---- unknown sections


def test_the_search_for_ends_is_bounded():
    """Each of many unknown sections could search all of the rest."""
    sections = [full(b"d%d" % i, bytes(50_000), section_id=20 + i) for i in range(40)]
    assert analyze(stream(sections)).complete
    made = analyze(stream(sections), limits=Limits(search=8 << 20))
    assert (made.error["kind"], made.error["path"]) == ("limit-exceeded", f"d{len(made.devices)}/0")
    assert 1 < len(made.devices) < 10
    assert "8 MiB" in made.error["message"]


def test_places_that_look_like_ends_are_bounded():
    made = analyze(stream([full(b"toaster", b"\x7e\0\0\0\x09" * 4000)]), limits=Limits(search=8 << 20))
    assert made.error["kind"] == "limit-exceeded"


def test_short_sections_cost_little():
    """A live handler has thousands of parts, each as long as nothing."""
    parts = [b"\2\0\0\0\x09more\x7e\0\0\0\x09"] * 1500
    made = analyze(
        stream([b"\1" + full(b"s390-skeys", b"")[1:], *parts, b"\3\0\0\0\x09\x7e\0\0\0\x09"]),
        limits=Limits(search=16 << 20),
    )
    assert made.complete, made.error
    assert len(made.devices) == 1502


def test_inside_a_package_nothing_is_looked_for_behind_it():
    """Neither the pages that follow cost anything, nor what in them looks like an end."""
    sections = b"".join(full(b"d%d" % i, b"x", section_id=9 + i) for i in range(10))
    blob = b"\x08\0\4\0\0" + sections + b"\x08\0\5\0\0"
    page = b"".join(b"\x7e\0\0\0%c\x08\0\1\0\0" % (9 + i) for i in range(10)).ljust(PAGE, b"\0")
    head = struct.pack(">Q", 8) + b"\3ram" + page
    pages = b"\2\0\0\0\2" + head + (struct.pack(">Q", 0x28) + page) * 300 + struct.pack(">Q", 16) + b"\x7e\0\0\0\2"
    made = analyze(
        stream([b"\x08\0\7\0\4" + struct.pack(">I", len(blob)) + blob, pages]), limits=Limits(search=1 << 20)
    )
    assert made.complete, made.error
    assert [device.body.plain() for device in made.devices] == [{"data": "78"}] * 10


def test_raw_payloads_are_shown_within_limits():
    made = analyze(
        stream([full(b"d%d" % i, bytes(300), section_id=20 + i) for i in range(5)]), limits=Limits(shown_raw_all=1000)
    )
    assert [len(device.body.plain()["data"]) // 2 for device in made.devices] == [300, 300, 300, 100, 0]
    assert made.devices[3].note.endswith("; only the first 100 of 300 bytes")
    assert made.devices[4].size == 300


def test_commands_and_sections_are_kept_within_limits():
    pings = [b"\x08\0\2\0\4" + struct.pack(">I", i) for i in range(150)]
    sections = [full(b"d%d" % i, b"x", section_id=20 + i) for i in range(130)]
    made = analyze(stream([*pings, *sections]), limits=Limits(shown_elements=100))
    assert made.complete
    assert [command["token"] for command in made.commands] == [*range(100)]
    assert [device.name for device in made.devices] == [f"d{i}" for i in range(100)]
    assert made.notes == [
        "50 more commands were read and are not shown: 100 are at most",
        "30 more sections were read and are not shown: 100 are at most",
    ]


def test_records_of_live_handlers_are_kept_within_limits():
    empty = b"\x42" + bytes(12)
    bits = b"\x40" + bytes(12) + struct.pack(">Q", 640) + bytes(640)
    section = b"\1" + full(b"dirty-bitmap", bits + empty * 30 + b"\1", section_id=10)[1:]
    made = analyze(stream([section]), limits=Limits(fields=800))
    assert made.complete, made.error
    plain = made.devices[0].body.plain()
    assert (len(plain["records"]), plain.get("further_records")) == (31, None)
    part = b"\2\0\0\0\x0a" + bits + empty * 80 + b"\1\x7e\0\0\0\x0a"
    made = analyze(stream([section, part]), limits=Limits(fields=800))
    assert made.complete, made.error
    plain = made.devices[1].body.plain()
    assert len(plain["records"]) + plain["further_records"] == 81
    disks = b"".join(struct.pack(">QB", 9, 3) + b"%03d" % i for i in range(1000)) + struct.pack(">Q", 2)
    made = analyze(stream([b"\1" + full(b"block", disks)[1:]]), limits=Limits(fields=800))
    assert (made.error["kind"], made.error["path"]) == ("limit-exceeded", "block/0")


# ---- RAM


def deltas(pages):
    """Each page comes as the difference to zeros: 17 bytes."""
    size = pages * PAGE
    head = b"QEVM\0\0\0\3\7\0\0\0\4none" + start({b"r": PAGE})
    head = (
        head[: head.index(struct.pack(">Q", PAGE | 4))]
        + struct.pack(">Q", size | 4)
        + b"\1r"
        + struct.pack(">QQ", size, 16)
    )
    records = bytearray(struct.pack(">Q", 0x40) + b"\1r" + b"\1\0\3\0\1\1")
    for page in range(1, pages):
        records += struct.pack(">Q", page * PAGE | 0x60) + b"\1\0\3\0\1\1"
    footer = b"\x7e\0\0\0\2"
    return head + footer + b"\2\0\0\0\2" + records + struct.pack(">Q", 16) + footer + b"\0"


MEMORY = """
import re, sys
from pathlib import Path
from qmig_e2k.analyze import analyze
made = analyze(sys.argv[1], hashes=False)
assert made.complete, made.error
pages = made.blocks[0].size // 4096
for page in (0, 1, pages // 2, pages - 1):
    assert made.read_ram(0, page * 4096, 4096) == b"\\1" + bytes(4095), page
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_decoded_pages_are_not_all_in_memory(tmp_path):
    """Of 390 MiB of pages 256 MiB are."""
    path = tmp_path / "stream"
    path.write_bytes(deltas(100_000))
    command = [sys.executable, "-c", MEMORY, path]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 370 << 10
    assert list(tmp_path.iterdir()) == [path]


def mapped(path, pages, present, *, ones=False):
    """A mapped-ram file with these pages, the rest a hole; with `ones` its bitmap says that all are there."""
    (data,) = recorded("qemu10-none-mapped-ram")
    head = (
        data[: data.index(b"\3ram") + 12]
        + struct.pack(">Q", pages * PAGE | 4)
        + b"\3ram"
        + struct.pack(">Q", pages * PAGE)
    )
    bitmap = len(head) + 28
    words = -(-pages // 64) * 8
    first = -(-(bitmap + words) // PAGE) * PAGE
    footer = struct.pack(">Q", 16) + b"\x7e" + data[data.index(b"\3ram") - 4 :][:4]
    with path.open("wb") as file:
        file.write(head + struct.pack(">IQQQ", 1, PAGE, bitmap, first))
        if ones:
            file.write(b"\xff" * words)
        else:
            bits = sum(1 << page for page in present)
            file.write(bits.to_bytes(words, "little"))
        for page in present:
            file.seek(first + page * PAGE)
            file.write(bytes([page % 255 + 1]) * PAGE)
        file.seek(first + pages * PAGE)
        file.write(footer + b"\0")


@pytest.mark.parametrize("ones", [False, True])
def test_a_sparse_file_is_read_by_what_it_holds(tmp_path, ones):
    pages, present = 16384, [0, 1, 255, 256, 5000, 16383]
    mapped(tmp_path / "stream", pages, present, ones=ones)
    made = analyze(tmp_path / "stream")
    assert made.complete, made.error
    assert made.notes == []
    wanted = bytearray(pages * PAGE)
    for page in present:
        wanted[page * PAGE : (page + 1) * PAGE] = bytes([page % 255 + 1]) * PAGE
    assert list(made.ram_runs(0)) == [(0, 2 * PAGE), (255 * PAGE, 2 * PAGE), (5000 * PAGE, PAGE), (16383 * PAGE, PAGE)]
    assert made.blocks[0].sha256 == hashlib.sha256(wanted).hexdigest()
    assert made.pages["normal"] == (pages if ones else len(present))
    (path,) = extract(made, tmp_path / "ram")
    assert path.read_bytes() == wanted
    assert path.stat().st_blocks * 512 <= 64 * PAGE


@pytest.mark.parametrize("ones", [False, True])
def test_runs_of_a_scattered_file(tmp_path, ones):
    """Single pages, short and long runs, over the border of what is read of the bitmap at once."""
    chance = random.Random(5)
    present = {
        page for start in chance.sample(range(40_000), 300) for page in range(start, start + chance.choice((1, 2, 9)))
    }
    present = sorted({page for page in present if page < 40_000} | {0, 32_766, 32_767, 32_768, 39_999})
    mapped(tmp_path / "stream", 40_000, present, ones=ones)
    made = analyze(tmp_path / "stream", hashes=False)
    found = [page for at, length in made.ram_runs(0) for page in range(at // PAGE, (at + length) // PAGE)]
    assert found == present
    assert all(a + length < b for (a, length), (b, _) in itertools.pairwise(made.ram_runs(0)))
    for first in (0, 32_760, 39_990):
        wanted = b"".join(bytes([page % 255 + 1 if page in present else 0]) * PAGE for page in range(first, first + 10))
        assert made.read_ram(0, first * PAGE, 10 * PAGE) == wanted


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.timeout(60)
def test_a_giant_sparse_file(tmp_path, ones):
    """64 GiB of nothing are read in no time; they are not hashed, and that is said."""
    mapped(tmp_path / "stream", 1 << 24, [1 << 23], ones=ones)
    made = analyze(tmp_path / "stream")
    assert made.complete, made.error
    (block,) = made.blocks
    assert (block.complete, block.sha256) == (True, None)
    assert list(made.ram_runs(0)) == [(1 << 35, PAGE)]
    (note,) = made.record()["notes"]
    assert note.startswith("ram is not hashed: RAM is more than the files hold ")
    assert any(line.rstrip().endswith("not hashed") for line in lines_of(made))


def test_zeros_are_hashed_up_to_a_limit():
    """The first blocks are; what the file holds counts."""
    head = b"QEVM\0\0\0\3\7\0\0\0\4none"
    data = head + start({b"a": 256 * PAGE, b"b": 512 * PAGE, b"c": 200 * PAGE}) + b"\0"
    assert all(block.sha256 for block in analyze(data).blocks)
    made = analyze(data, limits=Limits(hashed=500 * PAGE))
    assert [block.sha256 and block.name for block in made.blocks] == ["a", None, "c"]
    assert len(made.notes) == 1
