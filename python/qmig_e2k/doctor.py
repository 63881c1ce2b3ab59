"""`qmig-e2k doctor`: what kernel and permissions allow, and the remedy for what they do not (contract section 2)."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from qmig_e2k._core import __version__, probe

__all__ = ["host", "record", "text"]

SCHEMA = "qmig_e2k/doctor/1"
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def host() -> dict[str, Any]:
    """Facts about this machine that stand in every record."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "thp": _THP.read_text().strip() if _THP.exists() else "absent",
        "versions": {"qmig_e2k": __version__, "python": platform.python_version()},
    }


def record() -> dict[str, Any]:
    """The report as data."""
    checks = [
        {"name": name, "ok": ok, "detail": detail, "remedy": remedy} for name, (ok, detail, remedy) in probe().items()
    ]
    return {"schema": SCHEMA, "host": host(), "args": {}, "phases": {}, "checks": checks}


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    facts = report["host"]
    lines = [f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, huge pages: {facts['thp']}"]
    width = max(len(check["name"]) for check in report["checks"])
    for check in report["checks"]:
        lines.append(f"{'ok' if check['ok'] else 'NO':<3} {check['name']:<{width}}  {check['detail']}")
        if check["remedy"] and not check["ok"]:
            lines.append(f"    {'':<{width}}  remedy: {check['remedy']}")
    return "\n".join(lines)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
