"""Sphinx settings of the manual: MyST pages, furo theme, warnings are errors (see `make docs`)."""

from qmig_e2k import __version__

project = "qmig_e2k"
author = "the qmig_e2k contributors"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"qmig_e2k {__version__}"
myst_heading_anchors = 3
