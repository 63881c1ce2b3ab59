"""docs/seed-map.md has one row for each declaration of the seed, and each symbol that it names exists."""

import importlib
import re
from pathlib import Path

import pytest

from support import REPOSITORY

DECLARATIONS = Path(__file__).with_name("seed_declarations.txt").read_text().split()
ROWS = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.*?) ?\|$", (REPOSITORY / "docs/seed-map.md").read_text(), re.MULTILINE)
LATER = {"postcopy", "COLO", "RDMA", "block", "release-ram"}


def test_one_row_for_each_declaration():
    assert [name for name, _, _ in ROWS] == DECLARATIONS


@pytest.mark.parametrize(("name", "ours"), [row[:2] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_the_row_names_exists(name, ours):
    if ours.startswith("later: "):
        assert ours.removeprefix("later: ") in LATER
    elif ours.startswith("`qmig_core::"):
        find_in_rust(ours.strip("`").split("::")[1:])
    else:
        import_python(ours.strip("`"))


def import_python(path):
    """Imports the longest module of a dotted path and looks the rest up in it."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return
    raise AssertionError(f"no module for {path}")


def find_in_rust(parts):
    """Finds the module's file and in it the declaration of the item and, if one is named, of its member."""
    file = REPOSITORY / "rust/core/src"
    while (file / parts[0]).is_dir() and not (file / f"{parts[0]}.rs").is_file():
        file /= parts.pop(0)
    if (file / f"{parts[0]}.rs").is_file():
        file /= f"{parts.pop(0)}.rs"
    else:
        file /= "mod.rs"
    text = file.read_text()
    inside = file.with_suffix("")  # its own parts may have methods of it
    whole = "".join([text, *(part.read_text() for part in sorted(inside.glob("*.rs")))])
    item, *members = parts
    assert re.search(rf"\bpub (fn|const|struct|enum|trait|type) {item}\b", text), f"{item} in {file}"
    for member in members:
        declared = rf"\bfn {member}\b|\bpub {member}:|^    {member}[ ,({{]"
        assert re.search(declared, whole, re.MULTILINE), f"{item}::{member} in {file}"
