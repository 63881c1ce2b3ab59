"""The worst streams one can think of: time and memory of reading them grow as their size does, up to named limits.

Time is the processor's, of this thread, and compared with that of a stream a quarter as long: what is quadratic takes
sixteen times as much. Memory is the most that a process of its own ever had.
"""

import gc
import json
import random
import struct
import subprocess
import sys
import time

import pytest

from analyzed import described, full, start, stream
from qmig_e2k import MigrationError, Vm, cli
from qmig_e2k._core import decode
from qmig_e2k.analyze import analyze
from qmig_e2k.analyze.ram import file_names
from qmig_e2k.limits import DEFAULT, Limits
from qmig_e2k.migration.settings import Settings
from support import PAGE

HEAD = b"QEVM\0\0\0\3\7\0\0\0\4none"
NARROW = Limits(hashed=0, search=64 << 20)
FOOTER = b"\x7e\0\0\0\2"
END = struct.pack(">Q", 16) + FOOTER


def ram(pages, records, blocks=1):
    """A stream with RAM of `blocks` blocks, and these records in one section."""
    listed = b"".join(b"\4%04d" % i + struct.pack(">Q", pages * PAGE) for i in range(blocks))
    head = b"\1\0\0\0\2\3ram" + struct.pack(">IIQ", 0, 4, blocks * pages * PAGE | 4) + listed + END
    return HEAD + head + b"\2\0\0\0\2" + records + END + b"\0"


def order(count):
    """All numbers below `count`, no two neighbours together."""
    numbers = list(range(count))
    random.Random(count).shuffle(numbers)
    return numbers


def record(page, flags, rest, *, first):
    return struct.pack(">Q", page * PAGE | flags | (0 if first else 0x20)) + (b"\0040000" if first else b"") + rest


def live_sections(n):
    """Each with the longest name, all announced first."""
    each = [b"\1" + full(b"%0255d" % i, b"x", section_id=16 + i)[1:] for i in range(n)]
    return stream(each)


def repeated_sections(n):
    return stream([full(b"timer", struct.pack(">qqq", 5, 0, 7), section_id=0, version=2)] * n)


def tiny_parts(n):
    """RAM sections without a page."""
    return HEAD + start({b"ram": PAGE}) + (b"\2\0\0\0\2" + END) * n + b"\0"


def scattered_pages(n):
    """No two neighbours come together, and each has another byte than its neighbours."""
    return ram(n, b"".join(record(page, 2, bytes([page % 3]), first=not i) for i, page in enumerate(order(n))))


def rewritten_pages(n):
    """One long run is cut into pieces, and they grow together again."""
    again = [*range(0, n, 2), *range(n), *range(1, n, 2)]
    return ram(n, b"".join(record(page, 2, bytes([i % 2]), first=not i) for i, page in enumerate(again)))


def scattered_deltas(n):
    return ram(n, b"".join(record(page, 0x40, b"\1\0\3\0\1\1", first=not i) for i, page in enumerate(order(n))))


def pings(n):
    return stream([b"\x08\0\2\0\4" + struct.pack(">I", i) for i in range(n)])


def discards(n):
    """Each command names as many ranges as it can."""
    ranges = b"".join(struct.pack(">QQ", i * PAGE, PAGE) for i in range(4000))
    body = b"\0\3ram\0" + ranges
    return stream([b"\x08\0\6" + struct.pack(">H", len(body)) + body] * (n // 100))


def devices(n):
    listed = [{"name": f"d{i}", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": []} for i in range(n)]
    return stream([full(b"d0", b"")], described(*listed))


def members(n):
    """One object has nearly all of the description's members, again and again the same."""
    text = b'{"devices":[{' + b'"name":"d",' * n + b'"instance_id":0,"vmsd_name":"d","version":1,"fields":[]}]}'
    return stream([full(b"d", b"")], b"\0\6" + struct.pack(">I", len(text)) + text)


def subsections(n):
    part = {"vmsd_name": "p", "version": 1, "fields": []}
    device = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [], "subsections": [part] * n}
    return stream([full(b"d", b"")], described(device))


def elements(n):
    """A list of structures that have next to nothing."""
    body = {"vmsd_name": "b", "version": 1, "fields": [{"name": "n", "type": "uint8", "size": 1}]}
    field = {"name": "a", "array_len": n, "type": "struct", "struct": body, "size": 1}
    device = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [field]}
    return stream([full(b"d", bytes(n))], described(device))


def ends_everywhere(n):
    """Each five bytes look like the end of the section."""
    return stream([full(b"toaster", b"\x7e\0\0\0\x09" * n)])


WORST = {
    live_sections: 1000,
    repeated_sections: 1000,
    tiny_parts: 3000,
    scattered_pages: 20_000,
    rewritten_pages: 20_000,
    scattered_deltas: 4000,
    pings: 4000,
    discards: 1000,
    devices: 2000,
    members: 20_000,
    subsections: 4000,
    elements: 4000,
    ends_everywhere: 2000,
}


@pytest.fixture
def uncollected():
    """Looking for garbage among all that the tests before left costs more than what is measured here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def cost(data):
    begun = time.thread_time()
    made = analyze(data, limits=NARROW)
    made.record()
    return time.thread_time() - begun


@pytest.mark.parametrize("worst", WORST, ids=lambda worst: worst.__name__)
@pytest.mark.long  # how long something takes is not the same on a busy machine
@pytest.mark.usefixtures("uncollected")
def test_time_grows_as_the_stream_does(worst):
    short, long = worst(WORST[worst]), worst(4 * WORST[worst])
    for _ in range(8):
        ratio = cost(long) / min(cost(short) for _ in range(3))
        if ratio < 8:
            return
    pytest.fail(f"{len(long) / len(short):.1f} times as long takes {ratio:.1f} times as much")


@pytest.mark.long  # how long something takes is not the same on a busy machine
@pytest.mark.usefixtures("uncollected")
def test_time_of_announcements():
    """The core looks at each live section once, not at all that were before it."""

    def cost(count):
        sections = (b"\1" + full(b"%0255d" % i, b"x", section_id=i)[1:] for i in range(count))
        data = HEAD + b"".join(sections) + b"\0"
        begun = time.thread_time()
        decode(data, lambda _name, _instance, _version, reader: reader.u8())
        return time.thread_time() - begun

    assert min(cost(16_000) / cost(4000) for _ in range(3)) < 8


@pytest.mark.long  # how long something takes is not the same on a busy machine
@pytest.mark.usefixtures("uncollected")
def test_time_of_file_names():
    """A thousand blocks whose names all become the same, and then a thousand of the longest."""

    def cost(count):
        names = [b"\xff" * 200 + struct.pack(">H", i | 0x8080) for i in range(count)] + [b"\xff" * 255] * count
        begun = time.thread_time()
        assert len(set(file_names(names))) == 2 * count
        return time.thread_time() - begun

    assert min(cost(2000) / cost(500) for _ in range(3)) < 8


def test_limits_of_the_command_line(tmp_path, capsys):
    path = tmp_path / "stream"
    path.write_bytes(stream([full(b"d%d" % i, b"x", section_id=20 + i) for i in range(5)]))
    assert cli.main(["analyze", "--json", "--limit", "shown-elements=2", "--limit", "search=1M", str(path)]) == 0
    assert len(json.loads(capsys.readouterr().out)["devices"]) == 2
    assert cli.main(["analyze", "--limit", "sections=3", str(path)]) == 1
    assert "more than 3 sections" in capsys.readouterr().err
    assert cli.main(["analyze", "--limit", "ram-blocks=0", str(path)]) == 1
    assert "more than 0 RAM blocks" in capsys.readouterr().err
    for words in (["analyze", "--limit", "patience=3", str(path)], ["serve", "--limit", "hashed=0"]):
        assert cli.main(words) == 2
        assert "is not NAME=NUMBER with one of sections, ram-blocks, package" in capsys.readouterr().err
    assert cli.main(["analyze", "--limit", "sections=4G", str(path)]) == 2
    assert "too large" in capsys.readouterr().err


def test_limits_of_a_destination(tmp_path):
    """What is loaded obeys those of the machine's settings; one that is reached leaves it waiting for another."""
    path = tmp_path / "stream"
    path.write_bytes(HEAD + start({b"ram": PAGE}) + full(b"timer", struct.pack(">qqq", 5, 0, 7), version=2) + b"\0")
    for limits, words in [
        (DEFAULT, None),
        (Limits(sections=1), "more than 1 sections"),
        (Limits(ram_blocks=0), "RAM blocks"),
    ]:
        with Vm("none", settings=Settings(limits=limits)) as vm:
            vm.add_ram("ram", PAGE)
            arrival = vm.incoming(f"file:{path}")
            if words is None:
                arrival.wait(20)
                continue
            with pytest.raises(MigrationError, match=words) as caught:
                arrival.wait(20)
            assert caught.value.kind == "limit-exceeded"
            assert vm.run_state == "inmigrate"


READ = """
import re, sys
from pathlib import Path
from qmig_e2k.analyze import analyze
from qmig_e2k.limits import Limits
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
before = most()
made = analyze(sys.argv[1], limits=Limits(hashed=0))
made.record()
print(most() - before)
"""


@pytest.mark.long
@pytest.mark.parametrize("worst", WORST, ids=lambda worst: worst.__name__)
def test_memory_grows_as_the_stream_does(worst, tmp_path):
    short = worst(WORST[worst])
    data = worst(WORST[worst] * (4 << 20) // len(short))
    path = tmp_path / "stream"
    path.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True, timeout=600)
    # of what costs most, a delta of 17 bytes that makes a page, 256 MiB are kept in memory
    assert int(done.stdout) < (256 << 20) + 30 * len(data)
