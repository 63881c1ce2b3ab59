"""Where a downtime went, as text for people: what query-migrate has in `x-downtime`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["describe", "slowest"]

_ORDER = ("stop", "pause", "devices", "sync", "pages", "switchover", "load", "start")
"""As they follow each other. `load` falls into `switchover`: the source waits for it."""


def describe(times: Mapping[str, Any]) -> str:
    """The parts in their order, in microseconds.

    Args:
        times: `x-downtime` of one side, or of both in one mapping. The devices of the destination are part of `load`.
    """
    devices = {} if "load" in times and "stop" not in times else times.get("devices", {})
    parts = {**times, "devices": sum(devices.values())} if devices else {**times, "devices": None}
    return ", ".join(f"{name} {parts[name]} us" for name in _ORDER if parts.get(name) is not None)


def slowest(times: Mapping[str, Any], count: int = 5) -> str:
    """The devices that took longest, in microseconds; empty if none were measured."""
    devices = sorted(times.get("devices", {}).items(), key=lambda item: -item[1])
    more = f", {len(devices) - count} more" if len(devices) > count else ""
    return ", ".join(f"{name} {took} us" for name, took in devices[:count]) + more
