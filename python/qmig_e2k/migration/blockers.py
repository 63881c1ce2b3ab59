"""What keeps a machine from migrating: reasons added by its owner or over QMP (spec/control-plane 11)."""

from collections.abc import Callable

from qmig_e2k._core import Control
from qmig_e2k.errors import migration_error
from qmig_e2k.migration.settings import Settings

__all__ = ["POSTCOPY", "RUNNING", "Blockers"]

POSTCOPY = frozenset({"postcopy-active", "postcopy-paused", "postcopy-recover"})
"""States in which the destination runs, or is about to, while memory is still at the source."""

RUNNING = POSTCOPY | {"setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug"}
"""Outgoing states in which a migration is under way."""


class Blockers:
    """The blockers of one machine; the newest is reported first. The caller serialises changes."""

    def __init__(self, control: Control, settings: Settings, unmigratable: Callable[[], list[str]]) -> None:
        """`unmigratable` names the devices that cannot be migrated by their nature."""
        self._control = control
        self._settings = settings
        self._unmigratable = unmigratable
        self._reasons: dict[int, str] = {}
        self._next = 1

    def reasons(self) -> list[str]:
        """Every reason, newest first."""
        devices = [f"device {name} cannot be migrated" for name in self._unmigratable()]
        return [*reversed(self._reasons.values()), *devices]

    def check_migratable(self, *more: str) -> None:
        """Refuse devices that cannot be migrated, `more` among them, where nothing but migratable ones is wanted.

        Raises MigrationError (`not-permitted`) under --only-migratable; else those that are here are reported.
        """
        devices = [*more, *self._unmigratable()]
        if devices and self._settings.only_migratable:
            raise migration_error("not-permitted", f"device {devices[0]} cannot be migrated (--only-migratable)")
        self.publish()

    def add(self, reason: str) -> int:
        """Add a blocker and return its number for `remove`.

        Raises:
            MigrationError: `not-permitted` under --only-migratable, `invalid-argument` without a reason,
                `invalid-state` while a migration runs or a snapshot is being saved.
        """
        if self._settings.only_migratable:
            raise migration_error("not-permitted", f"disallowing migration blocker (--only-migratable) for: {reason}")
        if not isinstance(reason, str) or not reason.strip() or not reason.isprintable():
            raise migration_error("invalid-argument", "a migration blocker needs a reason in one line, for its users")
        busy = "a migration is in progress" if self._control.outgoing_status in RUNNING else ""
        if self._control.run_state == "save-vm":
            busy = "a snapshot is being saved"
        if busy:
            raise migration_error("invalid-state", f"disallowing migration blocker ({busy}) for: {reason}")
        number, self._next = self._next, self._next + 1
        self._reasons[number] = reason
        self.publish()
        return number

    def remove(self, number: int) -> None:
        """Remove a blocker; raises MigrationError (`invalid-argument`) if there is none of that number."""
        if self._reasons.pop(number, None) is None:
            raise migration_error("invalid-argument", f"there is no migration blocker {number}")
        self.publish()

    def publish(self) -> None:
        """Tell the core, which lists the reasons in query-migrate."""
        self._control.set_blocked_reasons(self.reasons())
