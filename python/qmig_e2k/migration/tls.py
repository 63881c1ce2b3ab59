"""What the connections of a machine's migrations are secured with: the parameters, resolved to objects, for the core.

The core keeps what it was told last, and reads it when a migration begins, when a destination begins to listen, and for
each recovery, which it answers alone. So objects are looked up at the first two, and, while a migration is under way,
with every change (spec/control-plane 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from qmig_e2k._core import TlsAuthz
from qmig_e2k.errors import migration_error
from qmig_e2k.migration.blockers import POSTCOPY, RUNNING
from qmig_e2k.migration.objects import make
from qmig_e2k.migration.parameters import NOBODY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmig_e2k._core import TlsCreds
    from qmig_e2k.migration.machine import Machine
    from qmig_e2k.migration.parameters import Value

__all__ = ["add_object", "del_object", "prepare", "resolve", "secure"]

_NAMES = ("tls-creds", "tls-hostname", "tls-authz")

_Endpoint = Literal["client", "server"]
_SIDES = {"client": "source", "server": "destination"}


def resolve(
    machine: Machine, endpoint: _Endpoint, values: Mapping[str, Value]
) -> tuple[TlsCreds | None, str, TlsAuthz | None]:
    """What the core is to be told: credentials (None: no TLS), the host they are for, and who may come in.

    Args:
        machine: whose objects count.
        endpoint: `client` for a source, `server` for a destination.
        values: all parameters.

    Raises:
        MigrationError: `invalid-argument`: no such object, or one that is not for this.
    """
    name, hostname, authz = (str(values[name]) for name in _NAMES)
    if not name:
        return None, "", None
    creds = machine.objects.creds(name)
    if creds.endpoint != endpoint:
        need = f"a {_SIDES[endpoint]} needs one with {endpoint}"
        raise migration_error("invalid-argument", f"tls-creds: object {name!r} has endpoint {creds.endpoint}; {need}")
    if endpoint == "client":  # whom a source believes is a matter of the host name
        return creds, hostname, None
    if values["tls-authz"] is NOBODY:
        return creds, "", TlsAuthz([], "deny")
    return creds, "", machine.objects.authz(authz) if authz else None


def secure(machine: Machine, endpoint: _Endpoint) -> None:
    """Tell the core what this side's next connections are secured with. Raises as `resolve`."""
    machine.control.set_tls(*resolve(machine, endpoint, machine.settings.parameters.values()))


def prepare(machine: Machine, values: Mapping[str, Value]) -> None:
    """Before `values` become the parameters: a migration that is under way uses them when it is recovered.

    Raises:
        MigrationError: as `resolve`; `invalid-state` if a destination listens already with the former ones.
    """
    former = machine.settings.parameters
    changed = [
        name for name in _NAMES if (values[name], values[name] is NOBODY) != (former[name], former[name] is NOBODY)
    ]
    if not changed:
        return
    if machine.control.outgoing_status in RUNNING:
        machine.control.set_tls(*resolve(machine, "client", values))
    elif machine.control.incoming_status in POSTCOPY:
        machine.control.set_tls(*resolve(machine, "server", values))
    elif machine.listens:
        text = f"parameter {changed[0]!r} can only be set before the destination listens; see `-incoming defer`"
        raise migration_error("invalid-state", text)


def add_object(machine: Machine, kind: str, name: str, properties: Mapping[str, object]) -> None:
    """Make an object, whose files are read now. Raises as `objects.make` and `Objects.check_id`."""
    machine.objects.check_id(name)
    made = make(kind, properties)  # not under the lock: a file may be far away
    with machine.settings_lock:
        machine.objects.add(name, made)


def del_object(machine: Machine, name: str) -> None:
    """Forget an object.

    Raises:
        MigrationError: `invalid-argument` if there is none of that id; `invalid-state` if it is in use.
    """
    with machine.settings_lock:
        values = machine.settings.parameters
        busy = machine.control.outgoing_status in RUNNING or machine.listens
        if busy and name in machine.objects and name in (values["tls-creds"], values["tls-authz"]):
            text = f"object {name!r} is in use by a migration; name another one in its place first"
            raise migration_error("invalid-state", text)
        machine.objects.remove(name)
