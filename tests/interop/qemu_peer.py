"""A real, unmodified QEMU as the other end of a migration, driven by its own QMP over a unix socket."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, Self

from qmig_e2k.monitor.client import QmpClient
from support import wait_until

if TYPE_CHECKING:
    from pathlib import Path

FINAL = frozenset({"completed", "failed", "cancelled"})


class QemuPeer:
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
        folder.mkdir()
        self.folder = folder
        self._dumps = 0
        command = [
            binary,
            "-M",
            machine,
            "-nodefaults",
            "-display",
            "none",
            "-qmp",
            f"unix:{folder}/qmp,server=on,wait=off",
        ]
        command += arguments if "-S" in arguments else ("-S", *arguments)
        if "-m" not in arguments:
            command += ["-m", "64M"]
        if ram is not None:
            # The loader writes at reset; it has no state of its own, so no section of it is in the stream.
            command += ["-device", f"loader,file={ram},addr=0,force-raw=on"]
        if incoming is not None:
            command += ["-incoming", incoming]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.qmp = QmpClient(f"unix:{folder}/qmp", alive=lambda: self.process.poll() is None)
        except OSError as error:
            self.process.kill()
            self.process.wait()
            error.add_note(self.log.read_text(errors="replace"))
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self, name: str, **arguments: Any) -> Any:
        """One QMP command; `_` in argument names stands for `-`. Raises QmpError with QEMU's own words."""
        return self.qmp.execute(name, **arguments)

    def set_capabilities(self, **enabled: bool) -> None:
        """migrate-set-capabilities; `_` in names stands for `-`."""
        states = [{"capability": name.replace("_", "-"), "state": state} for name, state in enabled.items()]
        self.command("migrate-set-capabilities", capabilities=states)

    def migration(self) -> dict[str, Any]:
        """The answer of query-migrate."""
        answer: dict[str, Any] = self.command("query-migrate")
        return answer

    def wait_migration(self, *statuses: str, seconds: float = 30.0) -> dict[str, Any]:
        """Polls query-migrate until its status is one of `statuses` (default: completed).

        Another final status fails the test at once.
        """
        wanted = set(statuses or ("completed",))

        def reached() -> dict[str, Any] | None:
            answer = self.migration()
            status = answer.get("status", "none")
            if status in wanted:
                return answer
            assert status not in FINAL, (
                f"migration ended as {status}: {answer.get('error-desc', '')} {self.log.read_text(errors='replace')}"
            )
            return None

        answer = wait_until(reached, seconds, f"migration status {' or '.join(sorted(wanted))}")
        assert answer is not None
        return answer

    def run_state(self) -> str:
        """`status` of query-status."""
        answer: str = self.command("query-status")["status"]
        return answer

    def wait_arrived(self, seconds: float = 30.0) -> None:
        """Waits until an incoming machine has left `inmigrate`."""
        wait_until(lambda: self.run_state() != "inmigrate", seconds, "leaving inmigrate")

    def memory(self, length: int, address: int = 0) -> bytes:
        """Guest-physical RAM as bytes, by pmemsave."""
        self._dumps += 1
        path = self.folder / f"dump{self._dumps}"
        self.command("pmemsave", val=address, size=length, filename=str(path))
        data = path.read_bytes()
        path.unlink()
        return data

    def close(self) -> None:
        """Ends the process, politely first."""
        if self.process.poll() is None:
            try:
                self.command("quit")
                self.process.wait(10)
            except Exception:  # noqa: BLE001 (a QEMU that cannot answer any more is ended all the same)
                self.process.kill()
        self.process.wait()
        self.qmp.close()
