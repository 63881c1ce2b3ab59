"""Compressed pages between two machines of ours: a busy guest, a recorded stream, and what is refused."""

import hashlib
import json
import lzma
import zlib

import pytest

from qmig_e2k.monitor.client import QmpError
from support import STREAMS, wait_until

GUEST = ["-m", "32M", "-smp", "2", "--guest", "random,wss=8M,rate=200000"]


@pytest.mark.parametrize("extra", [{}, {"xbzrle": True}], ids=["alone", "with xbzrle"])
@pytest.mark.parametrize("wait", [True, False], ids=["waiting", "not waiting"])
def test_a_busy_machine_moves(serve, wait, extra):
    destination = serve(*GUEST, machine="e2k", incoming="defer")
    source = serve(*GUEST, "--seed", "5", machine="e2k")
    for side in (source, destination):
        side.set_capabilities(compress=True, **extra)
        side.command("cont")
    source.command("migrate-set-parameters", compress_threads=2, compress_wait_thread=wait)
    source.command("migrate-set-parameters", max_bandwidth=8 << 20, downtime_limit=0)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 3, what="the third round")
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=20_000)
    info = source.wait_migration("completed")
    destination.wait_arrived()
    destination.command("stop")
    answer = destination.command("x-verify")
    assert answer["equal"], answer
    assert info["compression"]["pages"] > 0
    pages = info["compression"]["pages"]
    text = source.command("human-monitor-command", command_line="info migrate")
    assert f"compression pages: {pages} pages\r\n" in text


def test_the_switch_to_postcopy(serve):
    destination = serve(*GUEST, machine="e2k", incoming="defer")
    source = serve(*GUEST, "--seed", "6", machine="e2k")
    for side in (source, destination):
        side.set_capabilities(compress=True, postcopy_ram=True)
        side.command("cont")
    source.command("migrate-set-parameters", max_bandwidth=8 << 20, downtime_limit=0)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("compression", {}).get("pages", 0) > 0, what="the first compressed page")
    source.command("migrate-start-postcopy")
    source.wait_migration("completed")
    destination.wait_migration("completed")
    destination.command("stop")
    answer = destination.command("x-verify")
    assert answer["equal"], answer


def test_a_recorded_stream_loads(serve, tmp_path):
    facts = json.loads((STREAMS / "qemu7-none-compress.json").read_text())
    stream = lzma.decompress((STREAMS / "qemu7-none-compress.stream.xz").read_bytes())
    (tmp_path / "in").write_bytes(stream)
    size = facts["ram_bytes"]
    peer = serve("-m", f"{size >> 20}M", incoming="defer")
    peer.set_capabilities(compress=True)
    peer.command("migrate-set-parameters", decompress_threads=3)
    peer.listen(f"file:{tmp_path}/in")
    peer.wait_migration("completed")
    assert hashlib.sha256(peer.memory(size)[facts.get("ram_sha256_from", 0) :]).hexdigest() == facts["ram_sha256"]

    # a last section like any other, with a page that does not decode
    bad = zlib.compress(bytes(4095))
    record = (0x100).to_bytes(8) + b"\3ram" + len(bad).to_bytes(4) + bad
    footer = b"\x7e\0\0\0\2"
    at = stream.rindex(footer + b"\3\0\0\0\2") + len(footer)
    (tmp_path / "bad").write_bytes(stream[: at + 5] + record + stream[at + 5 :])
    peer = serve("-m", f"{size >> 20}M", incoming="defer")
    peer.set_capabilities(compress=True)
    peer.listen(f"file:{tmp_path}/bad")
    failed = peer.wait_migration("failed")
    assert f"page 0x0: zlib: only 4095 of 4096 bytes come out (at stream offset {at + 5:#x})" in failed["error-desc"]
    assert peer.run_state() == "inmigrate"


@pytest.mark.parametrize("other", [{"postcopy_preempt": True, "postcopy_ram": True}, {"multifd": True}])
def test_what_cannot_be_on_together(serve, other):
    peer = serve("-m", "1M")
    peer.set_capabilities(compress=True)
    with pytest.raises(QmpError):
        peer.set_capabilities(**other)
    on = {each["capability"] for each in peer.command("query-migrate-capabilities") if each["state"]}
    assert on == {"compress"}
