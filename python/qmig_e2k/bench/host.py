"""The machine that a figure was measured on, and how it is warmed up."""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from qmig_e2k._core import __version__

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, which Python's mmap has no name for."""


def warm(gib: int = 4) -> None:
    """Touch and free `gib` GiB, so that the host has the memory at hand when the next run wants it.

    A virtual machine may give free memory back within seconds: warm up just before what is measured.
    """
    with mmap.mmap(-1, gib << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(_POPULATE_WRITE)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, int]:
    """`VmHWM`, `RssAnon`, `RssFile`, `RssShmem`, ... of a process, in bytes."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) << 10
    return found


def available() -> int:
    """Bytes that new programs could have now."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def qemu() -> str | None:
    """Path of the reference, if one is on PATH."""
    return shutil.which("qemu-system-x86_64")


def facts() -> dict[str, Any]:
    """The `host` member of every record (contract section 2)."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name"))
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    versions = {"qmig_e2k": __version__, "python": platform.python_version()}
    if (path := qemu()) is not None:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        versions["qemu"] = printed.splitlines()[0]
    return {
        "cpu": next(models, platform.machine()),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "thp": thp.read_text().strip() if thp.exists() else "absent",
        "versions": versions,
    }
