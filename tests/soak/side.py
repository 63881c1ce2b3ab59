"""`qmig-e2k serve` that may receive a machine more than once: `python -m soak.side serve ...`.

A process of the product that has had a machine, like one of QEMU's, never waits for another; over `Vm` one does, after
a reset. Here `migrate-incoming` is taken then, too, so that one process lives through thousands of arrivals.
"""

from __future__ import annotations

import sys

from qmig_e2k.cli import main
from qmig_e2k.monitor import legacy

if __name__ == "__main__":
    # expect_incoming, which comes next, refuses a machine that has run and was not reset
    legacy.refuse_unexpected = lambda _machine: None
    sys.exit(main())
