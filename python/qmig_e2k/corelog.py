"""What the core has to say goes to Python's logging, under `qmig_e2k.core`.

The core's threads never wait for the interpreter, so they leave their messages in a queue, and a thread of this module
hands them on: late, if the interpreter is stuck, but none of the core waits for that.
"""

import atexit
import logging
import threading

from qmig_e2k import _core

__all__ = ["forward"]

_lock = threading.Lock()
_forwarder: threading.Thread | None = None


def forward() -> None:
    """From now on messages are handed on. Idempotent."""
    global _forwarder  # noqa: PLW0603  one per process
    with _lock:
        if _forwarder is None:
            _forwarder = threading.Thread(target=_forward, name="corelog", daemon=True)
            _forwarder.start()
            atexit.register(_end, _forwarder)


def _forward() -> None:
    while (message := _core.next_log()) is not None:
        level, module, text = message
        name = module.removeprefix("qmig_core").replace("::", ".")
        logging.getLogger(f"qmig_e2k.core{name}").log(level, "%s", text)


def _end(forwarder: threading.Thread) -> None:
    """Before the interpreter is taken down under the thread."""
    _core.close_log()
    forwarder.join(1)
