"""The example in the README runs as written."""

import re
import subprocess
import sys

from support import REPOSITORY

EXAMPLE = re.search(r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]


def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "b'hello from the source' postmigrate running"
