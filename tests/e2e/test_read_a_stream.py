"""The how-to "read a stream": its commands print what the page says, its program runs."""

import re
import subprocess
import sys

import pytest

from analyzed import recorded
from support import REPOSITORY

PAGE = (REPOSITORY / "docs/how-to/read-a-stream.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """Where the page's reader is."""
    (tmp_path / "machine.stream").write_bytes(recorded("e2k-plain")[0])
    (tmp_path / "qmig-e2k").write_text(f'#!/bin/sh\nexec {sys.executable} -m qmig_e2k "$@"\n')
    (tmp_path / "qmig-e2k").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("example", re.findall(r"^```console\n\$ (.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_commands(folder, example):
    command, said = example.split("\n", 1)
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    beginning, dots, _ = said.partition("...\n")
    assert done.stdout.startswith(beginning)
    assert dots or done.stdout == said
    assert "Traceback" not in done.stderr


def test_program(folder):
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "timer/0 2 description {'cpu_ticks_offset': 0" in done.stdout


def test_members():
    """Every member of the record is in the table."""
    from qmig_e2k.analyze import analyze

    table = PAGE[PAGE.index("## The JSON record") :]
    record = analyze(recorded("qemu10-none-multifd")).record()
    channel = record["ram"].pop("channels")[0]
    names = [*record, *channel, *record["ram"]["blocks"][0], *record["ram"]["pages"], *record["devices"][0]]
    assert not [name for name in names if f"`{name}`" not in table and f"ram.{name}`" not in table and name != "ram"]
