"""query-migrate and the MIGRATION events member for member against a real QEMU 7.2, by state.

The real one's answers come from migrations of its own; ours from a Control that goes through the same states.
"""

import contextlib
import json
import socket

import pytest

from qmig_e2k._core import Control
from support import PAGE, mixed_ram, wait_until

RATES = {"mbps", "cache-miss-rate", "encoding-rate", "busy-rate", "compression-rate"}
KINDS = {bool: "bool", int: "int", float: "number", str: "str", dict: "object", list: "list"}


def members(answer):
    """Names and JSON types, our own additions left out. An integer may stand where a number is meant."""
    found = {}
    for name, value in answer.items():
        if name.startswith("x-"):
            continue
        kind = "number" if name in RATES else KINDS[type(value)]
        found[name] = members(value) if kind == "object" else kind
    return found


def ours(control):
    return json.loads(control.query_migrate())


def test_source_answers(qemu, tmp_path):
    source = qemu()
    control = Control()
    assert members(source.migration()) == members(ours(control)) == {}

    # failed: nobody listens
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with contextlib.suppress(AssertionError):
            source.command("migrate", uri=f"tcp:127.0.0.1:{taken.getsockname()[1]}")
        failed = source.wait_migration("failed")
    control.begin_outgoing()
    control.fail_outgoing("nobody listens")
    control.finish_outgoing()
    assert members(failed) == members(ours(control))

    source.wait_let_go()
    # active, then cancelled: too slow to end by itself; each capability with its object
    source.set_capabilities(xbzrle=True, compress=True)
    control.set_capabilities(["xbzrle", "compress"])
    destination = qemu(incoming=f"unix:{tmp_path}/first")
    source.command("migrate-set-parameters", max_bandwidth=4096)
    source.command("migrate", uri=f"unix:{tmp_path}/first")
    active = source.wait_migration("active")
    control.begin_outgoing()
    control.set_outgoing_status("setup", "active")
    assert members(active) == members(ours(control))
    assert active["expected-downtime"] == ours(control)["expected-downtime"]

    arriving = destination.migration()
    loading = Control()
    loading.begin_incoming()
    loading.set_socket_addresses(json.dumps(arriving["socket-address"]))
    loading.set_incoming_status("none", "active")
    assert arriving == ours(loading)

    source.command("migrate_cancel")
    cancelled = source.wait_migration("cancelled")
    assert control.cancel()
    control.finish_outgoing()
    assert members(cancelled) == members(ours(control))

    # completed
    destination = qemu(incoming=f"unix:{tmp_path}/second")
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.command("migrate", uri=f"unix:{tmp_path}/second")
    completed = source.wait_migration("completed")
    destination.wait_arrived()
    control.begin_outgoing()
    control.set_outgoing_status("setup", "active")
    control.mark_stopped()
    control.set_outgoing_status("active", "completed")
    control.finish_outgoing()
    assert members(completed) == members(ours(control))
    assert completed["ram"]["page-size"] == ours(control)["ram"]["page-size"]

    # a destination that is done has forgotten where it listened
    loading.set_socket_addresses(None)
    loading.set_incoming_status("active", "completed")
    wait_until(lambda: destination.migration() == ours(loading), what="the destination's answer")


@contextlib.contextmanager
def deaf(path):
    """A listener that lets nobody in: who connects waits, which is status `setup`."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(2):  # as many as the kernel takes for a backlog of none
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(str(path))
        yield f"unix:{path}"


def test_while_it_connects(qemu, serve, tmp_path):
    """`setup` says nothing more, whatever was before, and can be cancelled."""
    found = {}
    with deaf(tmp_path / "deaf") as uri:
        for side in (qemu("-m", "4M"), serve("-m", "4M")):
            side.command("migrate", uri="exec:cat > /dev/null")
            side.wait_migration("completed")
            side.command("cont")
            side.command("migrate", uri=uri)
            answers = [members(side.migration())]
            assert side.migration()["status"] == "setup"
            side.command("migrate_cancel")
            found[side.serves] = answers
            assert side.migration()["status"] in ("cancelling", "cancelled")
    assert found[True] == found[False] == [{"status": "str"}]


def test_figures_of_a_still_machine(qemu, serve, tmp_path):
    """The same memory through the same kind of channel: what is counted, and not measured, is the same."""
    content = mixed_ram(4 << 20)
    (tmp_path / "image").write_bytes(content)
    found = {}
    for start in (qemu, serve):
        source = start("-m", "4M", ram=tmp_path / "image")
        source.command("migrate", uri="exec:cat > /dev/null")
        answer = source.wait_migration("completed")
        found[source.serves] = answer["ram"]
    measured = {"mbps", "pages-per-second", "dirty-sync-count", "transferred", "precopy-bytes", "downtime-bytes"}
    theirs, ours = ({name: ram[name] for name in ram.keys() - measured} for ram in (found[False], found[True]))
    assert ours == theirs
    assert ours["normal"] + ours["duplicate"] == (4 << 20) // PAGE
    # RAM's records are nearly all of it; ours counts what frames them, too
    assert found[True]["transferred"] == pytest.approx(found[False]["transferred"], rel=0.01)


def test_status_answers(qemu):
    running, control = qemu(), Control()
    real, made = running.command("query-status"), json.loads(control.query_status())
    assert {k: type(v) for k, v in real.items()} == {k: type(v) for k, v in made.items()}
    assert real == made
