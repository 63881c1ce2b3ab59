"""The how-to "encrypt a migration": its certificates are good ones, its commands and its program do what it says."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from qmig_e2k.monitor.client import QmpClient
from support import REPOSITORY, wait_until

TEXT = (REPOSITORY / "docs/how-to/tls.md").read_text()
ISSUE, SERVE = (
    [line.removeprefix("$ ") for line in block.splitlines()]
    for block in re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
)
BLOCKS = re.findall(r"^```text\n((?:source|destination) .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROGRAM, PRINTED = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL).groups()


@pytest.fixture
def folder(certificates, tmp_path):
    """Where the page's certificates are. The fixture `certificates` says whether they can be made at all."""
    subprocess.run("\n".join(["set -e", *ISSUE]), shell=True, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    return tmp_path


def test_commands(folder):
    command = [sys.executable, "-m", "qmig_e2k"]
    started = [subprocess.Popen(command + shlex.split(line)[1:], cwd=folder) for line in SERVE]
    clients = {}
    try:
        for name, process in zip(("source", "destination"), started, strict=True):
            socket = f"unix:{folder}/{name}.sock"
            clients[name] = QmpClient(socket, alive=lambda process=process: process.poll() is None)
        for line in "".join(BLOCKS).splitlines():
            who, request = line.split(None, 1)
            words = json.loads(request)
            clients[who].execute(words["execute"], words["arguments"])
        for client in clients.values():
            wait_until(lambda client=client: client.execute("query-migrate")["status"] == "completed", what="the end")
        states = [client.execute("query-status")["status"] for client in clients.values()]
        assert states == ["postmigrate", "running"]
    finally:
        for client in clients.values():
            client.close()
        for process in started:
            process.kill()
            process.wait()


def test_program(folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED
