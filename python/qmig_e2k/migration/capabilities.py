"""The capabilities of a migration: what exists, what can be switched on here, and which exclude each other.

A change is checked as a whole and then applied as a whole, or not at all (spec/control-plane 5). A capability that is
known but cannot be had is
refused by name with the reason; switching it off is always accepted.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from qmig_e2k.errors import migration_error

__all__ = [
    "ALIASES",
    "CAPABILITIES",
    "COLO",
    "EXCLUDES",
    "NEEDS",
    "NO_DIRTY_RING",
    "NO_STORAGE",
    "Capabilities",
    "canonical",
]

NO_DIRTY_RING = "it needs a hardware dirty ring, which an emulated machine has not"
_LATER = "it is not built yet in this version of qmig_e2k"
NO_STORAGE = "this machine has no block devices"
COLO = "COLO replication: " + _LATER

CAPABILITIES: Mapping[str, str | None] = MappingProxyType(
    {
        "xbzrle": None,
        "rdma-pin-all": "the rdma: transport is not supported",
        "auto-converge": None,
        "zero-blocks": None,
        "compress": None,
        "events": None,
        "postcopy-ram": None,
        "x-colo": COLO,
        "release-ram": None,
        "block": NO_STORAGE,
        "return-path": None,
        "pause-before-switchover": None,
        "multifd": None,
        "dirty-bitmaps": NO_STORAGE,
        "postcopy-blocktime": None,
        "late-block-activate": "storage is always activated last, just before the machine starts",
        "x-ignore-shared": "shared memory is always sent",
        "validate-uuid": None,
        "background-snapshot": _LATER + "; migrate to a file instead",
        "zero-copy-send": "it acts on multifd channels only, and " + _LATER,
        "postcopy-preempt": None,
        "switchover-ack": None,
        "dirty-limit": NO_DIRTY_RING,
        "mapped-ram": None,
    }
)
"""Every known capability in the order of `query-migrate-capabilities`: why it cannot be switched on; None: it can."""

NEEDS: Mapping[str, str] = MappingProxyType(
    {"postcopy-preempt": "postcopy-ram", "zero-copy-send": "multifd", "switchover-ack": "return-path"}
)
"""Capabilities that mean nothing without another one."""

_OTHER_WAY = "each sends pages in a way of its own"
_WHOLE = "a file has room for whole pages only"

EXCLUDES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("multifd", "xbzrle"): _OTHER_WAY,
        ("multifd", "compress"): _OTHER_WAY + "; set the parameter multifd-compression instead",
        ("multifd", "postcopy-ram"): "a page that is waited for could be on any channel",
        ("postcopy-preempt", "compress"): "requested pages are sent as they are",
        ("mapped-ram", "xbzrle"): _WHOLE,
        ("mapped-ram", "compress"): _WHOLE,
        ("mapped-ram", "postcopy-ram"): "a file cannot be asked for a page",
    }
)
"""Pairs of capabilities that cannot be on together, and why (QEMU 10.0 has the same, and 7.2 those with `compress`)."""

ALIASES: Mapping[str, str] = MappingProxyType({"x-postcopy-ram": "postcopy-ram", "x-multifd": "multifd"})
"""Spellings of earlier QEMU versions."""


def canonical(name: str) -> str:
    """The present name of capability `name`; raises MigrationError (`invalid-argument`) if there is none."""
    name = ALIASES.get(name, name)
    if name not in CAPABILITIES:
        raise migration_error("invalid-argument", f"there is no migration capability {name!r}")
    return name


class Capabilities:
    """The capabilities of one machine; all off at first. Not locked: the machine's owner serialises changes."""

    def __init__(self) -> None:
        self._enabled: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> bool:
        return canonical(name) in self._enabled

    @property
    def enabled(self) -> list[str]:
        """Names that are on, in list order."""
        return [name for name in CAPABILITIES if name in self._enabled]

    def items(self) -> list[tuple[str, bool]]:
        """(name, on) of every known capability, in list order."""
        return [(name, name in self._enabled) for name in CAPABILITIES]

    def checked(self, changes: Iterable[tuple[str, bool]]) -> frozenset[str]:
        """The set that would be on after `changes`, later entries of a name winning.

        Raises:
            MigrationError: `invalid-argument` for an unknown name, one without what it needs or two that exclude each
                other, `unsupported` for one that cannot be had; nothing is changed.
        """
        wanted = dict(self.items())
        for name, state in changes:
            if not isinstance(state, bool):
                raise migration_error("invalid-argument", f"capability {name!r} is True or False, not {state!r}")
            wanted[canonical(name)] = state
        for name, state in wanted.items():
            reason = CAPABILITIES[name]
            if state and reason is not None:
                raise migration_error("unsupported", f"capability {name!r} cannot be switched on: {reason}")
        for name, needed in NEEDS.items():
            if wanted[name] and not wanted[needed]:
                raise migration_error("invalid-argument", f"capability {name!r} needs {needed!r}: switch both on")
        for (name, other), reason in EXCLUDES.items():
            if wanted[name] and wanted[other]:
                text = f"capabilities {name!r} and {other!r} cannot be on together: {reason}"
                raise migration_error("invalid-argument", text)
        return frozenset(name for name, state in wanted.items() if state)

    def update(self, changes: Iterable[tuple[str, bool]]) -> None:
        """Apply `changes` as a whole, or raise as `checked` does and change nothing."""
        self._enabled = self.checked(changes)
