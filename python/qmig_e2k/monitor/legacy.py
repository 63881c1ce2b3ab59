"""The setters of 2.9 that `migrate-set-parameters` replaced, for both monitors, and a check that both share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.errors import migration_error

if TYPE_CHECKING:
    from fractions import Fraction

    from qmig_e2k.migration.machine import Machine

__all__ = ["refuse_unexpected", "set_cache_size", "set_downtime", "set_speed"]

_LONGEST = 2000
"""Seconds of downtime that may be allowed at most."""


def set_speed(machine: Machine, value: int) -> None:
    """`migrate_set_speed`: bytes per second, 0 for as fast as it goes; a negative number is no limit either."""
    machine.set_parameters({"max-bandwidth": max(value, 0)})


def set_downtime(machine: Machine, seconds: float | Fraction) -> None:
    """`migrate_set_downtime`.

    Raises:
        MigrationError: `invalid-argument` outside of 0 to 2000 seconds.
    """
    if not 0 <= seconds <= _LONGEST:
        raise migration_error("invalid-argument", f"a downtime must be 0 to {_LONGEST} seconds")
    machine.set_parameters({"downtime-limit": int(seconds * 1000)})


def set_cache_size(machine: Machine, value: int) -> None:
    """`migrate-set-cache-size`: bytes, rounded down to a power of two.

    Raises:
        MigrationError: `invalid-argument` below a page, and beyond all of RAM.
    """
    total = sum(block.size for block in machine.blocks)
    if value > total:
        raise migration_error("invalid-argument", f"a cache of {value} bytes is larger than RAM ({total} bytes)")
    machine.set_parameters({"xbzrle-cache-size": 1 << value.bit_length() - 1 if value > 0 else 0})


def refuse_unexpected(machine: Machine) -> None:
    """Raises MigrationError (`invalid-state`) unless the machine waits for a migration."""
    if machine.control.run_state != "inmigrate":
        text = "the machine does not wait for a migration: it was not started with --incoming"
        raise migration_error("invalid-state", text)
