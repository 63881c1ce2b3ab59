"""The how-to's program, run as written, prints what the page says."""

import re
import subprocess
import sys

from support import REPOSITORY

PAGE = (REPOSITORY / "docs/how-to/property-tests.md").read_text()

UNHURRIED = """\
from hypothesis import settings
settings.register_profile("unhurried", deadline=None, database=None)
settings.load_profile("unhurried")
"""


def test_the_page_says_what_is_printed(tmp_path):
    program = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    said = "".join(re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    (tmp_path / "page.py").write_text(UNHURRIED + program)
    run = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == said
