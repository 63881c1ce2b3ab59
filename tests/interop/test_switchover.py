"""The switchover beside that of a real QEMU 7.2: pausing before it, and machines that compare their UUIDs."""

import pytest

from interop.test_query_migrate import members
from qmig_e2k.monitor.client import QmpError
from support import assert_same_memory, mixed_ram

SIZE = 4 << 20
SIDES = [("qemu", "serve"), ("serve", "qemu")]
UUIDS = ("11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-555555555556")


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


@pytest.fixture
def start(qemu, serve, image):
    """`start("qemu", ...)`: 4 MiB, with the image as a source, else waiting."""

    def start(kind, *arguments, **options):
        options.setdefault("ram", None if "incoming" in options else image)
        return {"qemu": qemu, "serve": serve}[kind]("-m", "4M", *arguments, **options)

    return start


def history(peer, until):
    """The events that tell of a migration, up to the status `until`."""
    found = []
    while found[-1:] != [until]:
        event = peer.qmp.event(20)
        assert event is not None, f"no `{until}` after {found}"
        if event["event"] == "MIGRATION":
            found.append(event["data"]["status"])
        elif event["event"] in ("STOP", "RESUME"):
            found.append(event["event"])
    return found


def test_pausing_before_it(start, content):
    """Both go through the same statuses, answer alike in each, and refuse alike what is no continuation."""
    told = {}
    for here, there in SIDES:
        source, destination = start(here), start(there, incoming="defer")
        source.set_capabilities(pause_before_switchover=True, events=True)
        source.command("cont")
        source.command("migrate", uri=destination.listen())
        paused = source.wait_migration("pre-switchover")
        refusals = []
        for state in ("device", "active", "pre-switchover-"):
            with pytest.raises(QmpError) as caught:
                source.command("migrate-continue", state=state)
            refusals.append(caught.value.error_class)
        with pytest.raises(QmpError):
            source.command("cont")
        assert (source.run_state(), destination.run_state()) == ("finish-migrate", "inmigrate")
        source.command("migrate-continue", state="pre-switchover")
        completed = source.wait_migration("completed")
        destination.wait_arrived()
        assert_same_memory(destination.memory(SIZE), content)
        told[here] = members(paused), members(completed), refusals, history(source, "completed")
    assert told["serve"] == told["qemu"]


@pytest.mark.parametrize(("here", "there"), SIDES)
def test_cancelled_in_the_pause(start, content, here, there):
    source, destination = start(here), start(there, incoming="defer")
    source.set_capabilities(pause_before_switchover=True)
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("pre-switchover")
    source.command("migrate_cancel")
    source.wait_migration("cancelled")
    source.wait_let_go()
    assert source.run_state() == "running"
    # and the next one is a migration like any other
    source.set_capabilities(pause_before_switchover=False)
    another = start(there, incoming="defer")
    source.command("migrate", uri=another.listen())
    source.wait_migration("completed")
    another.wait_arrived()
    assert_same_memory(another.memory(SIZE), content)


@pytest.mark.parametrize(("here", "there"), SIDES)
@pytest.mark.parametrize("same", [True, False])
def test_machines_that_compare_their_uuids(start, content, here, there, same):
    source = start(here, "-uuid", UUIDS[0])
    destination = start(there, "-uuid", UUIDS[not same], incoming="defer")
    for side in (source, destination):
        side.set_capabilities(validate_uuid=True, return_path=True)
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    if same:
        source.wait_migration("completed")
        destination.wait_arrived()
        assert_same_memory(destination.memory(SIZE), content)
        return
    source.wait_migration("failed")
    assert source.run_state() == "running"
    if there == "serve":
        assert "UUID" in destination.wait_migration("failed")["error-desc"]
    else:
        destination.process.wait(20)
        assert "uuid" in destination.words().lower()
