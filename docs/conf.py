"""Sphinx settings of the manual: MyST pages, furo theme, warnings are errors (see `make docs`)."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from qmig_e2k import __version__
from qmig_e2k.cli import _parser

project = "qmig_e2k"
author = "the qmig_e2k contributors"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"qmig_e2k {__version__}"
myst_heading_anchors = 3


def _helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What `--help` says of a command and of those below it."""
    yield f"$ {parser.prog} --help\n{parser.format_help()}"
    for action in parser._actions:  # noqa: SLF001  there is no other way to them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for each in action.choices.values():
                yield from _helps(each)


# The page reference/command-line shows it: always that of this version.
os.environ["COLUMNS"] = "112"
(Path(__file__).parent / "reference" / "_command-line.txt").write_text("\n\n".join(_helps(_parser())))
