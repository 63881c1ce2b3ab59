"""Differences to and from a real QEMU, whose guest and ours write a few bytes a page."""

import hashlib
import json
import lzma
from pathlib import Path

import pytest

from elements import take_apart
from qmig_e2k import Vm, cli
from qmig_e2k.analyze import analyze
from qmig_e2k.migration.stream import Saving
from qmig_e2k.testing import pair
from support import PAGE, STREAMS, assert_same_memory, wait_until, written

SIZE = 4 << 20
PAGES = SIZE // PAGE
BIOS = Path(__file__).parent / "guest" / "bios-random-1024.bin"
MIB = 1 << 20


def test_to_qemu_from_a_busy_guest(qemu, monkeypatch):
    """QEMU stays paused, so its RAM is what arrived."""
    # something else is still to be sent, so no round is the last, however the guest is scheduled
    rest = [1 << 40]
    monkeypatch.setattr(Saving, "pending", lambda _: rest[0])
    destination = qemu("-m", f"{SIZE >> 20}M", incoming="defer")
    with pair("none", SIZE) as (source, _):
        source.vm.set_capabilities(xbzrle=True)
        # half of the pages find no room at first
        source.vm.set_parameters(xbzrle_cache_size=SIZE // 2)
        source.vm.start()
        migration = source.vm.migrate(destination.listen())

        def differences():
            return migration.info().get("xbzrle-cache", {}).get("pages", 0)

        wait_until(lambda: differences() > 5 * PAGES, 30, "differences")
        source.vm.set_parameters(xbzrle_cache_size=SIZE)
        more = differences() + 10 * PAGES
        wait_until(lambda: differences() > more, 30, "more of them")
        wait_until(lambda: migration.info()["ram"]["dirty-sync-count"] > 20, 30, "20 rounds")
        rest[0] = 0
        migration.wait(30)
        destination.wait_arrived()

        source.emulator.check()
        assert_same_memory(destination.memory(SIZE), source.ram.read(0, SIZE))


@pytest.fixture(scope="module")
def captured(qemu_binary, tmp_path_factory):
    """A stream with differences that a real QEMU has just written, and that QEMU's RAM from 1 MiB on."""
    from interop.qemu_peer import QemuPeer

    folder = tmp_path_factory.mktemp("captured")
    path = folder / "stream"
    with QemuPeer(qemu_binary, folder / "qemu", "-accel", "tcg", "-m", "16M", "-bios", str(BIOS), machine="pc") as peer:
        peer.command("cont")
        # 1024 pages are written in any order
        wait_until(lambda: written(peer.memory(4 * MIB, MIB)), what="a write to every page")
        peer.set_capabilities(xbzrle=True)
        # so slow that all of them are written again in each of the first two rounds, as long as they go whole
        peer.command("migrate-set-parameters", downtime_limit=1, max_bandwidth=8 * MIB)
        peer.command("migrate", uri=f"exec:cat > {path}")
        wait_until(lambda: peer.migration().get("xbzrle-cache", {}).get("pages", 0) > 0, 30, "differences")
        peer.command("migrate-set-parameters", downtime_limit=2000)
        peer.wait_migration("completed")
        return path, peer.memory(15 * MIB, MIB)


def test_analysed(captured, tmp_path):
    path, memory = captured
    assert cli.main(["analyze", str(path), "--json", "--extract-ram", str(tmp_path)]) == 0
    assert_same_memory((tmp_path / "pc.ram").read_bytes()[MIB:], memory)


def live(stream, folder):
    """Content of `pc.ram` after RAM of a stored stream has come in as a migration of a machine with the same blocks.

    Header, configuration and the sections after RAM are our own.
    """
    (folder / "theirs").write_bytes(stream)
    made = analyze(folder / "theirs")
    assert made.pages["xbzrle"] > 0
    with Vm("none") as source:
        for block in made.blocks:
            source.add_ram(block.name, block.size)
        source.migrate(f"file:{folder}/ours").wait(20)
    ours = (folder / "ours").read_bytes()
    parts = take_apart(ours)
    begin, rest = parts.element("start").offset, parts.element("timer").offset
    theirs = 8 + 1 + 4 + int.from_bytes(stream[9:13], "big")
    (folder / "mixed").write_bytes(ours[:begin] + stream[theirs : made.devices[0].offset] + ours[rest:])
    with Vm("none") as destination:
        blocks = {block.name: destination.add_ram(block.name, block.size) for block in made.blocks}
        destination.incoming(f"file:{folder}/mixed").wait(30)
        return blocks["pc.ram"].read(0, blocks["pc.ram"].size)


def test_loaded(captured, tmp_path):
    path, memory = captured
    assert_same_memory(live(path.read_bytes(), tmp_path)[MIB:], memory)


def test_the_golden_stream_loads(tmp_path):
    facts = json.loads((STREAMS / "qemu7-pc-xbzrle.json").read_text())
    memory = live(lzma.decompress((STREAMS / "qemu7-pc-xbzrle.stream.xz").read_bytes()), tmp_path)
    assert hashlib.sha256(memory[facts["ram_sha256_from"] :]).hexdigest() == facts["ram_sha256"]
