"""What the manual claims to list completely is complete."""

import re

from support import REPOSITORY


def test_every_error_kind_has_a_row():
    source = (REPOSITORY / "rust/core/src/error.rs").read_text()
    kinds = re.findall(r'^    [A-Z]\w+ => "([a-z-]+)",$', source, re.MULTILINE)
    rows = re.findall(
        r"^\| `([a-z-]+)` \| .* \| .*\|$", (REPOSITORY / "docs/reference/errors.md").read_text(), re.MULTILINE
    )
    assert len(kinds) > 30
    assert sorted(set(rows) - {"kind", "message", "offset", "path"}) == sorted(kinds)


def test_every_make_target_explains_itself():
    makefile = (REPOSITORY / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z-]+):.* ## \S", makefile, re.MULTILINE))
    wanted = "help venv build dev test test-long lint fmt demo bench docs fuzz doctor clean".split()
    assert explained >= set(wanted)
