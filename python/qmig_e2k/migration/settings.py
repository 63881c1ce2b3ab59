"""Everything about migrations that a user sets: format profile, switches, capabilities, parameters.

And `-global migration.NAME=V`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from qmig_e2k.errors import MigrationError, migration_error
from qmig_e2k.limits import DEFAULT, Limits
from qmig_e2k.migration import capabilities, parameters
from qmig_e2k.migration.capabilities import CAPABILITIES, Capabilities
from qmig_e2k.migration.parameters import PARAMETERS, Parameters, Value, parse_switch, parse_value
from qmig_e2k.savevm import Profile

__all__ = ["SWITCHES", "Settings"]

SWITCHES: Mapping[str, str] = MappingProxyType(
    {
        "send-configuration": "configuration",
        "send-section-footer": "footers",
        "store-global-state": "global_state",
        "send-switchover-start": "send_switchover_start",
    }
)
"""QEMU's names of the stream's switches (spec/control-plane 1.12), and the `Profile` attributes behind them."""


@dataclass(slots=True)
class Settings:
    """The settings of one machine.

    Attributes:
        profile: what this side writes, and what it expects where a stream cannot say it; fixed once a machine was made
            of it.
        only_migratable: refuse whatever would block a migration.
        capabilities: see `capabilities`.
        parameters: see `parameters`.
        limits: what a stream that is loaded may ask for.
    """

    profile: Profile = field(default_factory=Profile)
    only_migratable: bool = False
    capabilities: Capabilities = field(default_factory=Capabilities)
    parameters: Parameters = field(default_factory=Parameters)
    limits: Limits = DEFAULT

    def check_file(self) -> None:
        """Raises MigrationError (`invalid-argument`) if the file of `mapped-ram` cannot be as the parameters say."""
        if not self.capabilities["mapped-ram"]:
            return
        if self.parameters["tls-creds"]:
            raise migration_error(
                "invalid-argument", "'mapped-ram' writes to a file, which takes no TLS: unset the parameter 'tls-creds'"
            )
        if self.parameters["multifd-compression"] != "none":
            raise migration_error(
                "invalid-argument",
                "'mapped-ram' has no room for compressed pages: set the parameter 'multifd-compression' to 'none'",
            )

    def check_deadline(self, parameters: Mapping[str, Value]) -> None:
        """Raises MigrationError (`invalid-argument`) if there is nothing to switch to when `x-deadline` passes."""
        postcopy = parameters["x-deadline"] and parameters["x-deadline-action"] == "postcopy"
        if postcopy and not self.capabilities["postcopy-ram"]:
            raise migration_error(
                "invalid-argument",
                "'x-deadline-action' is 'postcopy': switch the capability 'postcopy-ram' on, or choose another action",
            )

    def apply_global(self, *texts: str) -> None:
        """Apply `migration.NAME=VALUE`s: switches, capabilities and parameters; `x-NAME` means the same.

        Capabilities and parameters are checked together, so that their order does not matter.

        Raises:
            MigrationError: `invalid-argument` if it cannot be parsed or is unknown, and whatever a capability or
                parameter is refused with.
        """
        switched: list[tuple[str, bool]] = []
        changed: dict[str, object] = {}
        for text in texts:
            self._apply(text, switched, changed)
        self.capabilities.update(switched)
        self.parameters.update(changed)

    def _apply(self, text: str, switched: list[tuple[str, bool]], changed: dict[str, object]) -> None:
        left, equals, value = text.partition("=")
        prefix, dot, name = left.partition(".")
        if not (equals and dot) or prefix != "migration":
            raise migration_error("invalid-argument", f"-global {text}: expected migration.NAME=VALUE")
        for candidate in (name, name.removeprefix("x-")):
            if candidate in SWITCHES:
                switch: dict[str, Any] = {SWITCHES[candidate]: _switch(text, value)}
                self.profile = replace(self.profile, **switch)
            elif candidate == "only-migratable":
                self.only_migratable = _switch(text, value)
            elif candidate in CAPABILITIES or candidate in capabilities.ALIASES:
                switched.append((candidate, _switch(text, value)))
            elif candidate in PARAMETERS or candidate in parameters.ALIASES or candidate in parameters.REFUSED:
                changed[parameters.canonical(candidate)] = _parameter(text, candidate, value)
            else:
                continue
            return
        raise migration_error("invalid-argument", f"-global {text}: there is no migration setting {name!r}")


def _switch(text: str, value: str) -> bool:
    state = parse_switch(value)
    if state is None:
        raise migration_error("invalid-argument", f"-global {text}: expected on or off")
    return state


def _parameter(text: str, name: str, value: str) -> Value:
    try:
        return parse_value(parameters.canonical(name), value)
    except MigrationError as error:
        raise migration_error(error.kind, f"-global {text}: {error.message}") from None
