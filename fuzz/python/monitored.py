"""A machine behind a monitor, for the targets `qmp` and `hmp`: commands that reach outside are checked, not done."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from qmig_e2k import Vm
from qmig_e2k.monitor import commands, hmp
from qmig_e2k.monitor.hmp_commands import ACTIONS
from qmig_e2k.monitor.hmp_line import Line, LineError
from qmig_e2k.monitor.schema import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTSIDE = frozenset(
    {
        "migrate",
        "migrate-incoming",
        "pmemsave",
        "snapshot-save",
        "snapshot-load",
        "snapshot-delete",
        "object-add",
        "calc-dirty-rate",
        "quit",
        # and of the human monitor
        "q",
        "migrate_incoming",
        "migrate_recover",
        "savevm",
        "loadvm",
        "delvm",
        "object_add",
        "calc_dirty_rate",
    }
)
"""Commands that touch files, start programs, open connections, take time, or end the process."""


class _Mistakes(logging.Handler):
    """Keeps what a command raised that is no refusal: its client only gets an error like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look for an exception."""
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])


_MISTAKES = _Mistakes()
commands.log.addHandler(_MISTAKES)


def raise_mistakes() -> None:
    """Raise the first exception in a command that is a mistake of ours, if there was one."""
    if _MISTAKES.found:
        error = _MISTAKES.found[0]
        _MISTAKES.found.clear()
        raise error


def machine() -> Vm:
    """A small machine that has run and stands still."""
    vm = Vm("e2k", name="fuzzed")
    vm.add_ram("e2k.ram", 1 << 20)
    return vm


def line(vm: Vm, text: str) -> str:
    """Run one line of the human monitor; of one that reaches outside only the words are taken apart."""
    name = Line(text).word()
    action = next((each for long, each in ACTIONS.items() if name in (long, each.short)), None)
    if name in OUTSIDE:
        rest = Line(text)
        rest.word()
        if action is not None:
            try:
                action.values(rest)
            except LineError as error:
                assert str(error)
        return ""
    return hmp.execute(vm.machine, text)


def command(vm: Vm, asked: Any) -> None:
    """Run what a client asked for, as the worker of a QMP server does, and answer it."""
    arguments = json.loads(asked.arguments)
    words = arguments.get("command-line") if isinstance(arguments, dict) else None
    if asked.name == "human-monitor-command" and isinstance(words, str) and Line(words).word() in OUTSIDE:
        line(vm, words)
        asked.reply('""')
    elif asked.name in OUTSIDE:
        _checked(asked, arguments)
    else:
        commands.execute(vm.machine, None, asked)


def _checked(asked: Any, arguments: Mapping[str, Any]) -> None:
    try:
        commands.COMMANDS[asked.name].arguments.check(arguments)
    except CommandError as error:
        asked.fail(str(error), error.error_class)
    else:
        asked.reply("{}")
