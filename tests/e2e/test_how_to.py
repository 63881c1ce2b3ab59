"""The how-to's program, run as written, prints what the page says."""

import re
import subprocess
import sys

from support import REPOSITORY

PAGE = (REPOSITORY / "docs/how-to/describe-a-device.md").read_text()


def test_the_page_says_what_is_printed(tmp_path):
    blocks = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    marker = "-- next block --"
    program = f"print({marker!r})\n".join(code for kind, code in blocks if kind == "python")
    (tmp_path / "device.py").write_text(program)
    run = subprocess.run(
        [sys.executable, "device.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    printed = run.stdout.split(f"{marker}\n")
    said = []
    for kind, text in blocks:
        if kind == "python":
            said.append("")
        else:
            said[-1] = text
    assert [without_offsets(text) for text in printed] == [without_offsets(text) for text in said]


def without_offsets(text):
    """Where a section stands in the stream depends on how RAM was sent."""
    return re.sub(r"offset 0x[0-9a-f]+", "offset", text)
