"""Programs made for QEMU drive `serve` without noticing: libvirt's sequences, and the shell of `qemu.qmp`."""

import subprocess
import sys
from pathlib import Path

from support import wait_until

PROBES = [
    "query-version",
    "query-commands",
    "query-qmp-schema",
    "query-kvm",
    "query-target",
    "query-uuid",
    "query-name",
]
"""What libvirt asks a new process, as far as a machine without disks and displays can answer."""


def capabilities(**states):
    found = [{"capability": name.replace("_", "-"), "state": state} for name, state in states.items()]
    return "migrate-set-capabilities", {"capabilities": found}


PREPARE = [
    ("query-migrate-capabilities", {}),
    capabilities(events=True),
    ("query-migrate-parameters", {}),
    capabilities(xbzrle=False, auto_converge=False, rdma_pin_all=False, postcopy_ram=False, compress=False),
    capabilities(pause_before_switchover=True, return_path=True),
]
DEPART = [
    ("migrate-set-parameters", {"max-bandwidth": 1 << 16, "downtime-limit": 300, "tls-creds": "", "tls-hostname": ""}),
    ("query-migrate", {}),
]


def replay(peer, table):
    for command, arguments in table:
        peer.qmp.execute(command, arguments)


def test_a_migration_as_libvirt_does_it(serve):
    """Probe, prepare both, begin slowly, cancel, do it again, wait at the switchover, go on, and let it run there."""
    destination = serve("-m", "16M", machine="e2k", incoming="defer")
    source = serve("-m", "16M", "--guest", "random,rate=1000", "-name", "guest", machine="e2k")
    for peer in (source, destination):
        for probe in PROBES:
            assert peer.command(probe) is not None
        replay(peer, PREPARE)
    source.command("cont")
    replay(source, DEPART)

    source.command("migrate", detach=True, uri=destination.listen())
    source.qmp.wait_event("MIGRATION", status="active")
    source.command("migrate_cancel")
    source.qmp.wait_event("MIGRATION", status="cancelled")
    assert source.command("query-status")["running"]
    wait_until(lambda: destination.migration().get("status") == "failed", what="the destination noticing")

    source.command("migrate-set-parameters", max_bandwidth=0)
    source.command("migrate", detach=True, uri=destination.listen())
    source.qmp.wait_event("STOP")
    source.qmp.wait_event("MIGRATION", status="pre-switchover")
    source.command("migrate-continue", state="pre-switchover")
    source.qmp.wait_event("MIGRATION", status="completed")
    destination.qmp.wait_event("MIGRATION", status="completed")
    assert source.migration()["ram"]["remaining"] == 0
    source.command("quit")
    destination.command("cont")
    assert destination.command("query-status")["running"]


def test_the_shell_of_qemu_qmp(serve):
    peer = serve("-m", "4M")
    shell = Path(sys.executable).with_name("qmp-shell")
    lines = [
        "query-status",
        "migrate-set-parameters max-bandwidth=1048576 downtime-limit=20",
        'migrate-set-capabilities capabilities=[{"capability":"events","state":true}]',
        "teleport",
        "cont",
    ]
    done = subprocess.run(
        [shell, str(peer.folder / "qmp")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"prelaunch"' in done.stdout
    assert "CommandNotFound" in done.stdout
    assert peer.command("query-migrate-parameters")["downtime-limit"] == 20
    assert {"capability": "events", "state": True} in peer.command("query-migrate-capabilities")
    assert peer.run_state() == "running"
