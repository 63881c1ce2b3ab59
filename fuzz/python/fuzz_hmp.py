"""Lines of the human monitor, which Python takes apart: `python fuzz/python/run.py hmp`.

Input: text, one command a line.

Asserted: an answer for every line, in lines that end with CR LF; no exception, whatever the words and numbers are. All
settings may change on the way, and can still be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitored import line, machine

from qmig_e2k.monitor.hmp_commands import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = 8
"""Lines of one input that are read."""
VM = machine()


def check(data: bytes) -> None:
    """Run the lines."""
    for text in data.decode("utf-8", "replace").split("\n")[:LINES]:
        answer = line(VM, text)
        assert not answer or answer.endswith("\r\n"), answer
    assert line(VM, "info migrate_parameters")
    assert line(VM, "info migrate_capabilities")


def seeds() -> Iterator[bytes]:
    """Every command with words that may fit it."""
    for name, action in ACTIONS.items():
        words = {"parameter": "downtime-limit", "value": "7", "capability": "xbzrle", "state": "on"}
        rest = " ".join(words.get(argument.name, '"a word"') for argument in action.arguments)
        yield f"{name} {rest}\nhelp {name}".encode()
    for name in ("status", "migrate", "migrate_capabilities", "registers", "mtree", "snapshots", "version"):
        yield f"info {name}".encode()
    yield rb'migrate_set_parameter tls-hostname "a \"b\" \n\\c"'


def close() -> None:
    """End the machine."""
    VM.close()
