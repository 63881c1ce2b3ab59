"""What the core has to say goes to Python's logging, under `qmig_e2k.core`.

The core's threads never wait for the interpreter, so they leave their messages in a queue, and a thread of this module
hands them on: late, if the interpreter is stuck, but none of the core waits for that.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback

from qmig_e2k import _core

__all__ = ["forward"]

_END_S = 5.0
"""How long the end of the program waits for the thread, which may be inside somebody's handler."""

_lock = threading.Lock()
_forwarder: threading.Thread | None = None


def forward() -> None:
    """From now on messages are handed on. Idempotent; whoever has forked calls it again."""
    global _forwarder  # noqa: PLW0603  one per process
    with _lock:
        if _forwarder is None or not _forwarder.is_alive():
            forwarder = threading.Thread(target=_forward, name="corelog", daemon=True)
            forwarder.start()
            _forwarder = forwarder


def _forward() -> None:
    reported = False
    while (message := _core.next_log()) is not None:
        level, module, text = message
        name = module.removeprefix("qmig_core").replace("::", ".")
        try:
            logging.getLogger(f"qmig_e2k.core{name}").log(level, "%s", text)
        except Exception:  # noqa: BLE001  a filter or handler of the program: that message is lost, not those after it
            if not reported and logging.raiseExceptions:
                _report()
            reported = True


def _report() -> None:
    """The error of somebody's filter or handler, as logging itself reports one."""
    if sys.stderr is not None:
        with contextlib.suppress(Exception):
            traceback.print_exc()


def _end() -> None:
    """Before the interpreter is taken down under the thread."""
    _core.close_log()
    if _forwarder is not None:
        _forwarder.join(_END_S)


atexit.register(_end)
# A child has no such thread, and shall not inherit a lock that is held.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
