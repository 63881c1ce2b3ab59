"""docs/golden-vectors.md has a row for each of the 38 vectors; the files and tests in it are those that there are."""

from __future__ import annotations

import re

import pytest

from support import REPOSITORY, STREAMS

ROWS = re.findall(
    r"^\| (\d+) \| (.+?) \| (.+?) \| (.*?) ?\|$", (REPOSITORY / "docs/golden-vectors.md").read_text(), re.MULTILINE
)
FILES = {path.name for path in (STREAMS / "e2k").iterdir()}


def quoted(cell: str) -> list[str]:
    return re.findall("`(.+?)`", cell)


def meant(pattern: str) -> set[str]:
    """Files of that name; `*` stands for anything."""
    shape = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return {name for name in FILES if shape.fullmatch(name)}


def test_one_row_for_each_vector() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 39))


def test_every_file_has_its_row() -> None:
    listed = {name: number for number, _, files, _ in ROWS for pattern in quoted(files) for name in meant(pattern)}
    assert set(listed) == FILES
    for name, number in listed.items():
        assert name.split("-")[1] == f"{int(number):02}", name


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_the_row_names_exists(row: tuple[str, str, str, str]) -> None:
    _, _, files, tests = row
    assert quoted(files)
    for pattern in quoted(files):
        assert meant(pattern), pattern
    for name in quoted(tests):
        file, test = name.split("::")
        assert f"\ndef {test}(" in (REPOSITORY / "tests/unit" / file).read_text(), name
