"""The how-to "watch and steer a migration": its program prints what the page says."""

import re
import subprocess
import sys

from support import REPOSITORY

PAGE = (REPOSITORY / "docs/how-to/watch-a-migration.md").read_text()
PROGRAM, PRINTED = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL).groups()


def test_the_program_prints_what_the_page_says():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED


def test_the_notifier():
    (program,) = re.findall(r"^```python notify\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0] == "RESUME"
    assert [line for line in told if "PASS" not in line] == [
        "RESUME",
        *(f"MIGRATION {status}" for status in ("setup", "active")),
        "STOP",
        "MIGRATION completed",
    ]
