"""A guest that writes a few bytes a page moves by differences, and nothing of what it wrote is lost."""

import pytest

from qmig_e2k.monitor.client import QmpError
from support import PAGE, wait_until, written

WORKING_SET = 64 << 20
PAGES = WORKING_SET // PAGE


@pytest.fixture
def sides(serve):
    """Source, whose guest runs, and destination; the source alone knows of XBZRLE.

    The guest writes to more pages, and as fast as it can, than a round could leave it time for none: with a downtime
    limit of 0 its migration does not end.
    """
    machine = ["-m", "80M", "-smp", "2", "--guest", "random,wss=64M"]
    destination = serve(*machine, machine="e2k", incoming="defer")
    source = serve(*machine, "--seed", "11", machine="e2k")
    source.set_capabilities(xbzrle=True)
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=0)
    for side in (source, destination):
        side.command("cont")
    wait_until(lambda: written(source.memory(WORKING_SET)), what="a write to every page of the working set")
    return source, destination


def begin(source, destination):
    """Returns when differences have been sent."""
    source.command("migrate", uri=destination.listen())
    differences(source, 1)


def differences(source, pages):
    """Waits for so many pages sent as differences."""

    def sent():
        return source.migration().get("xbzrle-cache", {}).get("pages", 0) >= pages

    wait_until(sent, 30, f"{pages} differences")


def end(source, destination):
    source.command("migrate-set-parameters", downtime_limit=20_000)
    info = source.wait_migration("completed")
    destination.wait_arrived()
    verify(destination)
    return info


def verify(peer):
    """Every step of the guest replayed."""
    peer.command("stop")
    answer = peer.command("x-verify")
    assert answer["equal"], answer
    assert answer["steps"] > 0


def test_a_busy_machine_moves_by_differences(sides):
    source, destination = sides
    begin(source, destination)
    info = end(source, destination)

    cache = info["xbzrle-cache"]
    assert cache["cache-size"] == 64 << 20
    assert cache["pages"] > 0
    assert cache["cache-miss"] > 0
    assert cache["pages"] * (8 + 3 + 3) <= cache["bytes"] < cache["pages"] * (8 + 3 + PAGE)
    assert info["ram"]["transferred"] > info["ram"]["normal"] * PAGE + cache["bytes"]
    text = source.command("human-monitor-command", command_line="info migrate")
    assert f"xbzrle pages: {cache['pages']} pages\r\n" in text


def test_the_cache_changes_its_size_on_the_way(sides):
    source, destination = sides
    begin(source, destination)
    with pytest.raises(QmpError, match="power of two"):
        source.command("migrate-set-parameters", xbzrle_cache_size=12288)
    source.command("migrate-set-parameters", xbzrle_cache_size=WORKING_SET // 8)
    # seven of eight pages find no room now, and are missing again and again
    more = source.migration()["xbzrle-cache"]["cache-miss"] + 2 * PAGES

    def missed():
        return source.migration()["xbzrle-cache"]["cache-miss"] > more

    wait_until(missed, 30, "misses of the smaller cache")
    had = source.migration()["xbzrle-cache"]
    assert had["cache-size"] == WORKING_SET // 8
    source.command("migrate-set-parameters", xbzrle_cache_size=WORKING_SET)
    differences(source, had["pages"] + 2 * PAGES)
    end(source, destination)


def test_then_by_postcopy(sides):
    """What is sent after the switch are whole pages: nothing else is taken there."""
    source, destination = sides
    for side in (source, destination):
        side.set_capabilities(postcopy_ram=True)
    begin(source, destination)
    source.command("migrate-start-postcopy")
    info = source.wait_migration("completed")
    destination.wait_migration("completed")
    assert info["xbzrle-cache"]["pages"] > 0
    verify(destination)


@pytest.mark.parametrize("xbzrle", [True, False])
def test_with_it_a_guest_is_outrun(serve, xbzrle):
    """The working set takes half a second at this bandwidth, in which the guest writes to all of it again."""
    machine = ["-m", "48M", "--guest", "random,wss=32M,rate=200000"]
    destination, source = serve(*machine, machine="e2k", incoming="defer"), serve(*machine, machine="e2k")
    source.set_capabilities(xbzrle=xbzrle)
    source.command("migrate-set-parameters", max_bandwidth=64 << 20, downtime_limit=300)
    for side in (source, destination):
        side.command("cont")
    wait_until(lambda: written(source.memory(32 << 20)), what="a write to every page of the working set")
    source.command("migrate", uri=destination.listen())
    if xbzrle:
        source.wait_migration("completed")
        destination.wait_arrived()
        verify(destination)
    else:
        wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 4, 30, "rounds")
        info = source.migration()
        assert info["status"] == "active"
        assert "xbzrle-cache" not in info
