"""Fixtures for all tests: a real QEMU as peer, and a clear word at the end where it is missing."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import HealthCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop.qemu_peer import QemuPeer
    from peer import ServePeer

QEMU = os.environ.get("QMIG_QEMU", "qemu-system-x86_64")
NO_QEMU = (
    f"{QEMU} is not installed (on Debian: apt-get install --no-install-recommends qemu-system-x86; or set QMIG_QEMU)"
)

# How long an example takes says how busy the machine is, no more. A change is judged by what it changes: in CI every
# run draws the same examples; locally each run draws new ones.
hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the `qemu` fixture carries the `qemu` mark, so `-m "not qemu"` leaves out exactly those."""
    for item in items:
        if "qemu" in getattr(item, "fixturenames", ()):
            item.add_marker("qemu")


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """A test ends what it started: a vCPU that goes on would slow down, or keep alive, all that comes after."""
    before = set(_threads())
    yield
    end = time.monotonic() + 20
    while left := [thread for thread in _threads() if thread not in before]:
        if time.monotonic() >= end:
            pytest.fail(f"threads left behind: {', '.join(thread.name for thread in left)}", pytrace=False)
        left[0].join(end - time.monotonic())


def pytest_unconfigure() -> None:
    """A thread that was left behind, and failed its test, does not keep the whole run from ending."""
    if left := _threads():
        sys.stderr.write(f"ending in spite of {', '.join(thread.name for thread in left)}\n")
        sys.stderr.flush()
        os._exit(1)


def _threads() -> list[threading.Thread]:
    """Threads that the interpreter would wait for."""
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


@pytest.fixture(scope="session")
def qemu_binary() -> str:
    """Path of a real QEMU. Without one the test is skipped, or fails where QMIG_REQUIRE_QEMU=1 wants one."""
    found = shutil.which(QEMU)
    if found:
        return found
    if os.environ.get("QMIG_REQUIRE_QEMU") == "1":
        pytest.fail(f"QMIG_REQUIRE_QEMU=1, but {NO_QEMU}")
    pytest.skip(NO_QEMU)


@pytest.fixture
def qemu(qemu_binary: str, tmp_path: Path) -> Iterator[Callable[..., QemuPeer]]:
    """Starts real QEMUs: `qemu("-m", "64M", ram=path, incoming="defer")` gives a QemuPeer; the test's end ends all."""
    from interop.qemu_peer import QemuPeer

    started: list[QemuPeer] = []

    def start(*arguments: str, ram: Path | None = None, incoming: str | None = None, machine: str = "none") -> QemuPeer:
        peer = QemuPeer(
            qemu_binary, tmp_path / f"qemu{len(started)}", *arguments, ram=ram, incoming=incoming, machine=machine
        )
        started.append(peer)
        return peer

    yield start
    for peer in started:
        peer.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServePeer]]:
    """Starts processes of our own as `qemu` starts QEMUs: `serve("-m", "64M", ram=path, incoming="defer")`."""
    from peer import ServePeer

    started: list[ServePeer] = []

    def start(
        *arguments: str, ram: Path | None = None, incoming: str | None = None, machine: str = "none"
    ) -> ServePeer:
        peer = ServePeer(tmp_path / f"serve{len(started)}", *arguments, ram=ram, incoming=incoming, machine=machine)
        started.append(peer)
        return peer

    yield start
    for peer in started:
        peer.close()


@pytest.fixture
def shm_path() -> Iterator[Path]:
    """A path on tmpfs where no file is yet; the test's end removes what was made there."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory) / "ram"


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[[int], bool]]:
    """A function that gives the file system at `tmp_path/small` room for so many bytes; 2 MiB at first."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()

    def mount(size: int, *options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs", str(place)]
        return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0

    if not mount(2 << 20):
        assert os.environ.get("QMIG_REQUIRE_MOUNT") != "1", "a small tmpfs is required here and cannot be mounted"
        pytest.skip("a small tmpfs cannot be mounted; run as root")
    yield lambda size: mount(size, "remount")
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture
def huge_pages() -> Iterator[Callable[[int], None]]:
    """`huge_pages(size)` sees to it that `size` bytes of free huge pages (2 MiB) are there, for the time of the test.

    Where they cannot be had the test is skipped, or fails if QMIG_REQUIRE_HUGE_PAGES=1 wants them.
    """
    setting, added = Path("/proc/sys/vm/nr_hugepages"), 0

    def free() -> int:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("HugePages_Free:"))

    def reserve(size: int) -> None:
        nonlocal added
        wanted = size >> 21
        try:
            before = int(setting.read_text())
            setting.write_text(str(before + wanted))
            added = int(setting.read_text()) - before
        except PermissionError:
            pass
        if free() < wanted:
            words = f"{wanted} free pages of 2 MiB are needed: as root, sysctl vm.nr_hugepages={wanted}"
            if os.environ.get("QMIG_REQUIRE_HUGE_PAGES") == "1":
                pytest.fail(words)
            pytest.skip(words)

    yield reserve
    if added:
        setting.write_text(str(max(int(setting.read_text()) - added, 0)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in one line how many tests had no real QEMU to talk to."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_QEMU in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests against a real QEMU were skipped: {NO_QEMU}.", yellow=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `certificates.make`. Without the command `openssl` the test is skipped, in CI it fails."""
    import certificates

    if shutil.which("openssl") is None:
        words = "the command openssl is needed to make certificates (on Debian: apt-get install openssl)"
        if os.environ.get("QMIG_REQUIRE_QEMU") == "1":
            pytest.fail(words)
        pytest.skip(words)
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def image(content, tmp_path):
    """A file of the module's `content`, for a machine to begin with."""
    path = tmp_path / "image"
    path.write_bytes(content)
    return path
