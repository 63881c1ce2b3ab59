import json
from types import SimpleNamespace

import pytest

from qmig_e2k.migration.settings import Settings
from qmig_e2k.monitor import hmp

GLOBALS = [
    "globals:",
    "store-global-state: on",
    "only-migratable: off",
    "send-configuration: on",
    "send-section-footer: on",
    "decompress-error-check: on",
    "clear-bitmap-shift: 18",
]

RAM = {
    "total": 67108864,
    "postcopy-requests": 0,
    "dirty-sync-count": 2,
    "multifd-bytes": 0,
    "pages-per-second": 0,
    "downtime-bytes": 0,
    "page-size": 4096,
    "remaining": 0,
    "postcopy-bytes": 0,
    "mbps": 91.386461538461532,
    "transferred": 147468,
    "dirty-sync-missed-zero-copy": 0,
    "precopy-bytes": 147468,
    "duplicate": 16384,
    "dirty-pages-rate": 0,
    "skipped": 0,
    "normal-bytes": 0,
    "normal": 0,
}


def machine(run_state="running", **info):
    control = SimpleNamespace(query_migrate=lambda: json.dumps(info), run_state=run_state)
    return SimpleNamespace(control=control, settings=Settings())


def lines(line, **info):
    text = hmp.execute(machine(**info), line)
    assert text == "" or text.endswith("\r\n")
    return text.split("\r\n")[:-1]


def test_info_migrate_before_any():
    assert lines("info migrate") == GLOBALS


def test_info_migrate_completed_as_qemu_7_2_prints_it():
    info = {"status": "completed", "setup-time": 0, "downtime": 1, "total-time": 13, "ram": RAM}
    assert lines("info migrate", **info) == [
        *GLOBALS,
        "Migration status: completed",
        "total time: 13 ms",
        "downtime: 1 ms",
        "setup: 0 ms",
        "transferred ram: 144 kbytes",
        "throughput: 91.39 mbps",
        "remaining ram: 0 kbytes",
        "total ram: 65536 kbytes",
        "duplicate: 16384 pages",
        "skipped: 0 pages",
        "normal: 0 pages",
        "normal bytes: 0 kbytes",
        "dirty sync count: 2",
        "page size: 4 kbytes",
        "multifd bytes: 0 kbytes",
        "pages-per-second: 0",
        "precopy ram: 144 kbytes",
    ]


def test_info_migrate_optional_lines():
    more = {"dirty-pages-rate": 7, "postcopy-requests": 3, "downtime-bytes": 2048, "postcopy-bytes": 4096}
    found = lines("info migrate", status="active", **{"expected-downtime": 300, "ram": RAM | more})
    assert "expected downtime: 300 ms" in found
    assert found[-5:] == [
        "dirty pages rate: 7 pages",
        "postcopy request count: 3",
        "precopy ram: 144 kbytes",
        "downtime ram: 2 kbytes",
        "postcopy ram: 4 kbytes",
    ]


def test_info_migrate_lines_of_capabilities():
    cache = {
        "cache-size": 67108864,
        "bytes": 3000,
        "pages": 17,
        "cache-miss": 5,
        "cache-miss-rate": 0.125,
        "encoding-rate": 240.5,
        "overflow": 1,
    }
    compression = {"pages": 9, "busy": 2, "busy-rate": 0.5, "compressed-size": 4096, "compression-rate": 3.0}
    more = {"ram": RAM, "xbzrle-cache": cache, "compression": compression, "cpu-throttle-percentage": 20}
    assert lines("info migrate", status="active", **more)[-13:] == [
        "cache size: 67108864 bytes",
        "xbzrle transferred: 2 kbytes",
        "xbzrle pages: 17 pages",
        "xbzrle cache miss: 5 pages",
        "xbzrle cache miss rate: 0.12",
        "xbzrle encoding rate: 240.50",
        "xbzrle overflow: 1",
        "compression pages: 9 pages",
        "compression busy: 2",
        "compression busy rate: 0.50",
        "compressed size: 4 kbytes",
        "compression rate: 3.00",
        "cpu throttle percentage: 20",
    ]


def test_info_migrate_tells_where_the_downtime_went():
    devices = {f"d/{number}": number for number in range(7)}
    times = {"switchover": 40, "stop": 10, "sync": 20, "pages": 30, "devices": devices}
    found = lines("info migrate", status="completed", **{"ram": RAM, "x-downtime": times})
    assert found[-2:] == [
        "x-downtime: stop 10 us, devices 21 us, sync 20 us, pages 30 us, switchover 40 us",
        "x-downtime devices: d/6 6 us, d/5 5 us, d/4 4 us, d/3 3 us, d/2 2 us, 2 more",
    ]
    found = lines("info migrate", status="completed", **{"x-downtime": {"load": 7, "start": 8}})
    assert found[-1] == "x-downtime: load 7 us, start 8 us"


def test_info_migrate_failed_blocked_and_listening():
    found = lines(
        "info migrate",
        status="failed",
        **{
            "error-desc": "no such host",
            "blocked-reasons": ["one", "two"],
            "socket-address": [
                {"type": "inet", "host": "::1", "port": "4444"},
                {"type": "inet", "host": "0.0.0.0", "port": "4445"},
                {"type": "unix", "path": "/run/x"},
            ],
        },
    )
    assert found[len(GLOBALS) :] == [
        "Outgoing migration blocked:",
        "  one",
        "  two",
        "Migration status: failed (no such host)",
        "total time: 0 ms",
        "socket address: [",
        "\ttcp:[::1]:4444",
        "\ttcp:0.0.0.0:4445",
        "\tunix:/run/x",
        "]",
    ]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("running", "VM status: running"),
        ("paused", "VM status: paused"),
        ("postmigrate", "VM status: paused (postmigrate)"),
        ("inmigrate", "VM status: paused (inmigrate)"),
    ],
)
def test_info_status(state, text):
    assert lines("info status", run_state=state) == [text]


def test_words_that_mean_nothing():
    assert lines("") == []
    assert lines("   ") == []
    assert lines("teleport now") == ["unknown command: 'teleport'"]
    assert lines("info teleport") == ["unknown command: 'info teleport'"]
    assert "extraneous" in lines("info migrate now")[0]


def test_help_lists_what_there_is():
    assert [line.split()[1] for line in lines("info")] == [line.split()[1] for line in lines("help info")]
    assert any(line.startswith("info migrate ") for line in lines("help info migrate"))
    assert lines("help")
