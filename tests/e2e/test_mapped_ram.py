"""Machines in mapped-ram files: written while the guest runs, read by several threads, and by whatever reads files."""

import hashlib
import os
import re
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from analyzed import facts, recorded
from elements import take_apart
from qmig_e2k import MigrationError, StreamError
from qmig_e2k.analyze import analyze
from qmig_e2k.monitor.client import QmpError
from qmig_e2k.testing import pair
from support import PAGE, REPOSITORY, mixed_ram, wait_until

SIZE = 4 << 20
GOLDEN = "qemu10-none-mapped-ram"
CAPABILITY = b"\5\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + b"\x0amapped-ram"


def switch_on(*sides, threads=None):
    for side in sides:
        side.vm.set_capabilities(mapped_ram=True, multifd=threads is not None)
        side.vm.set_parameters(max_bandwidth=0, multifd_channels=threads or 2)


def runs(side):
    before = side.emulator.value
    wait_until(lambda: side.emulator.value > before + 1000, what="the guest counting")


@pytest.mark.parametrize(
    ("writers", "readers", "offset"),
    [(None, None, ""), (None, 4, ",offset=5000"), (2, None, ""), (5, 255, ",offset=64K"), (255, 1, ",offset=2M")],
)
@pytest.mark.parametrize("format_", ["7.2", "10.0"])
def test_a_running_machine_moves(tmp_path, format_, writers, readers, offset):
    uri = f"file:{tmp_path}/x{offset}"
    with pair(size=SIZE, format=format_) as (source, destination):
        switch_on(source, threads=writers)
        switch_on(destination, threads=readers)
        source.vm.start()
        runs(source)
        migration = source.vm.migrate(uri)
        migration.wait(20)
        counters = migration.info()["ram"]
        assert counters["normal"] > 0
        assert bool(counters["multifd-bytes"]) == ((writers or 1) > 1)
        destination.vm.incoming(uri).wait(20)
        runs(destination)
        destination.vm.stop()
        destination.emulator.check()


def test_no_write_of_a_busy_guest_is_lost(serve, tmp_path):
    """Every step replayed on fresh memory, after a move in which pages were sent again."""
    on = [
        "-global",
        "migration.mapped-ram=on",
        "-global",
        "migration.multifd=on",
        "--guest",
        "random,wss=8M,rate=20000",
    ]
    source = serve("-m", "16M", *on, machine="e2k")

    def stepped():
        source.command("cont")
        source.command("stop")
        try:
            return source.command("x-verify")["steps"]
        except QmpError:  # not one step yet
            return 0

    wait_until(stepped, what="a step of the guest")
    source.command("cont")
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.command("migrate", uri=f"file:{tmp_path}/x,offset=4K")
    assert source.wait_migration()["ram"]["dirty-sync-count"] >= 2
    there = serve("-m", "16M", *on, machine="e2k", incoming=f"file:{tmp_path}/x,offset=4K")
    there.wait_migration()
    assert there.command("x-verify")["equal"]


def test_the_file_is_as_large_as_its_head_and_its_ram(tmp_path):
    """However often a page is sent, it stands in the file once."""
    with pair(size=SIZE) as (source, _):
        switch_on(source)
        source.vm.set_parameters(max_bandwidth=16 << 20)  # so that the guest can write pages again
        source.vm.start()
        runs(source)
        source.vm.migrate(f"file:{tmp_path}/x").wait(20)
    assert (1 << 20) + SIZE < (tmp_path / "x").stat().st_size < (1 << 20) + SIZE + 0x10000


@pytest.mark.parametrize("threads", [None, 3])
def test_the_analyser_reads_it(tmp_path, threads):
    with pair("none", SIZE, format="10.0") as (source, _):
        switch_on(source, threads=threads)
        memory = mixed_ram(SIZE)
        source.ram.numpy()[:] = np.frombuffer(memory, np.uint8)
        source.vm.migrate(f"file:{tmp_path}/x").wait(20)
    assert (tmp_path / "x").stat().st_blocks * 512 < SIZE, "what is zero takes no room"
    made = analyze(tmp_path / "x")
    assert made.complete, made.error
    assert made.record()["configuration"]["capabilities"] == ["mapped-ram"]
    assert made.blocks[0].sha256 == hashlib.sha256(memory).hexdigest()


# ---- QEMU's own


def taken(data):
    """The header's numbers, the pages that are there, and the stream without them, which is an ordinary one."""
    header = data.index(struct.pack(">IQ", 1, PAGE))
    bitmap, pages = struct.unpack_from(">QQ", data, header + 12)
    size = struct.unpack_from(">Q", data, header - 8)[0]
    bits = np.unpackbits(np.frombuffer(data[bitmap : bitmap + size // PAGE // 8], np.uint8), bitorder="little")
    found = {int(page): data[pages + page * PAGE : pages + (page + 1) * PAGE] for page in bits.nonzero()[0]}
    assert CAPABILITY in data[:header]
    return (header, bitmap, pages), found, take_apart(data[:header].replace(CAPABILITY, b"") + data[pages + size :])


@pytest.mark.parametrize("threads", [None, 2])
def test_qemus_file_loads_and_is_written_again(serve, tmp_path, threads):
    (data,) = recorded(GOLDEN)
    (tmp_path / "in").write_bytes(data)
    on = ["mapped-ram=on"] if threads is None else ["mapped-ram=on", "multifd=on", f"multifd-channels={threads}"]
    options = [word for each in on for word in ("-global", f"migration.{each}")]
    size = facts(GOLDEN)["ram_bytes"]
    peer = serve("-m", f"{size >> 20}M", "--format", "10.0", *options, incoming=f"file:{tmp_path}/in")
    peer.wait_migration("completed")
    assert hashlib.sha256(peer.memory(size)).hexdigest() == facts(GOLDEN)["ram_sha256"]

    # nothing has run since, so even the clock stands where it stood
    peer.command("migrate", uri=f"file:{tmp_path}/out")
    counters = peer.wait_migration("completed")["ram"]
    assert (counters["normal"], counters["duplicate"]) == (384, 3712)
    (places, pages, rest), (ours, our_pages, our_rest) = taken(data), taken((tmp_path / "out").read_bytes())
    assert ours == places
    assert our_pages == pages
    assert [(e.name, e.data) for e in our_rest.elements] == [(e.name, e.data) for e in rest.elements]
    assert Counter(our_rest.records) == Counter(rest.records) == Counter()


# ---- what does not go


def test_both_sides_must_be_told(tmp_path):
    for told, text in [(0, "mapped-ram is off here; switch it on here, too"), (1, "mapped-ram is off at the source")]:
        with pair(size=SIZE) as sides:
            switch_on(sides[told])
            sides[0].vm.migrate(f"file:{tmp_path}/x").wait(20)
            with pytest.raises(StreamError, match=re.escape(text)) as caught:
                sides[1].vm.incoming(f"file:{tmp_path}/x").wait(20)
            assert caught.value.kind == "bad-configuration"


@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:1", "unix:/nowhere", "exec:cat"])
def test_pages_need_a_file(uri):
    with pair(size=SIZE) as (source, destination):
        switch_on(source, destination)
        with pytest.raises(MigrationError, match="pages have fixed places; use file:PATH"):
            source.vm.migrate(uri).wait(20)
        with pytest.raises(MigrationError, match="pages have fixed places; use file:PATH"):
            destination.vm.incoming(uri)
        assert source.vm.run_state == "prelaunch"


def test_threads_need_places(tmp_path):
    with pair(size=SIZE) as (source, destination):
        for side in (source, destination):
            side.vm.set_capabilities(multifd=True)
        for begin in (source.vm.migrate, destination.vm.incoming):
            with pytest.raises(MigrationError, match="multifd needs further connections"):
                begin(f"file:{tmp_path}/x")
        assert not (tmp_path / "x").exists()


def test_a_pipe_is_no_file():
    reader, writer = os.pipe()
    with pair(size=SIZE) as (source, destination):
        switch_on(source, destination)
        with pytest.raises(MigrationError, match="use file:PATH, or fd: with a regular file"):
            source.vm.migrate("fd:x", fd=writer)
        with pytest.raises(MigrationError, match="use file:PATH, or fd: with a regular file"):
            destination.vm.incoming("fd:x", fd=reader).wait(20)


def test_pages_are_not_compressed(tmp_path):
    with pair(size=SIZE) as (source, destination):
        switch_on(source, destination, threads=2)
        for side in (source, destination):
            side.vm.set_parameters(multifd_compression="zstd")
        for begin in (source.vm.migrate, destination.vm.incoming):
            with pytest.raises(MigrationError, match="'multifd-compression' to 'none'"):
                begin(f"file:{tmp_path}/x")
        assert not (tmp_path / "x").exists()


def test_a_damaged_file_leaves_a_machine_that_can_be_loaded(tmp_path):
    with pair(size=SIZE) as (source, destination):
        switch_on(source, destination, threads=2)
        source.vm.start()
        runs(source)
        source.vm.migrate(f"file:{tmp_path}/x").wait(20)
        whole = (tmp_path / "x").read_bytes()
        (tmp_path / "cut").write_bytes(whole[: SIZE // 2])
        with pytest.raises(StreamError) as caught:
            destination.vm.incoming(f"file:{tmp_path}/cut").wait(20)
        assert caught.value.kind == "truncated"
        assert destination.vm.run_state == "inmigrate"
        destination.vm.incoming(f"file:{tmp_path}/x").wait(20)
        runs(destination)
        destination.vm.stop()
        destination.emulator.check()


def test_the_how_to_is_true(tmp_path):
    page = (REPOSITORY / "docs/how-to/snapshot-file.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "machine.qmig").stat().st_size > 1 << 20
