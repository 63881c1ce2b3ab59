"""The `globalstate` section: the run state in which the source's machine was (spec/stream.md 2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmig_e2k.vmstate import VMStateDescription, buffer, uint8, uint32

if TYPE_CHECKING:
    from qmig_e2k.savevm.profile import Profile

RUN_STATES = (
    "debug",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "finish-migrate",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
    "guest-panicked",
    "colo",
)
"""Names of the run states, in QEMU's order: those that may travel."""


class GlobalState:
    """The run state that travels.

    Attributes:
        received: name that a stream brought, None if none did.
        was_suspended: 10.0: the machine was suspended before it was stopped.
    """

    def __init__(self, profile: Profile) -> None:
        """State for streams of `profile`'s format."""
        self._profile = profile
        self.description = _description(profile.facts.runstate_size)
        self.reset()

    def reset(self) -> None:
        """Forget what was stored and received."""
        self._name = "running"
        self.received: str | None = None
        self.was_suspended = False
        self.size = 0
        self.runstate = bytes(self._profile.facts.runstate_size)
        self.has_vm_was_suspended = self.vm_was_suspended = 0
        self.unused = bytes(66)

    def store(self, run_state: str) -> None:
        """Remember the state of the machine just before it is stopped for the migration."""
        if run_state not in RUN_STATES:
            raise ValueError(f"run state {run_state!r} is none of {', '.join(sorted(RUN_STATES))}")
        self._name = run_state

    def store_running(self) -> None:
        """Say `running`, whatever the state is."""
        self._name = "running"

    # hooks

    def needed(self) -> bool:
        """Whether the section is written."""
        if self._profile.global_state:
            return True
        return self._profile.format != "10.0" and self._name not in {"running", "paused"}

    def fill(self) -> None:
        """pre_save."""
        name = self._name.encode()
        self.size = len(name) + 1
        self.runstate = name.ljust(len(self.runstate), b"\0")
        self.has_vm_was_suspended, self.vm_was_suspended = 1, int(self.was_suspended)
        self.unused = bytes(66)

    def take(self, _version: int) -> None:
        """post_load: the length word says nothing; the name ends at the first NUL."""
        raw, end, _ = self.runstate.partition(b"\0")
        name = raw.decode("utf-8", "backslashreplace")
        if not end or name not in RUN_STATES:
            raise ValueError(f"unknown run state {name[:40]!r}")
        self.received = self._name = name
        if len(self.runstate) == 32:
            self.was_suspended = bool(self.has_vm_was_suspended and self.vm_was_suspended)
        else:
            # the same bytes seen through the older layout: names end long before byte 32
            self.was_suspended = self.runstate[32:34] == b"\1\1"


def _description(runstate_size: int) -> VMStateDescription:
    fields = [uint32("size"), buffer("runstate", runstate_size)]
    if runstate_size == 32:
        fields += [uint8("has_vm_was_suspended"), uint8("vm_was_suspended"), buffer("unused", 66)]
    return VMStateDescription(
        "globalstate",
        fields=fields,
        needed=GlobalState.needed,
        pre_save=GlobalState.fill,
        post_load=GlobalState.take,
    )
