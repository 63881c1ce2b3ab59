"""Objects that a migration needs by their ids, made by `object-add` or `-object`: credentials, and who may come in.

Their types, properties and defaults are QEMU 7.2's (spec/control-plane 10.1). A credential's files are read when it is
made; a change of them takes another object.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeVar, cast

from qmig_e2k._core import TlsAuthz, TlsCreds
from qmig_e2k.errors import MigrationError, migration_error
from qmig_e2k.migration import keyval

__all__ = ["Object", "Objects", "make", "parse"]

Object = TlsCreds | TlsAuthz

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_T = TypeVar("_T")
_USE_X509 = "use certificates (tls-creds-x509)"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "tls-creds-psk": f"pre-shared keys are not taken; {_USE_X509}",
        "tls-creds-anon": f"credentials that prove nothing are not taken; {_USE_X509}",
        "authz-listfile": "lists in files are not taken; give the rules to an authz-list",
        "authz-pam": "PAM is not asked; give the names to an authz-list",
    }
)
"""Objects that QEMU takes for a migration, and why this machine does not."""


class Objects:
    """The objects of one machine by id. Not locked: the machine's owner serialises changes."""

    def __init__(self) -> None:
        self._made: dict[str, Object] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def check_id(self, name: str) -> None:
        """Raises MigrationError (`invalid-argument`) if `name` is no id, or is taken."""
        if not _ID.fullmatch(name):
            text = f"{name!r} is no id: a letter, then letters, digits, '-', '.' and '_'"
            raise migration_error("invalid-argument", text)
        if name in self._made:
            raise migration_error("invalid-argument", f"there is an object {name!r} already; remove it first")

    def add(self, name: str, made: Object) -> None:
        """Keep `made` as `name`. Raises as `check_id`."""
        self.check_id(name)
        self._made[name] = made

    def remove(self, name: str) -> None:
        """Forget an object. Raises MigrationError (`invalid-argument`) if there is none of that id."""
        if self._made.pop(name, None) is None:
            raise migration_error("invalid-argument", f"object {name!r} not found")

    def creds(self, name: str) -> TlsCreds:
        """The credentials `name`. Raises MigrationError (`invalid-argument`) if there are none."""
        made = self._find(name, "tls-creds", "tls-creds-x509")
        if not isinstance(made, TlsCreds):
            raise migration_error("invalid-argument", f"tls-creds: object {name!r} is no TLS credentials")
        return made

    def authz(self, name: str) -> TlsAuthz:
        """The authorization `name`. Raises MigrationError (`invalid-argument`) if there is none."""
        made = self._find(name, "tls-authz", "authz-list")
        if not isinstance(made, TlsAuthz):
            raise migration_error("invalid-argument", f"tls-authz: object {name!r} is no authorization")
        return made

    def _find(self, name: str, parameter: str, kind: str) -> Object:
        if name not in self._made:
            text = f"{parameter}: there is no object {name!r}; make it first, by object-add of a {kind}"
            raise migration_error("invalid-argument", text)
        return self._made[name]


def make(kind: str, properties: Mapping[str, object], *, text: bool = False) -> Object:
    """A new object.

    Args:
        kind: `tls-creds-x509`, `authz-simple` or `authz-list`.
        properties: by QEMU's names, without `qom-type` and `id`.
        text: the values come from a command line: switches are `on` and `off`.

    Raises:
        MigrationError: `unsupported` for another type, and a property that cannot be had; `invalid-argument` for wrong
            properties; `tls` for files that are missing, unreadable or of no use, with their names.
    """
    if kind not in _MAKERS:
        known = ", ".join(_MAKERS)
        reason = REFUSED.get(kind, f"there are {known}")
        raise migration_error("unsupported", f"object-add of {kind!r} is not supported: {reason}")
    given = _Properties(kind, properties, text=text)
    try:
        return _MAKERS[kind](given)
    except ValueError as error:
        raise migration_error("invalid-argument", f"{kind}: {error}") from None


def parse(text: str) -> tuple[str, Object]:
    """The id and the object of an `-object` option: `TYPE,id=ID[,NAME=VALUE...]`, or JSON.

    Raises:
        MigrationError: as `make`; `invalid-argument` if it cannot be parsed.
    """
    as_json = text.startswith("{")
    try:
        values = json.loads(text) if as_json else keyval.parse(text, "qom-type")
    except ValueError as error:
        raise migration_error("invalid-argument", f"-object {text}: {error}") from None
    head = [values.pop(name, None) for name in ("qom-type", "id")]
    for name, value in zip(("qom-type", "id"), head, strict=True):
        if not isinstance(value, str):
            raise migration_error("invalid-argument", f"-object {text}: parameter '{name}' is missing")
    kind, name = map(str, head)
    try:
        return name, make(kind, values, text=not as_json)
    except MigrationError as error:
        raise migration_error(error.kind, f"-object {name}: {error.message}") from None


class _Properties:
    """What an object is made of; each is taken once, and what is left then is unknown."""

    def __init__(self, kind: str, values: Mapping[str, object], *, text: bool) -> None:
        self._kind = kind
        self._values = dict(values)
        self._text = text

    def string(self, name: str) -> str | None:
        return self._take(name, str, "a string")

    def required(self, name: str) -> str:
        value = self.string(name)
        if value is None:
            raise self._wrong(f"parameter '{name}' is missing")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of `choices`, the first if it is not given."""
        value = self.string(name)
        if value is None:
            return choices[0]
        if value not in choices:
            raise self._wrong(f"parameter '{name}' does not accept value '{value}': it is {' or '.join(choices)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        if self._text and name in self._values:
            return self.choice(name, ("on", "off")) == "on"
        value = self._take(name, bool, "a boolean")
        return default if value is None else value

    def structs(self, name: str) -> list["_Properties"]:
        """A list of objects with properties of their own."""
        value = self._take(name, list, "a list") or []
        parts = []
        for place, item in enumerate(value):
            if not isinstance(item, dict):
                raise self._wrong(f"parameter '{name}[{place}]' expects an object")
            parts.append(_Properties(f"{self._kind}: {name}[{place}]", item, text=self._text))
        return parts

    def refuse(self, name: str, reason: str) -> None:
        if name in self._values:
            raise migration_error("unsupported", f"{self._kind}: '{name}' is not supported: {reason}")

    def done(self) -> None:
        for name in self._values:
            raise self._wrong(f"parameter '{name}' is unexpected")

    def _take(self, name: str, kind: type[_T], wants: str) -> _T | None:
        value = self._values.pop(name, None)
        if value is None or isinstance(value, kind):
            return value
        raise self._wrong(f"parameter '{name}' expects {wants}")

    def _wrong(self, text: str) -> MigrationError:
        return migration_error("invalid-argument", f"{self._kind}: {text}")


def _x509(given: _Properties) -> Object:
    given.refuse(
        "priority", "it is a list of GnuTLS'; without one, TLS 1.2 and 1.3 are spoken, with their best ciphers only"
    )
    given.refuse("passwordid", "store the key without a password, readable by this user only")
    endpoint = cast("Literal['client', 'server']", given.choice("endpoint", ("client", "server")))
    directory = given.required("dir")
    verify = given.flag("verify-peer", default=True)
    sane = given.flag("sanity-check", default=True)
    given.done()
    return TlsCreds(endpoint, directory, verify, sane)


def _simple(given: _Properties) -> Object:
    identity = given.required("identity")
    given.done()
    return TlsAuthz([(identity, "allow", "exact")], "deny")


def _list(given: _Properties) -> Object:
    policy = given.choice("policy", ("deny", "allow"))
    rules = []
    for rule in given.structs("rules"):
        rules.append((rule.required("match"), rule.required("policy"), rule.choice("format", ("exact", "glob"))))
        rule.done()
    given.done()
    return TlsAuthz(rules, policy)


_MAKERS: Mapping[str, Callable[[_Properties], Object]] = MappingProxyType(
    {"tls-creds-x509": _x509, "authz-simple": _simple, "authz-list": _list}
)
