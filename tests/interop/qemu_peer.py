"""A real, unmodified QEMU as the other end of a migration, driven by its own QMP over a unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peer import Peer
from support import wait_until

if TYPE_CHECKING:
    from pathlib import Path


class QemuPeer(Peer):
    """One QEMU process, paused, with no devices.

    Args:
        binary: The program.
        folder: Made for its sockets, log and dumps.
        arguments: More of the command line, e.g. "-m", "64M"; RAM is 64 MiB if it is not named.
        ram: A file whose bytes are RAM's first content, from address 0.
        incoming: A URI or "defer".
        machine: `-M`; "none" has RAM and nothing else.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        *arguments: str,
        ram: Path | None = None,
        incoming: str | None = None,
        machine: str = "none",
    ) -> None:
        command = [binary, "-M", machine, "-nodefaults", "-display", "none"]
        if ram is not None:
            # The loader writes at reset; it has no state of its own, so no section of it is in the stream.
            command += ["-device", f"loader,file={ram},addr=0,force-raw=on"]
        super().__init__(folder, command, ["-qmp", "unix:{socket},server=on,wait=off"], arguments, incoming)

    def wait_let_go(self) -> None:
        """QEMU keeps hold of a migration for a moment after it has reported its end."""

        def over() -> bool:
            return all(instance["type"] != "migration" for instance in self.command("query-yank"))

        wait_until(over, what="the end of the migration before")
