"""The how-to "move by postcopy": its commands do what the page says, its program prints what it says."""

import json
import re
import shlex
import subprocess
import sys

from qmig_e2k.monitor.client import QmpClient
from support import REPOSITORY, wait_until

TEXT = (REPOSITORY / "docs/how-to/postcopy.md").read_text()
PROGRAM, PRINTED = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL).groups()
BLOCKS = re.findall(r"^```text\n((?:both|source|destination) .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
REACHED = [None, None, "postcopy-active", "postcopy-paused", "postcopy-active", "completed"]
"""The status of both sides that the page promises after each block of commands."""


def test_commands(tmp_path):
    (console,) = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    image, *serves = (line.removeprefix("$ ") for line in console.splitlines())
    subprocess.run(image, shell=True, cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "qmig_e2k"]
    started = [subprocess.Popen(command + shlex.split(line)[1:], cwd=tmp_path) for line in serves]
    clients = {}
    try:
        for name, process in zip(("source", "destination"), started, strict=True):
            socket = f"unix:{tmp_path}/{name}.sock"
            clients[name] = QmpClient(socket, alive=lambda process=process: process.poll() is None)
        for block, status in zip(BLOCKS, REACHED, strict=True):
            for line in block.splitlines():
                who, request = line.split(None, 1)
                for name in clients if who == "both" else [who]:
                    words = json.loads(request)
                    clients[name].execute(words["execute"], words.get("arguments"))
            if status:
                for client in clients.values():
                    wait_until(
                        lambda client=client, status=status: client.execute("query-migrate")["status"] == status,
                        what=status,
                    )
                wait_until(
                    lambda: clients["destination"].execute("query-status")["status"] == "running",
                    what="the machine at the destination",
                )
        states = [client.execute("query-status")["status"] for client in clients.values()]
        assert states == ["postmigrate", "running"]
        assert clients["source"].execute("query-migrate")["ram"]["postcopy-bytes"] > 32 << 20
        for name in ("migrate_start_postcopy", "migrate_pause", "migrate_recover"):
            assert f"`{name}" in TEXT
            said = clients["source"].execute("human-monitor-command", {"command-line": f"help {name}"})
            assert said.startswith(name)
    finally:
        for client in clients.values():
            client.close()
        for process in started:
            process.kill()
            process.wait()


def test_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED
