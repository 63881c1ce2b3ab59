"""The tutorial's program, run as written: two processes, one move, no write lost; and it is as short as promised."""

import re
import shlex
import subprocess
import sys

import pytest

from support import REPOSITORY, wait_until

PAGE = (REPOSITORY / "docs/tutorial/plug-it-in.md").read_text()
PROGRAM = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
RECEIVE, SEND = re.findall(r"^\$ (python machine\.py .*)$", PAGE, re.MULTILINE)
SAID_BY_SOURCE = re.search(r"^(gone, .*)$", PAGE, re.MULTILINE)[1]
SAID_BY_DESTINATION = re.search(r"^(arrived, .*)$", PAGE, re.MULTILINE)[1]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "machine.py").write_text(PROGRAM)
    processes = []

    def start(command):
        words = shlex.split(command)
        assert words[0] == "python"
        process = subprocess.Popen(
            [sys.executable, *words[1:]], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_machine_moves_and_no_write_is_lost(run, tmp_path):
    destination = run(RECEIVE)
    wait_until(lambda: destination.poll() is not None or (tmp_path / "move.sock").exists(), what="listening")
    source = run(SEND)
    assert source.communicate(timeout=40)[0].strip() == SAID_BY_SOURCE
    assert destination.communicate(timeout=40)[0].strip() == SAID_BY_DESTINATION
    assert (source.returncode, destination.returncode) == (0, 0)


def test_it_takes_at_most_sixty_lines():
    lines = [line for line in PROGRAM.splitlines() if line.strip()]
    assert len(lines) <= 60
    assert "needed=" in PROGRAM
