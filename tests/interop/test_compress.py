"""Compressed pages between this project and a real QEMU 7.2, in both directions, in precopy and in postcopy."""

import pytest

from support import PAGE, assert_same_memory, mixed_ram, wait_until, written

SIZE = 32 << 20
DIRECTIONS = [("qemu", "serve"), ("serve", "qemu")]


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


@pytest.fixture
def sides(qemu, serve, content, tmp_path):
    """`sides("qemu", "serve", ...)`: a running source full of data, and a destination, both with `compress`."""

    def sides(here, there, **capabilities):
        (tmp_path / "image").write_bytes(content)
        start = {"qemu": qemu, "serve": serve}
        source = start[here]("-m", "32M", ram=tmp_path / "image")
        destination = start[there]("-m", "32M", incoming="defer")
        for side in (source, destination):
            side.set_capabilities(compress=True, events=True, **capabilities)
        source.command("cont")
        return source, destination

    return sides


def check_moved(source, destination, content):
    info = source.wait_migration("completed")
    destination.wait_arrived()
    assert_same_memory(destination.memory(SIZE), content)
    return info


@pytest.mark.parametrize(
    ("level", "threads", "others"),
    [pytest.param(1, 8, 2, id="defaults"), pytest.param(9, 1, 1, id="one thread"), pytest.param(0, 3, 4, id="stored")],
)
@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_compressed_pages(sides, content, here, there, level, threads, others):
    source, destination = sides(here, there)
    source.command("migrate-set-parameters", compress_level=level, compress_threads=threads, max_bandwidth=0)
    destination.command("migrate-set-parameters", decompress_threads=others)
    source.command("migrate", uri=destination.listen())
    info = check_moved(source, destination, content)
    ram, compression = info["ram"], info["compression"]
    assert ram["duplicate"] + ram["normal"] + compression["pages"] >= SIZE // PAGE
    if level:
        assert compression["pages"] > 0
        assert ram["transferred"] < SIZE // 2


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_nobody_waits_for_a_worker(sides, content, here, there):
    source, destination = sides(here, there)
    source.command("migrate-set-parameters", compress_threads=1, compress_wait_thread=False, max_bandwidth=0)
    source.command("migrate", uri=destination.listen())
    check_moved(source, destination, content)


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_with_xbzrle(sides, content, here, there):
    """After the first pass XBZRLE has the pages; here there are none."""
    source, destination = sides(here, there, xbzrle=True)
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.command("migrate", uri=destination.listen())
    check_moved(source, destination, content)


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_with_postcopy_allowed(sides, content, here, there):
    """Precopy that might have become postcopy: pages are noted as they come."""
    source, destination = sides(here, there, postcopy_ram=True)
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.command("migrate", uri=destination.listen())
    check_moved(source, destination, content)


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_postcopy(sides, content, here, there):
    """QEMU goes on compressing after the switch; we send such pages as they are."""
    source, destination = sides(here, there, postcopy_ram=True)
    source.command("migrate-set-parameters", max_bandwidth=2 << 20, max_postcopy_bandwidth=0)
    source.command("migrate", uri=destination.listen())
    wait_until(
        lambda: source.migration().get("compression", {}).get("pages", 0) > 0, what="compressed pages before the switch"
    )
    source.command("migrate-start-postcopy")
    info = check_moved(source, destination, content)
    assert info["ram"]["postcopy-bytes"] > 0


def test_while_the_guest_writes(qemu, serve):
    source = serve("--guest", "random,wss=16M,rate=1000000")
    destination = qemu(incoming="defer")  # stays paused: its RAM is what arrived
    for side in (source, destination):
        side.set_capabilities(compress=True)
    source.command("cont")
    wait_until(lambda: written(source.memory(16 << 20)), what="a write to every page of the working set")
    source.command("migrate-set-parameters", max_bandwidth=16 << 20, downtime_limit=1, compress_threads=2)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 3, what="the third round")
    wait_until(lambda: source.migration()["compression"]["compression-rate"] > 1, what="a rate")
    source.command("migrate-set-parameters", downtime_limit=20_000, max_bandwidth=0)
    info = source.wait_migration("completed")
    destination.wait_arrived()

    assert_same_memory(destination.memory(64 << 20), source.memory(64 << 20))
    assert info["compression"]["pages"] > 16 << 20 >> 12
    assert source.command("x-verify")["equal"]
