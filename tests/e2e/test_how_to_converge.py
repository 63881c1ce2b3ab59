"""The how-to "make a migration end": its commands do what it says, and its numbers are those of the parameters."""

import json
import re
import shlex
import subprocess
import sys

from qmig_e2k.migration.parameters import PARAMETERS
from qmig_e2k.monitor.client import QmpClient
from support import REPOSITORY, wait_until

TEXT = (REPOSITORY / "docs/how-to/converge.md").read_text()
BLOCK = r"^```{}\n(.*?)^```$"
SERVE, REQUESTS = (
    [line for block in re.findall(BLOCK.format(kind), TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
    for kind in ("console", "text")
)


def test_commands(tmp_path):
    command = [sys.executable, "-m", "qmig_e2k"]
    started = [subprocess.Popen(command + shlex.split(line)[2:], cwd=tmp_path) for line in SERVE]
    clients = []
    try:
        for name, process in zip(("source", "destination"), started, strict=True):
            socket = f"unix:{tmp_path}/{name}.sock"
            clients.append(QmpClient(socket, alive=lambda process=process: process.poll() is None))
        source, destination = clients
        for line in REQUESTS:
            who, words = line.split(None, 1)
            request = json.loads(words)
            assert who == "source"
            source.execute(request["execute"], request.get("arguments", {}))
            if request["execute"] == "query-dirty-rate":
                answer = wait_until(
                    lambda: (found := source.execute("query-dirty-rate"))["status"] == "measured" and found,
                    what="the measurement",
                )
                assert answer["dirty-rate"] > 0
        for client in clients:
            wait_until(lambda client=client: client.execute("query-migrate")["status"] == "completed", 60, "the end")
        parameters = source.execute("query-migrate-parameters")
        assert parameters["x-deadline-action"] == "force"
        moved = source.execute("query-migrate")
        assert moved["total-time"] - moved["downtime"] >= parameters["x-deadline"] * 0.9, "it had not ended by itself"
        destination.execute("stop")
        assert destination.execute("x-verify")["equal"]
    finally:
        for client in clients:
            client.close()
        for process in started:
            process.kill()
            process.wait()


def test_the_numbers():
    said = dict(re.findall(r"`([a-z-]+)`(?: percent)? \((\d+)\)", TEXT))
    assert len(said) == 4
    assert {name: str(PARAMETERS[name].default) for name in said} == said
    assert set(re.findall(r"^\| `([a-z]+)` \|", TEXT, re.MULTILINE)) == set(PARAMETERS["x-deadline-action"].choices)
