"""A busy guest moves over several channels: all pages arrive as they were last, or it runs on where it was."""

import json
import re

import pytest

from support import REPOSITORY, wait_until, written

GUEST = "random,wss=4M,rate=1000000"


def agree(*sides, channels=2, method="none"):
    for side in sides:
        side.set_capabilities(multifd=True)
        side.command("migrate-set-parameters", multifd_channels=channels, multifd_compression=method)


def busy(serve, format_):
    """A machine whose guest has written to each page of its working set, and goes on."""
    source = serve("-m", "16M", "--format", format_, "--guest", GUEST, machine="e2k")
    source.command("cont")
    wait_until(lambda: written(source.memory(4 << 20)), what="a write to every page of the working set")
    return source


@pytest.mark.parametrize(
    ("format_", "method", "channels"),
    [("7.2", "none", 2), ("7.2", "zlib", 3), ("10.0", "none", 1), ("10.0", "zstd", 3)],
)
def test_a_busy_guest_goes_on_where_it_stopped(serve, format_, method, channels):
    source = busy(serve, format_)
    destination = serve("-m", "16M", "--guest", GUEST, incoming="defer", machine="e2k")
    destination.command("cont")  # on arrival
    agree(source, destination, channels=channels, method=method)
    bandwidth = (32 if method == "none" else 12) << 20
    source.command("migrate-set-parameters", max_bandwidth=bandwidth, downtime_limit=1)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 3, what="the third round")
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=20000)
    source.wait_migration("completed")
    destination.wait_arrived()

    steps = source.command("x-verify")
    assert steps["equal"]
    wait_until(lambda: destination.run_state() == "running", what="the guest to run")
    destination.command("stop")
    there = destination.command("x-verify")
    assert there["equal"]
    assert there["steps"] >= steps["steps"]


def test_when_the_destination_is_lost_the_source_runs_on(serve, tmp_path):
    source, lost = busy(serve, "7.2"), serve("-m", "16M", incoming="defer", machine="e2k")
    agree(source, lost, channels=3)
    source.command("migrate-set-parameters", max_bandwidth=2 << 20)
    source.command("migrate", uri=lost.listen(f"unix:{tmp_path}/channel"))
    source.wait_migration("active")
    lost.process.kill()
    source.wait_migration("failed")
    assert source.run_state() == "running"

    last = serve("-m", "16M", incoming="defer", machine="e2k")
    agree(last, channels=3)
    source.command("migrate-set-parameters", max_bandwidth=0, downtime_limit=20000)
    source.command("migrate", uri=last.listen(f"unix:{tmp_path}/other"))
    source.wait_migration("completed")
    last.wait_arrived()
    assert source.command("x-verify")["equal"]


def test_as_many_channels_as_there_can_be(serve, tmp_path):
    source, destination = serve("-m", "8M", machine="e2k"), serve("-m", "8M", incoming="defer", machine="e2k")
    agree(source, destination, channels=255)
    source.command("migrate", uri=destination.listen(f"unix:{tmp_path}/channel"))
    source.wait_migration("completed")
    destination.wait_arrived()
    assert destination.memory(8 << 20) == source.memory(8 << 20)


def test_the_how_to(serve):
    """Its commands, with the port that is free here."""
    text = (REPOSITORY / "docs/how-to/several-channels.md").read_text()
    (block,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    sides = {"source": serve("-m", "8M"), "destination": serve("-m", "8M", incoming="defer")}
    uri = ""
    for line in block.splitlines():
        who, request = line.split(None, 1)
        words = json.loads(request)
        if words["execute"] == "migrate-incoming":
            assert words["arguments"]["uri"].startswith("tcp:0:")
            uri = sides[who].listen()
        elif words["execute"] == "migrate":
            sides[who].command("migrate", uri=uri)
        else:
            for name in sides if who == "both" else [who]:
                sides[name].qmp.execute(words["execute"], words["arguments"])
    assert sides["source"].wait_migration("completed")["ram"]["multifd-bytes"] > 0
    sides["destination"].wait_arrived()
