"""QMP as a client sends it: `python fuzz/python/run.py qmp`.

Input: what a client writes after its `qmp_capabilities`. It goes through a socket into the core's parser, and from
there to the commands in Python. Coverage is Python's alone; `rust/core/src/monitor` is compiled.

Asserted: every line that comes back is a JSON object with exactly one of `return`, `error` and `event`; an error has a
class and words, and is no exception of ours; the command behind a byte 0xFF, which ends whatever was begun, is answered
in time.
"""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from typing import TYPE_CHECKING

from monitored import command, machine, raise_mistakes

from qmig_e2k._core import Monitor
from qmig_e2k.monitor.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 10.0
GREETED = b'{"execute": "qmp_capabilities"}\n'
LAST = b'{"execute": "query-target", "id": "the last"}\n'
ANSWER = b'"the last"}\r\n'

VM = machine()
FOLDER = tempfile.TemporaryDirectory()
MONITOR = Monitor(VM.machine.control, list(COMMANDS), "qmig_e2k fuzzed")
ADDRESS = MONITOR.listen(f"unix:{FOLDER.name}/qmp").removeprefix("unix:")


def _work() -> None:
    while (asked := MONITOR.next_command()) is not None:
        command(VM, asked)


WORKER = threading.Thread(target=_work, name="fuzzed-monitor", daemon=True)
WORKER.start()


def exchange(data: bytes) -> list[dict[str, object]]:
    """All that comes back for `data`, up to the answer to what any client might ask after it.

    A byte 0xFF ends whatever `data` has begun.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(ADDRESS)
        client.sendall(GREETED + data + b"\xff" + LAST)
        received = bytearray()
        while ANSWER not in received:
            piece = client.recv(1 << 16)
            assert piece, f"cut off after {bytes(received[-200:])!r}"
            received += piece
    lines = bytes(received).split(b"\n")
    return [json.loads(line) for line in lines if line.strip()]


def check(data: bytes) -> None:
    """Send it, and look at every line that comes back."""
    for message in exchange(data):
        assert isinstance(message, dict)
        kinds = [kind for kind in ("return", "error", "event", "QMP") if kind in message]
        assert len(kinds) == 1, message
        if kinds == ["error"]:
            error = message["error"]
            assert isinstance(error, dict)
            assert error["class"]
            assert error["desc"]
    raise_mistakes()


def seeds() -> Iterator[bytes]:
    """Every command, without arguments and with some."""
    for name in COMMANDS:
        yield json.dumps({"execute": name, "id": 1}).encode() + b"\n"
    samples: list[tuple[str, object]] = [
        ("migrate-set-parameters", {"downtime-limit": 7, "tls-creds": None, "max-bandwidth": 1 << 40}),
        ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": True}]}),
        ("human-monitor-command", {"command-line": "info migrate_parameters"}),
        ("migrate", {"uri": "tcp:127.0.0.1:1", "detach": True}),
        ("pmemsave", {"val": 0, "size": 4096, "filename": "x"}),
        ("x-add-blocker", {"reason": "because"}),
        ("object-add", {"qom-type": "authz-list", "id": "a", "rules": [{"match": "*", "policy": "allow"}]}),
        ("snapshot-save", {"job-id": "j", "tag": "t", "vmstate": "d", "devices": []}),
    ]
    for name, arguments in samples:
        yield json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"
    yield b'{"exec-oob": "query-status", "id": [1, {"a": null}]}\n{"execute": "query-migrate"}'
    yield b'{"execute": "query-name" "id": 5}\n\xff{"execute": "query-kvm"}\n[[[[]]]]'


def close() -> None:
    """End the monitor, its worker and the machine."""
    MONITOR.close()
    WORKER.join(PATIENCE_S)
    VM.close()
    FOLDER.cleanup()
