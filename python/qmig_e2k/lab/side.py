"""One side of an experiment: a process with a machine that is nothing but RAM, driven over QMP.

Started by `lab.faults` with its conditions as JSON in the only argument. The source's RAM is filled with pages that can
be told apart. The destination's guest is the toucher: it begins when the machine does, and says so on standard output
when it is done; each line of standard input is then answered with one line of JSON, what was seen. The process ends
with its standard input, so with whoever started it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from typing import Any

from qmig_e2k import Vm
from qmig_e2k._core import Block, MigrationError, Toucher


class Guest:
    """The emulator of a side: lets the toucher begin, if there is one."""

    def __init__(self, toucher: Toucher | None) -> None:
        self._toucher = toucher

    def start(self) -> None:
        """Begin to touch."""
        if self._toucher is not None:
            self._toucher.start()

    def stop(self) -> None:
        """Nothing: the source has no guest, and the destination's ends by itself or with the process."""


def main() -> None:
    """Be the side that the argument describes."""
    side: dict[str, Any] = json.loads(sys.argv[1])
    try:
        _serve(side)
    except MigrationError as error:
        sys.exit(str(error))


def _serve(side: dict[str, Any]) -> None:
    page = side["page"]
    block = Block("ram", side["ram"], backing="hugetlb" if page > 4096 else "anon", thp=False)
    destination = side["role"] == "destination"
    toucher = Toucher(
        block,
        order=side["order"],
        seed=side["seed"],
        page=page,
        write=side["access"] == "write",
        faults=side["faults"],
    )
    # all that will ever be touched: the seed alone makes it
    order = hashlib.sha256(b"".join(at.to_bytes(4, "big") for at in toucher.order(side["ram"]))).hexdigest()
    if not destination:
        Toucher.fill(block)
    vm = Vm("none", Guest(toucher if destination else None))
    vm.add_ram("ram", buffer=block)
    if destination:
        vm.incoming("defer")
        threading.Thread(target=_done, args=(toucher,), daemon=True).start()
    else:
        vm.start()
    vm.serve_qmp(side["qmp"])
    for _ in sys.stdin:
        _say(
            touched=json.loads(toucher.record()),
            phases=json.loads(vm.machine.control.fault_latency() or "{}"),
            order=order,
        )
    # At once, whatever waits for a page or a peer: nothing here is worth keeping.
    os._exit(0)


def _done(toucher: Toucher) -> None:
    toucher.wait()
    _say(done=True)


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
