"""query-migrate and the MIGRATION events member for member against a real QEMU 7.2, by state.

The real one's answers come from migrations of its own; ours from a Control that goes through the same states.
"""

import contextlib
import json
import socket

from qmig_e2k._core import Control
from support import wait_until

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


def test_status_answers(qemu):
    running, control = qemu(), Control()
    real, made = running.command("query-status"), json.loads(control.query_status())
    assert {k: type(v) for k, v in real.items()} == {k: type(v) for k, v in made.items()}
    assert real == made
