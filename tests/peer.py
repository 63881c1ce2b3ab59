"""A machine in a process of its own, driven by QMP: what tests of migrations between processes have on either side."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from qmig_e2k.monitor.client import QmpClient
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FINAL = frozenset({"completed", "failed", "cancelled"})


class Peer:
    """One process with one machine, paused.

    Args:
        folder: Made for its sockets, log and dumps.
        command: The command line, without QMP and what follows.
        qmp: The option that makes it listen for QMP at the unix socket `{socket}`.
        arguments: More of the command line.
        incoming: A URI or "defer".

    Attributes:
        serves: It is `qmig-e2k serve`.
    """

    serves = False

    def __init__(
        self, folder: Path, command: Sequence[str], qmp: Sequence[str], arguments: Sequence[str], incoming: str | None
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self._dumps = 0
        line = [*command, *(word.format(socket=folder / "qmp") for word in qmp), *arguments]
        if "-S" not in arguments:
            line.append("-S")
        if "-m" not in arguments:
            line += ["-m", "64M"]
        if incoming is not None:
            line += ["-incoming", incoming]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.qmp = QmpClient(f"unix:{folder}/qmp", alive=lambda: self.process.poll() is None)
        except OSError as error:
            self.process.kill()
            self.process.wait()
            error.add_note(self.words())
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def words(self) -> str:
        """What the process has written to its standard output and error."""
        return self.log.read_text(errors="replace")

    def command(self, name: str, **arguments: Any) -> Any:
        """One QMP command; `_` in argument names stands for `-`. Raises QmpError with the peer's own words."""
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
            assert status not in FINAL, f"migration ended as {status}: {answer.get('error-desc', '')} {self.words()}"
            return None

        answer = wait_until(reached, seconds, f"migration status {' or '.join(sorted(wanted))}")
        assert answer is not None
        return answer

    def wait_let_go(self) -> None:
        """Waits until another `migrate` may follow one that failed or was cancelled; here at once."""

    def run_state(self) -> str:
        """`status` of query-status."""
        answer: str = self.command("query-status")["status"]
        return answer

    def wait_arrived(self, seconds: float = 30.0) -> None:
        """Waits until an incoming machine has left `inmigrate`."""
        wait_until(lambda: self.run_state() != "inmigrate", seconds, "leaving inmigrate")

    def listen(self, uri: str = "tcp:127.0.0.1:0") -> str:
        """migrate-incoming on a machine that waits for it (`defer`); returns the URI for the source."""
        self.command("migrate-incoming", uri=uri)
        if not uri.startswith("tcp:"):
            return uri
        address = self.migration()["socket-address"][0]
        host = f"[{address['host']}]" if ":" in address["host"] else address["host"]
        return f"tcp:{host}:{address['port']}"

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
            except Exception:  # noqa: BLE001 (one that cannot answer any more is ended all the same)
                self.process.kill()
        self.process.wait()
        self.qmp.close()


class ServePeer(Peer):
    """`qmig-e2k serve`. Arguments as for QemuPeer; `ram` needs machine `none`."""

    serves = True

    def __init__(
        self, folder: Path, *arguments: str, ram: Path | None = None, incoming: str | None = None, machine: str = "none"
    ) -> None:
        command = [sys.executable, "-m", "qmig_e2k", "serve", "-M", machine]
        if ram is not None:
            command += ["-kernel", str(ram)]
        super().__init__(folder, command, ["--qmp", "unix:{socket}"], arguments, incoming)
