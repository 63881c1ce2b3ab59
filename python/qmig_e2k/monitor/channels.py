"""Where a migration goes, as QEMU 10.0 lets it be said: a list of `channels` with addresses in place of a URI.

There is one main channel, and its address stands for a URI: what one may be, so may the other (spec/control-plane 7.3).
"""

from __future__ import annotations

import ipaddress
import shlex
from typing import TYPE_CHECKING, Any

from qmig_e2k.monitor.schema import BOOL, STR, Array, CommandError, Enum, Int, Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CHANNELS", "uri"]

_PORT = Int(0, 65535)
_ADDRESS = Struct(
    {"transport": Enum(("socket", "exec", "rdma", "file"))},
    {
        "type": Enum(("inet", "unix", "vsock", "fd")),
        **dict.fromkeys(("host", "port", "path", "str", "cid", "filename"), STR),
        **dict.fromkeys(("numeric", "ipv4", "ipv6", "keep-alive", "mptcp", "abstract", "tight"), BOOL),
        "to": _PORT,
        "args": Array(STR),
        "offset": Int(0, 2**63 - 1),
    },
)

CHANNELS = Array(Struct({"channel-type": Enum(("main", "cpr")), "addr": _ADDRESS}))
"""The argument `channels` of `migrate` and `migrate-incoming`."""

_Address = dict[str, Any]


def uri(arguments: Mapping[str, Any]) -> str:
    """The URI that the arguments `uri` or `channels` of a command mean.

    Raises:
        CommandError: none or both of them, no or more than one main channel, or an address that cannot be had here.
    """
    given, channels = arguments.get("uri"), arguments.get("channels")
    if (given is None) == (channels is None):
        raise CommandError("either 'uri' or 'channels' must be given, and not both")
    if channels is None:
        return str(given)
    if any(channel["channel-type"] == "cpr" for channel in channels):
        raise CommandError("channel type 'cpr' is not supported: RAM is always sent; leave that channel out")
    if len(channels) != 1:
        raise CommandError(f"'channels' must have exactly one channel of type 'main', not {len(channels)}")
    address = dict(channels[0]["addr"])
    kind = address.pop("transport")
    if kind == "socket":
        kind = _take(address, "type", "socket")
    if kind not in _MAKERS:
        raise CommandError(f"transport '{kind}' is not supported; use a socket of type inet, unix or fd, exec or file")
    made = _MAKERS[kind](address)
    if address:
        raise CommandError(f"parameter 'channels[0].addr.{min(address)}' is unexpected with '{kind}'")
    return made


def _take(address: _Address, name: str, kind: str) -> Any:
    if name not in address:
        raise CommandError(f"parameter 'channels[0].addr.{name}' is missing, which '{kind}' needs")
    return address.pop(name)


def _refuse(address: _Address, *names: str) -> None:
    """Switches of which only `off` can be had."""
    for name in names:
        if address.pop(name, False):
            raise CommandError(f"'{name}' is not supported in an address; leave it out")


def _inet(address: _Address) -> str:
    host, port = _take(address, "host", "inet"), _take(address, "port", "inet")
    _refuse(address, "numeric", "mptcp")
    if ":" in host:
        try:
            host = f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            raise CommandError(f"'{host}' is no host name and no IPv6 address") from None
    if "," in host + port or ":" in port:
        raise CommandError("'host' and 'port' are a name or an address and a number, without options")
    made = [f"tcp:{host}:{port}"]
    if "to" in address:
        made.append(f"to={address.pop('to')}")
    switches = [name for name in ("ipv4", "ipv6", "keep-alive") if name in address]
    made += [f"{name}={'on' if address.pop(name) else 'off'}" for name in switches]
    return ",".join(made)


def _unix(address: _Address) -> str:
    _refuse(address, "abstract")
    address.pop("tight", None)  # of abstract ones only
    return f"unix:{_take(address, 'path', 'unix')}"


def _fd(address: _Address) -> str:
    return f"fd:{_take(address, 'str', 'fd')}"


def _exec(address: _Address) -> str:
    words = _take(address, "args", "exec")
    if not words:
        raise CommandError("parameter 'channels[0].addr.args' is empty: a command has at least its name")
    shell = len(words) == 3 and words[:2] == ["/bin/sh", "-c"]
    return f"exec:{words[2] if shell else 'exec ' + shlex.join(words)}"


def _file(address: _Address) -> str:
    return f"file:{_take(address, 'filename', 'file')},offset={_take(address, 'offset', 'file')}"


_MAKERS: Mapping[str, Callable[[_Address], str]] = {
    "inet": _inet,
    "unix": _unix,
    "fd": _fd,
    "exec": _exec,
    "file": _file,
}
