"""The same commands to a real QEMU 7.2 and to `serve`, in the same states.

Replies are alike in types, names and classes. The words of an error are each one's own. Commands are sent to both in
the order of a table.
"""

import json
import socket

import pytest

from interop.qemu_peer import QemuPeer
from peer import FINAL, ServePeer
from qmig_e2k.monitor.client import QmpError

LATER = {"avail-switchover-bandwidth", "zero-page-detection", "error-desc", "mode"}
"""Members of QEMU 10.0, which keeps the reason of a failure in more cases."""
NUMBERS = {"mbps", "cache-miss-rate", "encoding-rate", "busy-rate", "compression-rate"}
KINDS = {bool: "bool", int: "int", float: "number", str: "str", type(None): "null"}


def shape(value, name=""):
    """Types and member names; a list has the shapes of its items, each once. Own and later members are left out."""
    if isinstance(value, dict):
        return {k: shape(v, k) for k, v in value.items() if not k.startswith("x-") and k not in LATER}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item), sort_keys=True) for item in value})
    return "number" if name in NUMBERS else KINDS[type(value)]


def ask(peer, command, arguments):
    try:
        return shape(peer.qmp.execute(command, arguments))
    except QmpError as error:
        return error.error_class


def capability(*names, state=True):
    return "migrate-set-capabilities", {"capabilities": [{"capability": name, "state": state} for name in names]}


def parameter(**values):
    return "migrate-set-parameters", {name.replace("_", "-"): value for name, value in values.items()}


HMP = ("info status", "info migrate_bogus", "migrate")
QUERIES = [
    ("query-status", {}),
    ("query-version", {}),
    ("query-commands", {}),
    ("query-name", {}),
    ("query-uuid", {}),
    ("query-kvm", {}),
    ("query-jobs", {}),
    ("query-target", {}),
    ("query-migrate", {}),
    ("query-dirty-rate", {}),
    ("query-migrate-capabilities", {}),
    ("query-migrate-parameters", {}),
    *(("human-monitor-command", {"command-line": line}) for line in HMP),
]
WRONG = [
    ("teleport", {}),
    ("Query-Status", {}),
    ("query_status", {}),
    ("migrate-cancel", {}),
    ("query-status", {"x": 1}),
    ("qmp_capabilities", {}),
    ("qmp_capabilities", {"enable": ["oob"]}),
    ("migrate", {}),
    ("migrate", {"uri": 5}),
    ("migrate", {"uri": None}),
    ("migrate", {"uri": ["tcp:127.0.0.1:1"]}),
    ("migrate", {"URI": "tcp:127.0.0.1:1"}),
    ("migrate", {"uri": "tcp:127.0.0.1:1", "detach": 1}),
    ("migrate", {"uri": "tcp:127.0.0.1:1", "surprise": True}),
    ("migrate", {"uri": "tcp:127.0.0.1:1", "resume": True}),
    ("calc-dirty-rate", {}),
    ("calc-dirty-rate", {"calc-time": 0}),
    ("calc-dirty-rate", {"calc-time": 61}),
    ("calc-dirty-rate", {"calc-time": "1"}),
    ("calc-dirty-rate", {"calc-time": 1, "sample-pages": 127}),
    ("calc-dirty-rate", {"calc-time": 1, "sample-pages": 16385}),
    ("calc-dirty-rate", {"calc-time": 1, "mode": "guess"}),
    ("calc-dirty-rate", {"calc-time": 1, "surprise": True}),
    ("migrate-incoming", {}),
    ("migrate-incoming", {"uri": True}),
    ("migrate-recover", {}),
    ("migrate-recover", {"uri": "tcp:127.0.0.1:0"}),
    ("migrate-pause", {}),
    ("migrate-pause", {"uri": ""}),
    ("migrate-continue", {}),
    ("migrate-continue", {"state": "pre-lunch"}),
    ("migrate-continue", {"state": "pre-switchover"}),
    ("migrate-start-postcopy", {}),
    ("migrate-start-postcopy", {"now": True}),
    ("migrate_cancel", {"now": True}),
    ("migrate-set-capabilities", {}),
    ("migrate-set-capabilities", {"capabilities": {}}),
    ("migrate-set-capabilities", {"capabilities": ["xbzrle"]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle"}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": "on"}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": 1}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": 1, "state": True}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": True, "why": ""}]}),
    capability("teleport"),
    capability("XBZRLE"),
    capability("postcopy-preempt"),
    capability("multifd", "compress"),
    capability("postcopy-ram", "postcopy-preempt", "compress"),
    capability("xbzrle", "zero-copy-send"),
    parameter(bogus=1),
    parameter(max_bandwidth="1M"),
    parameter(max_bandwidth=1.5),
    parameter(max_bandwidth=None),
    parameter(max_bandwidth=2**64),
    parameter(downtime_limit=2_000_001),
    parameter(downtime_limit=-1),
    parameter(downtime_limit=True),
    parameter(compress_level=10),
    parameter(compress_level=256),
    parameter(compress_threads=0),
    parameter(compress_threads=256),
    parameter(decompress_threads=0),
    parameter(throttle_trigger_threshold=0),
    parameter(throttle_trigger_threshold=101),
    parameter(cpu_throttle_initial=0),
    parameter(cpu_throttle_initial=100),
    parameter(cpu_throttle_increment=100),
    parameter(max_cpu_throttle=100),
    parameter(max_cpu_throttle=10),
    parameter(cpu_throttle_initial=50, max_cpu_throttle=49),
    parameter(cpu_throttle_tailslow=1),
    parameter(multifd_channels=0),
    parameter(multifd_channels=256),
    parameter(multifd_compression="lz4"),
    parameter(multifd_compression=1),
    parameter(xbzrle_cache_size=4095),
    parameter(xbzrle_cache_size=12288),
    parameter(announce_initial=100_001),
    parameter(announce_max=100_001),
    parameter(announce_rounds=1001),
    parameter(announce_step=0),
    parameter(announce_step=10_001),
    parameter(x_checkpoint_delay=2**32),
    parameter(tls_hostname=5),
    parameter(block_incremental="no"),
    ("human-monitor-command", {}),
    ("human-monitor-command", {"command-line": 5}),
    ("human-monitor-command", {"command-line": "", "cpu-index": "x"}),
    ("getfd", {}),
    ("getfd", {"fdname": "7up"}),
    ("getfd", {"fdname": "wire"}),
    ("closefd", {"fdname": "wire"}),
    ("pmemsave", {"val": 0, "size": 1}),
    ("pmemsave", {"val": "0", "size": 1, "filename": "/nowhere/x"}),
    ("pmemsave", {"val": 0, "size": 1, "filename": "/nowhere/x"}),
    ("object-add", {}),
    ("object-add", {"qom-type": "teleporter", "id": "t"}),
    ("object-del", {}),
    ("object-del", {"id": 5}),
    ("object-del", {"id": "nothing"}),
    ("client_migrate_info", {"protocol": "vnc", "hostname": "h", "port": 1}),
    ("set-vcpu-dirty-limit", {"dirty-rate": 1}),
    ("x-colo-lost-heartbeat", {}),
    ("snapshot-save", {}),
    ("snapshot-save", {"job-id": "j", "tag": "t", "vmstate": "d", "devices": "d"}),
    ("snapshot-load", {"job-id": "j", "tag": "t", "devices": ["d"]}),
    ("snapshot-delete", {"job-id": "j", "tag": "t", "vmstate": "d", "devices": ["d"]}),
    ("job-cancel", {}),
    ("job-cancel", {"id": "nothing"}),
    ("job-dismiss", {}),
    ("job-dismiss", {"id": "nothing"}),
    ("query-jobs", {"id": "nothing"}),
]
RIGHT = [
    capability("xbzrle", "events", "return-path", "release-ram"),
    capability("xbzrle", "events", state=False),
    capability("postcopy-ram", "postcopy-preempt"),
    capability("postcopy-preempt", "postcopy-ram", state=False),
    ("migrate-set-capabilities", {"capabilities": []}),
    parameter(),
    parameter(max_bandwidth=0, downtime_limit=2_000_000),
    parameter(max_bandwidth=2**63, downtime_limit=0),
    parameter(compress_level=0, compress_threads=255, decompress_threads=1, compress_wait_thread=False),
    parameter(throttle_trigger_threshold=100, cpu_throttle_initial=99, cpu_throttle_increment=1),
    parameter(cpu_throttle_tailslow=True, max_cpu_throttle=99),
    parameter(multifd_channels=255, multifd_compression="zstd", multifd_zlib_level=9, multifd_zstd_level=20),
    parameter(multifd_compression="none"),
    parameter(xbzrle_cache_size=4096),
    parameter(announce_initial=0, announce_max=100_000, announce_rounds=0, announce_step=10_000),
    parameter(tls_hostname=None, tls_creds="", tls_authz=None),
    parameter(tls_hostname="there", x_checkpoint_delay=0, max_postcopy_bandwidth=1, block_incremental=False),
    ("migrate_cancel", {}),
    ("stop", {}),
    ("query-status", {}),
    ("cont", {}),
    ("cont", {}),
    ("query-status", {}),
    ("stop", {}),
    ("system_powerdown", {}),
    ("system_reset", {}),
    ("query-status", {}),
]
MIGRATIONS = [
    capability("release-ram", "return-path", state=False),
    ("migrate", {"uri": "bogus:1"}),
    ("query-migrate", {}),
    ("migrate", {"uri": "exec:cat > /dev/null"}),
    "completed",
    ("query-status", {}),
    ("migrate", {"uri": "exec:cat > /dev/null"}),
    ("migrate_cancel", {}),
    ("migrate-start-postcopy", {}),
    ("cont", {}),
    capability("xbzrle"),
    parameter(max_bandwidth=4096, downtime_limit=0),
    ("migrate", {"uri": "unix:{}"}),
    "active",
    ("query-status", {}),
    ("migrate", {"uri": "exec:cat > /dev/null"}),
    capability("compress"),
    parameter(downtime_limit=1),
    ("migrate-pause", {}),
    ("migrate-start-postcopy", {}),
    ("migrate-continue", {"state": "pre-switchover"}),
    ("stop", {}),
    ("cont", {}),
    ("migrate_cancel", {}),
    "cancelled",
    ("query-status", {}),
    ("migrate_cancel", {}),
]
INCOMING = [
    ("query-migrate", {}),
    ("migrate", {"uri": "tcp:127.0.0.1:1"}),
    ("migrate-incoming", {"uri": "bogus:1"}),
    ("migrate-incoming", {"uri": "unix:/nowhere/socket"}),
    ("stop", {}),
    ("cont", {}),
    ("system_reset", {}),
    ("query-status", {}),
    ("migrate-incoming", {"uri": "unix:{}-late"}),
    ("query-migrate", {}),
    ("migrate-incoming", {"uri": "unix:{}-late"}),
    ("migrate-recover", {"uri": "unix:{}-late"}),
    ("query-status", {}),
]
STRICTER = [
    parameter(max_bandwidth=-1),  # 2^64 - 1 there
    parameter(multifd_zlib_level=10),  # checked there when it is too late
    parameter(multifd_zstd_level=21),
    ("cancel-vcpu-dirty-limit", {}),  # there is nothing to cancel there either
    ("query-vcpu-dirty-limit", {}),
]
NOT_COMPARED = {
    "quit": "see the tests of `serve`",
    "query-qmp-schema": "see test_qmp_schema.py",
    "announce-self": "refused: no network device",
    "pmemsave": "refusals above, contents in test_precopy.py",
}


@pytest.fixture(scope="module")
def pair(qemu_binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replies")
    with QemuPeer(qemu_binary, folder / "qemu", "-m", "16M") as theirs, ServePeer(folder / "ours", "-m", "16M") as ours:
        yield theirs, ours


@pytest.mark.parametrize("table", [QUERIES, WRONG, [*RIGHT, *QUERIES]], ids=["queries", "wrong", "right"])
def test_a_machine_that_waits(pair, table):
    different = []
    for command, arguments in table:
        there, here = (ask(peer, command, arguments) for peer in pair)
        if command == "query-commands":
            there = here
        if here != there:
            different.append((command, arguments, there, here))
    assert different == [], "\n".join(map(str, different))


def test_the_same_after_all_of_that(pair):
    """What was refused has changed nothing, and what was not has changed the same."""
    for command in ("query-status", "query-migrate-parameters", "query-migrate-capabilities"):
        there, here = (peer.command(command) for peer in pair)
        if isinstance(there, list):
            there, here = ({entry["capability"]: entry["state"] for entry in answer} for answer in (there, here))
        own_way = {"multifd-zlib-level", "multifd-zstd-level"}  # QEMU 7.2 checks them and forgets them
        assert {k: v for k, v in here.items() if k in there.keys() - own_way} == {
            k: v for k, v in there.items() if k not in own_way
        }


def test_what_only_we_refuse(pair):
    assert [ask(pair[1], *step) for step in STRICTER] == ["GenericError"] * len(STRICTER)


def follow(peer, table, path):
    """The replies to a table of commands; a word in it is a status to wait for, and to query."""
    replies = []
    for step in table:
        if isinstance(step, str):
            replies.append((step, shape(peer.wait_migration(step))))
            if step in FINAL:
                peer.wait_let_go()
            continue
        command, arguments = step
        arguments = {k: v.format(path) if k == "uri" else v for k, v in arguments.items()}
        replies.append((step, ask(peer, command, arguments)))
    return replies


def test_migrations(qemu, serve, tmp_path):
    replies = []
    for name, start in (("qemu", qemu), ("ours", serve)):
        start(incoming=f"unix:{tmp_path}/{name}")
        source = start()
        if source.serves:
            source.command("x-block-prefault", block="ram", offset=0, length=64 << 20)
        replies.append(follow(source, MIGRATIONS, tmp_path / name))
    assert replies[1] == replies[0]


def test_incoming(qemu, serve, tmp_path):
    there, here = (
        follow(start("-m", "4M", incoming="defer"), INCOMING, tmp_path / name)
        for name, start in (("qemu", qemu), ("ours", serve))
    )
    assert here == there


def test_no_command_that_both_have_was_forgotten(pair):
    both = set.intersection(*({entry["name"] for entry in peer.command("query-commands")} for peer in pair))
    asked = {step[0] for table in (QUERIES, WRONG, RIGHT, MIGRATIONS, INCOMING, STRICTER) for step in table if step[1:]}
    assert both - asked - NOT_COMPARED.keys() == set()


LINES = [
    '{"execute": "query-status", "id": 1}',
    '{"execute": "query-status", "id": {"a": [1, null]}}',
    "{'execute': 'query-status', 'id': 'quotes'}",
    '{"execute": "query-status", "id": 2} {"execute": "query-name", "id": 3}',
    '{"execute": "teleport", "id": 4}',
    '{"execute": "query-status", "arguments": {"x": 1}, "id": 5}',
    '{"execute": "query-status", "arguments": [], "id": 6}',
    '{"execute": "query-status", "surprise": 1, "id": 7}',
    '{"execute": 5, "id": 8}',
    '{"arguments": {}, "id": 9}',
    '{"exec-oob": "query-status", "id": 10}',
    '{"execute": "a", "exec-oob": "b", "id": 11}',
    '{"id": 12}',
    "[1]",
    '"text"',
    "null",
    "{} ",
    '{"execute": "query-status", "id": 13,}',
    '{"execute" "query-status"}',
    "{execute: 1}",
    '{"a": tru}',
    '{"a": 01}',
    '{"a": "\\ud800"}',
    '{"a": "\\x"}',
    "]",
    "}",
    "%",
    "\x00",
    '{"execute": "\xff{"execute": "query-status", "id": 14}',
]


@pytest.mark.parametrize("line", LINES)
def test_lines_good_and_bad(pair, line):
    """Replies of the same classes and ids to each, then a good command is answered: nothing is left of a bad line."""
    assert replies(pair[1], line) == replies(pair[0], line)


def replies(peer, line):
    """(class or None, id) of every reply to `line`, sent on a connection of its own."""
    found = []
    # QEMU serves one client at a time
    peer.qmp.close()
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as lines:
        client.settimeout(20)
        client.connect(str(peer.folder / "qmp"))
        client.sendall(b'{"execute": "qmp_capabilities"}' + line.encode("latin-1") + b"\n")
        client.sendall(b'\xff{"execute": "query-name", "id": "last"}')
        while not found or found[-1][1] != "last":
            reply = json.loads(lines.readline())
            if "return" in reply or "error" in reply:
                found.append((reply.get("error", {}).get("class"), reply.get("id")))
                if found[-2:-1] == found[-1:]:  # QEMU complains of some lines twice
                    found.pop()
    peer.qmp = type(peer.qmp)(f"unix:{peer.folder}/qmp")
    return found
