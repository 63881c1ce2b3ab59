"""`--help`: complete, of a readable width, and with examples that are commands."""

import argparse
import re
import shlex

import pytest

from qmig_e2k import cli

PARSER = cli._parser()


def commands(parser, name=()):
    """Each command, with those below it."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, each in action.choices.items():
                yield from commands(each, (*name, word))


COMMANDS = dict(commands(PARSER))


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_the_help_of_a_command(name):
    parser = COMMANDS[name]
    assert all(len(line) <= 120 for line in parser.epilog.splitlines())
    for action in parser._actions:
        named = isinstance(action, argparse._SubParsersAction) or action.help
        assert named, f"{action.option_strings or action.dest} is not explained"
    for option in re.findall(
        r"(?<![-\w])--?[a-zA-Z][-\w]*", re.sub(r"(qemu-system|sysctl|jq|xz).*", "", parser.epilog)
    ):
        known = {word for each in COMMANDS.values() for action in each._actions for word in action.option_strings}
        assert option in known, f"{option} is no option of any command"


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_its_examples_are_commands(name):
    """One that is none ends argparse, and so the test, with exit status 2."""
    lines = re.findall(r"^ +(?:.* \| )?qmig-e2k (.*)$", COMMANDS[name].epilog, re.MULTILINE)
    lines = [line for line in lines if not line.startswith("COMMAND") and "--help" not in line]
    for line in lines:
        # up to what is said of it
        PARSER.parse_args(shlex.split(re.split(r"   +| \| ", line)[0]))
    assert lines or name in {("demo",), ("doctor",), ("bench",), ("lab", "sweep"), ("completion",)}
