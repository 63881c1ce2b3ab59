"""What `serve` shows on a terminal while its machine leaves or arrives."""

import errno
import io
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from qmig_e2k import Vm
from qmig_e2k.live import Lines, LiveView, Look, facts, words
from qmig_e2k.monitor.client import QmpClient
from support import wait_until

RAM = {
    "total": 256 << 20,
    "remaining": 64 << 20,
    "transferred": 300 << 20,
    "mbps": 1073.741824,
    "dirty-sync-count": 3,
    "dirty-pages-rate": 12800,
    "page-size": 4096,
    "postcopy-requests": 7,
}
LATENCY = {"total": {"count": 12, "p50": 41500, "p99": 250000}}
LIVE = {"ram": RAM, "total-time": 4200, "expected-downtime": 310, "setup-time": 1}
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from qmig_e2k.cli import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (Look("running", {}), ""),
        (
            Look("inmigrate", {"socket-address": [{"type": "unix", "path": "/x"}]}, leaves=False),
            "waiting for a machine at unix:/x",
        ),
        (Look("running", LIVE | {"status": "completed", "downtime": 25}), ""),
        (Look("save-vm", {"status": "setup"}), "stopped: a snapshot is written"),
        (Look("running", {"status": "setup"}), "leaving: connecting"),
        (
            Look("postmigrate", {"status": "failed", "error-desc": "cut", "ram": RAM}),
            "failed: cut",
        ),
        (
            Look("running", {"status": "postcopy-recover", "error-desc": "cut"}, leaves=False),
            "connected again (cut)",
        ),
        (
            Look("postmigrate", LIVE | {"status": "completed", "downtime": 25}),
            "left: 300.0 MiB in 4.20 s, 3 rounds, downtime 25 ms, 7 pages asked for",
        ),
        (
            Look("running", {"status": "completed", "x-fault-latency": LATENCY}, leaves=False, received=5 << 20),
            "arrived: 5.0 MiB, 12 faults: half within 42 us, 99 % within 250 us",
        ),
        (Look("running", {"status": "failed", "error-desc": "no room"}), "failed: no room"),
        (Look("inmigrate", {"status": "failed"}, leaves=False), "did not arrive: no reason given"),
    ],
)
def test_the_words(look, said):
    assert words(look) == said


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (
            Look("running", LIVE | {"status": "active", "cpu-throttle-percentage": 20}, limit=300),
            [
                "64.0 MiB of 256.0 MiB to send, 4 s",
                "128.0 MiB/s sent, 50.0 MiB/s written by the guest, which is slowed down by 20 %",
                "stopped now, it would stand still for 310 ms (limit 300 ms)",
            ],
        ),
        (
            Look("finish-migrate", LIVE | {"status": "postcopy-active"}),
            ["64.0 MiB of 256.0 MiB to send, 4 s", "128.0 MiB/s sent, 7 pages asked for"],
        ),
        (Look("running", {"status": "active"}), []),
        (
            Look("inmigrate", {"status": "active"}, leaves=False, received=3 << 29, rate=2.5e7, elapsed=9),
            ["1.5 GiB here, 23.8 MiB/s, 9 s"],
        ),
        (
            Look("running", {"status": "postcopy-active", "x-fault-latency": LATENCY}, leaves=False),
            ["0 B here, 0.0 MiB/s, 0 s", "12 faults: half within 42 us, 99 % within 250 us"],
        ),
    ],
)
def test_the_figures(look, said):
    assert facts(look) == said
    assert all(len(line) <= 80 for line in said)


def test_a_peer_cannot_write_to_the_terminal():
    out = io.StringIO()
    lines = Lines(out)
    for _ in range(2):
        lines.show(Look("inmigrate", {"status": "failed", "error-desc": "block \x1b[2J\r\nü\x9b"}, leaves=False))
    assert out.getvalue() == "inmigrate       did not arrive: block ?[2J??ü?\n"


class OnTerminal:
    """A `serve` whose standard output is a terminal; `program` is Python that runs the command line."""

    def __init__(self, folder, name, *arguments, program=None):
        master, terminal = pty.openpty()
        start = ["-m", "qmig_e2k"] if program is None else ["-c", program]
        command = [
            sys.executable,
            *start,
            "serve",
            "-M",
            "none",
            "-m",
            "64M",
            *arguments,
            "-v",
            "--qmp",
            f"unix:{name}",
        ]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
            self.process = subprocess.Popen(command, cwd=folder, stdout=terminal, stderr=log, env=variables)
        os.close(terminal)
        self._master, self._made = master, b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.qmp = QmpClient(f"unix:{folder}/{name}", alive=lambda: self.process.poll() is None)

    def _read(self):
        while True:
            try:
                self._made += os.read(self._master, 1 << 16)
            except OSError:
                return

    def shown(self, pattern):
        """Whether it stands there, colours apart."""
        return re.search(pattern, re.sub(r"\x1b\[[0-9;]*m", "", self._made.decode(errors="replace")))

    def wait(self, pattern):
        return wait_until(lambda: self.shown(pattern), what=pattern)

    def close(self):
        self.qmp.execute("quit")
        self.qmp.close()
        status = self.process.wait(30)
        self._reader.join()
        os.close(self._master)
        return status


def move(source, destination):
    """So slowly that it cannot end before it was seen; then as fast as it can."""
    destination.qmp.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    destination.wait("inmigrate +waiting for a machine at tcp:127.0.0.1:")
    address = destination.qmp.execute("query-migrate")["socket-address"][0]
    source.qmp.execute("migrate-set-parameters", max_bandwidth=512 << 10)
    source.qmp.execute("migrate", uri=f"tcp:127.0.0.1:{address['port']}")
    source.wait("leaving: its memory is sent while it runs")
    source.wait(r"round 1\W")
    source.wait(r"MiB of 64.0 MiB to send, \d+ s")
    destination.wait("arriving: its memory comes")
    destination.wait(r"\d+\.\d MiB here, \d+\.\d MiB/s")
    source.qmp.execute("migrate-set-parameters", max_bandwidth=0)
    source.wait(r"postmigrate +left: .* rounds, downtime \d+ ms")
    destination.wait(r"running +arrived: \d+\.\d MiB")


@pytest.fixture
def content(tmp_path):
    (tmp_path / "content").write_bytes(os.urandom(14 << 20))
    return "content"


def test_both_sides_show_what_happens(tmp_path, content):
    pytest.importorskip("rich")
    destination = OnTerminal(tmp_path, "there", "--incoming", "defer")
    source = OnTerminal(tmp_path, "here", "-kernel", content)
    try:
        move(source, destination)
    finally:
        assert [source.close(), destination.close()] == [0, 0]
    assert source.shown("\x1b.2K"), "the figures are renewed in place"
    assert source._made.endswith(b"\r\n")
    assert source._made.count(b"\x1b[?25h") >= source._made.count(b"\x1b[?25l"), "the cursor is there"
    assert not source.shown("QMP at"), "what is logged does not come there"
    assert "QMP at" in source.log.read_text()


def test_without_rich_there_are_lines(tmp_path, content):
    destination = OnTerminal(tmp_path, "there", "--incoming", "defer", program=WITHOUT_RICH)
    source = OnTerminal(tmp_path, "here", "-kernel", content, program=WITHOUT_RICH)
    try:
        move(source, destination)
    finally:
        assert [source.close(), destination.close()] == [0, 0]
    assert b"\x1b" not in source._made + destination._made
    assert source._made.count(b"\n") < 30


@pytest.mark.parametrize("how", [OSError(errno.EIO, "gone"), ValueError("closed")], ids=repr)
def test_a_terminal_that_goes_away_does_not_end_the_machine(caplog, how):
    class Gone(io.StringIO):
        def write(self, _text):
            raise how

    with Vm("none") as vm, caplog.at_level(logging.INFO):
        vm.add_ram("ram", size=1 << 20)
        view = LiveView(vm.machine, Gone())
        wait_until(lambda: "the live view ends" in caplog.text, what="a word about it")
        vm.start()
        assert vm.run_state == "running"
        view.close()


def test_a_calm_view(tmp_path):
    """Nothing is written while nothing happens."""
    machine = OnTerminal(tmp_path, "here")
    machine.wait("running *\r\n")
    made, end = machine._made, time.monotonic() + 1.2
    while time.monotonic() < end:
        machine.qmp.execute("query-status")
    assert machine._made == made
    assert machine.close() == 0


LOGGING = """
import logging, sys
from qmig_e2k.live import Look, Screen
logging.basicConfig(stream=sys.stderr, format="%(message)s")
screen, handler, ram = Screen(sys.stdout), logging.getLogger().handlers[0], {ram!r}
before = handler.stream
look = Look("running", {{"status": "active", "ram": ram, "total-time": 5}})
screen.show(look)
logging.warning("a word in between")
screen.show(look)
screen.close()
logging.warning("a word after it")
assert handler.stream is before is sys.stderr
"""


def test_what_is_logged_to_the_same_terminal_stands_above_the_figures():
    pytest.importorskip("rich")
    master, terminal = pty.openpty()
    program = LOGGING.format(ram=RAM)
    variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=terminal, stderr=terminal, env=variables) as process:
        os.close(terminal)
        made = b""
        while True:
            try:
                made += os.read(master, 1 << 16)
            except OSError:
                break
        os.close(master)
    assert process.returncode == 0, made.decode()
    text = re.sub(r"\x1b\[\?25[hl]|\x1b\[[0-9;]*m", "", made.decode())
    # the figures go, the word comes, the figures come again
    between = text[text.index("a word in between") - 4 :]
    assert between.startswith("\x1b[2K"), text
    assert re.match(r".{4}a word in between\r\n  round 3 .*?MiB to send", between, re.DOTALL), text
    assert text.endswith("\x1b[2Ka word after it\r\n"), text
