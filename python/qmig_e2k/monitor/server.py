"""QMP for one machine: the core's `Monitor` for transport, one worker thread for the commands that Python answers."""

import threading
from collections.abc import Callable

from qmig_e2k._core import Monitor, __version__
from qmig_e2k.migration.machine import Machine
from qmig_e2k.monitor.commands import COMMANDS, Verifiable, execute

__all__ = ["QmpServer"]


class QmpServer:
    """Listeners, clients and the worker of one machine.

    Args:
        machine: what the commands act on.
        guest: what `x-verify` asks, if there is a model guest.
        on_quit: called on the worker after `quit` was answered; the server stops serving by itself.
    """

    def __init__(
        self, machine: Machine, *, guest: Verifiable | None = None, on_quit: Callable[[], None] | None = None
    ) -> None:
        self.monitor = Monitor(machine.control, list(COMMANDS), f"qmig_e2k {__version__}")
        self._machine = machine
        self._guest = guest
        self._on_quit = on_quit
        self._over = threading.Event()
        self._worker: threading.Thread | None = None

    def listen(self, address: str) -> str:
        """Accept clients at `unix:PATH` or `tcp:HOST:PORT`; returns the bound address.

        Raises MigrationError (`listen`).
        """
        return self.monitor.listen(address)

    def serve(self) -> None:
        """Run commands in this thread until `quit` or `close`."""
        while not self._over.is_set():
            command = self.monitor.next_command()
            if command is None:
                break
            if execute(self._machine, self._guest, command):
                self._over.set()
                if self._on_quit is not None:
                    self._on_quit()

    def start(self) -> None:
        """Run commands in a thread of their own. Nothing if it runs already."""
        if self._worker is None:
            self._worker = threading.Thread(target=self.serve, name="monitor")
            self._worker.start()

    def close(self) -> None:
        """Close listeners and clients and end the worker. Idempotent, from any thread.

        A worker that waits for a page of a machine that was given up is left behind: the page never comes.
        """
        self._over.set()
        self.monitor.close()
        if self._worker is not None and self._worker is not threading.current_thread():
            while self._worker.is_alive() and not self._machine.stuck:
                self._worker.join(_POLL)


_POLL = 0.05
"""Seconds between looks whether the worker can end at all."""
