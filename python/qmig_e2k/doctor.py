"""`qmig-e2k doctor`: what kernel and permissions allow, and the remedy for what they do not (contract section 2)."""

from __future__ import annotations

from typing import Any

from qmig_e2k._core import probe
from qmig_e2k.bench.host import facts

__all__ = ["record", "text"]

SCHEMA = "qmig_e2k/doctor/1"


def record() -> dict[str, Any]:
    """The report as data."""
    checks = [
        {"name": name, "ok": ok, "detail": detail, "remedy": remedy} for name, (ok, detail, remedy) in probe().items()
    ]
    return {"schema": SCHEMA, "host": facts(), "args": {}, "phases": {}, "checks": checks}


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    host = report["host"]
    lines = [f"{host['cpu']}, {host['cores']} cores, Linux {host['kernel']}, huge pages: {host['thp']}"]
    width = max(len(check["name"]) for check in report["checks"])
    for check in report["checks"]:
        lines.append(f"{'ok' if check['ok'] else 'NO':<3} {check['name']:<{width}}  {check['detail']}")
        if check["remedy"] and not check["ok"]:
            lines.append(f"    {'':<{width}}  remedy: {check['remedy']}")
    return "\n".join(lines)
