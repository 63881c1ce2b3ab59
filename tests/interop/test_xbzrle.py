"""Differences to and from a real QEMU, whose guest and ours write a few bytes a page."""

import hashlib
import json
import lzma
from pathlib import Path

import pytest

from elements import take_apart
from qmig_e2k import Vm, cli
from qmig_e2k.analyze import analyze
from support import PAGE, STREAMS, assert_same_memory, wait_until, written

SIZE = 80 << 20
WORKING_SET = 64 << 20
BIOS = Path(__file__).parent / "guest" / "bios-random-1024.bin"
MIB = 1 << 20


def move(source, destination, least):
    """From a guest that writes to more pages, and faster, than a round could leave it time for none.

    With a downtime limit of 0 no round is the last then, unless other programs keep the guest from running that long.

    Returns:
        query-migrate at the end, after `least` rounds or, where that happened, fewer.
    """
    source.command("cont")
    wait_until(lambda: written(source.memory(WORKING_SET)), what="a write to every page of the working set")
    source.set_capabilities(xbzrle=True)
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=0)
    source.command("migrate", uri=destination.listen())

    def enough():
        answer = source.migration()
        return answer["status"] == "completed" or answer.get("ram", {}).get("dirty-sync-count", 0) > least

    wait_until(enough, 30, f"{least} rounds")
    source.command("migrate-set-parameters", downtime_limit=20_000)
    info = source.wait_migration("completed")
    destination.wait_arrived()
    return info


def test_to_qemu_from_a_busy_guest(qemu, serve):
    """QEMU stays paused, so its RAM is what arrived."""
    for _ in range(5):
        source, destination = (
            serve("-m", "80M", "--guest", "random,wss=64M,rate=4000000"),
            qemu("-m", "80M", incoming="defer"),
        )
        info = move(source, destination, least=20)
        memory = source.memory(SIZE)
        assert_same_memory(destination.memory(SIZE), memory)
        if info["ram"]["dirty-sync-count"] > 20:
            break
    assert info["ram"]["dirty-sync-count"] > 20
    assert info["xbzrle-cache"]["pages"] > 2 * WORKING_SET // PAGE


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
