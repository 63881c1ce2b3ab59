"""One line of the human monitor: its words, and what a command wants of them (spec/control-plane 7.4, 7.5).

A word ends at white space, or is a string in double quotes with escapes. What does not fit is told in QEMU's layout,
with the way to its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qmig_e2k.migration.machine import Machine

__all__ = ["Action", "Argument", "Leave", "Line", "LineError", "number", "plain", "switch", "text"]

_ESCAPES = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


class LineError(Exception):
    """A line that does not fit its command; its text comes without the command's name."""


class Leave(Exception):  # noqa: N818  no error
    """The program shall end: raised by `quit`.

    Attributes:
        answer: what the command is answered with before that.
    """

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer


class Line:
    """What is left of a line."""

    def __init__(self, line: str) -> None:
        self._rest = line.lstrip()

    @property
    def ended(self) -> bool:
        """True if nothing is left."""
        return not self._rest

    def word(self) -> str | None:
        """The next word; None if there is none, or it is a string without an end."""
        if self._rest.startswith('"'):
            return self._quoted()
        word, _, rest = self._rest.replace("\t", " ").partition(" ")
        self._rest = rest.lstrip()
        return word or None

    def flag(self) -> str | None:
        """The letter of an option that comes next."""
        if not self._rest.startswith("-") or len(self._rest) < 2:
            return None
        letter, self._rest = self._rest[1], self._rest[2:].lstrip()
        return letter

    def _quoted(self) -> str | None:
        made: list[str] = []
        characters = iter(self._rest[1:])
        used = 1
        for character in characters:
            used += 1
            if character == '"':
                self._rest = self._rest[used:].lstrip()
                return "".join(made)
            if character == "\\":
                used += 1
                character = _ESCAPES.get(next(characters, ""), "")  # noqa: PLW2901  what the escape stands for
                if not character:
                    return None
            made.append(character)
        return None


def text(line: Line) -> str:
    """Reads a string."""
    word = line.word()
    if word is None:
        raise LineError("string expected")
    return word


def switch(line: Line) -> bool:
    """Reads `on` or `off`."""
    word = line.word()
    if word not in ("on", "off"):
        raise LineError("Expected 'on' or 'off'")
    return word == "on"


def number(line: Line) -> int:
    """Reads an integer, decimal or with its prefix."""
    word = line.word()
    if word is None:
        raise LineError("unexpected end of expression")
    try:
        return int(word, 0)
    except ValueError:
        wrong = word[:1] or '"'  # of an empty string there are only the quotes
        raise LineError(f"invalid char '{wrong}' in expression") from None


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command.

    Attributes:
        name: as help shows it, and the key of its value.
        read: takes it from the line, or raises LineError.
        optional: may be absent, together with all that follow; its value is then None.
    """

    name: str
    read: Callable[[Line], Any] = text
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """A command, or a page of `info`.

    Attributes:
        run: does it; gets the machine and the values by name, those of options as booleans by letter. Returns lines to
            print; a MigrationError becomes a line.
        text: what help says of it.
        arguments: what follows its name.
        options: letters that may stand before the arguments, each once.
        short: another name.
    """

    run: Callable[[Machine, Mapping[str, Any]], list[str] | None]
    text: str
    arguments: tuple[Argument, ...] = ()
    options: str = ""
    short: str | None = None

    def names(self, name: str) -> str:
        """Its names as help and errors show them."""
        return name if self.short is None else f"{name}|{self.short}"

    def usage(self) -> str:
        """Its options and arguments as help shows them."""
        words = [f"[-{letter}]" for letter in self.options]
        words += [f"[{each.name}]" if each.optional else each.name for each in self.arguments]
        return " ".join(words)

    def values(self, line: Line) -> dict[str, Any]:
        """Takes everything from `line`; raises LineError if it does not fit."""
        values: dict[str, Any] = dict.fromkeys(self.options, False)
        while self.options and (letter := line.flag()) is not None:
            if values.get(letter, True):  # unknown, or given already
                raise LineError(f"unsupported option -{letter}")
            values[letter] = True
        for argument in self.arguments:
            values[argument.name] = None if argument.optional and line.ended else argument.read(line)
        if not line.ended:
            raise LineError("extraneous characters at the end of line")
        return values

    def execute(self, machine: Machine, line: Line, name: str, help_words: str) -> list[str]:
        """Runs it; `name` and `help_words` are for the words about a line that does not fit."""
        try:
            values = self.values(line)
        except LineError as error:
            words = str(error)
            if not words.startswith(("Expected", "invalid char", "unexpected")):
                words = f"{self.names(name)}: {words}"
            return [words, f'Try "help {help_words}" for more information']
        return self.run(machine, values) or []


def plain(call: Callable[[Machine], object]) -> Callable[[Machine, Mapping[str, Any]], list[str] | None]:
    """The `run` of an action without arguments: `call` returns lines to print, or anything else for none."""

    def run(machine: Machine, _values: Mapping[str, Any]) -> list[str] | None:
        answer = call(machine)
        return answer if isinstance(answer, list) else None

    return run
