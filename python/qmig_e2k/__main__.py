"""`python -m qmig_e2k` is `qmig-e2k`."""

import sys

from qmig_e2k.cli import main

sys.exit(main())
