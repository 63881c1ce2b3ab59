"""HMP texts beside those of a real QEMU 7.2: the same lines, numbers aside."""

import re

import pytest

from support import wait_until

FINAL = ("completed", "failed", "cancelled")


def text(peer, line):
    return peer.command("human-monitor-command", command_line=line)


def shape(answer):
    return re.sub(r"\d+(\.\d+)?", "N", answer)


def test_parameters_are_printed_alike(qemu, serve):
    peers = qemu("-m", "4M"), serve("-m", "4M")
    for peer in peers:
        peer.command("migrate-set-parameters", max_bandwidth=12345, tls_hostname="there", cpu_throttle_tailslow=True)
    theirs, ours = (text(peer, "info migrate_parameters") for peer in peers)
    assert ours == theirs


def test_capabilities_are_printed_alike(qemu, serve):
    peers = qemu("-m", "4M"), serve("-m", "4M")
    for peer in peers:
        peer.set_capabilities(events=True)
    theirs, ours = (text(peer, "info migrate_capabilities") for peer in peers)
    assert ours.startswith(theirs), "names of later versions follow"


@pytest.mark.parametrize("outcome", ["none", "completed", "failed", "completed with xbzrle"])
def test_migration_and_status_are_printed_alike(qemu, serve, outcome):
    outcome, _, capability = outcome.partition(" with ")
    uri = {"completed": "exec:cat > /dev/null", "failed": "tcp:127.0.0.1:1"}.get(outcome)
    peers = qemu("-m", "4M"), serve("-m", "4M")
    for peer in peers:
        if capability:
            peer.set_capabilities(**{capability: True})
        if uri is not None:
            peer.command("migrate", uri=uri)
            wait_until(lambda peer=peer: peer.migration()["status"] in FINAL, what="the end")
            assert peer.migration()["status"] == outcome
    assert text(peers[1], "info status") == text(peers[0], "info status")
    theirs, ours = (shape(text(peer, "info migrate")) for peer in peers)
    # the words of a reason are each one's own, and which phases sent bytes depends on the run
    own = r"\(.*\)|(precopy|downtime) ram: N kbytes\r\n"
    assert re.sub(own, "", ours) == re.sub(own, "", theirs)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "teleport",
        "info teleport",
        "info migrate now",
        "migrate_recover",
        "migrate_recover one two",
        "migrate_start_postcopy now",
        "migrate_pause now",
    ],
)
def test_mistakes_are_answered_alike(qemu, serve, line):
    assert text(serve("-m", "4M"), line) == text(qemu("-m", "4M"), line)
