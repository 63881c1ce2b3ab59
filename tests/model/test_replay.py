"""The model against real machines: a wire is cut before one message, and the end is one that the model knows."""

from functools import cache

import pytest

from campaign.cut import Run
from campaign.modes import FENCE, FENCE_LENGTH, FIRST_DEVICE, MODES, PACKAGE, RAM_END, package_end
from model.explore import ends_after_cut
from model.mapping import OWNER
from model.protocol import Protocol
from qmig_e2k.testing import Fault

RUN_LENGTH = 5
PONG = 2
LAST_WORD = b"\x00\x01\x00\x04"
"""Type and length of SHUT."""
HEADER = 4
"""Bytes before the payload on the way back: type and length."""


def words_back(stream):
    """Type and offset of every message of a way back."""
    at = 0
    while at + HEADER <= len(stream):
        yield int.from_bytes(stream[at : at + 2]), at
        at += HEADER + int.from_bytes(stream[at + 2 : at + HEADER])


@cache
def places(kind):
    """The fault that cuts just before each of the model's messages, counted from what comes once in a stream."""
    run = Run(MODES[kind], None, still=True)()
    assert not run.wrong, run.wrong
    stream, back = run.streams["forward", 0], run.streams["back", 0]
    pongs = [at for word, at in words_back(back) if word == PONG]

    def behind(mark, at):
        return Fault("cut", at - stream.index(mark) - len(mark), since=mark, link=0)

    if kind == "precopy":
        first = stream.index(FIRST_DEVICE)
        fence = stream.index(FENCE, first)
        found = {
            "state": behind(FIRST_DEVICE, first),
            "ping": behind(FIRST_DEVICE, fence),
            "eof": behind(FIRST_DEVICE, fence + FENCE_LENGTH),
            "pong": Fault("cut", pongs[-1], "back", 0),
        }
    else:
        package, end = stream.index(PACKAGE), package_end(stream)
        # the PING stands before the package here, and is answered when all before it is done
        found = {
            "ping": behind(PACKAGE, package - FENCE_LENGTH),
            "package": behind(PACKAGE, package),
            "run": behind(PACKAGE, end - RUN_LENGTH),
            "page": behind(PACKAGE, end + FENCE_LENGTH),
            "end": Fault("cut", -len(RAM_END), since=RAM_END, link=0),
            "pong": Fault("cut", pongs[1], "back", 0),
        }
    return found | {"shut 0": Fault("cut", -len(LAST_WORD), "back", 0, LAST_WORD)}


def check(kind, message):
    fault = places(kind)[message]
    known = ends_after_cut(Protocol(kind), message, fault.way)
    outcome = Run(MODES[kind], fault, still=True)()
    assert not outcome.wrong, outcome.wrong
    assert outcome.reached
    assert OWNER[outcome.owner] & known, f"the machine's owner is {outcome.owner}, which the model does not know"


@pytest.mark.parametrize(("kind", "message"), [("precopy", "eof"), ("precopy", "shut 0"), ("postcopy", "run")])
def test_around_the_commit(kind, message):
    check(kind, message)


@pytest.mark.long
@pytest.mark.parametrize("message", ["state", "ping", "pong"])
def test_precopy(message):
    check("precopy", message)


@pytest.mark.long
@pytest.mark.parametrize("message", ["ping", "package", "pong", "page", "end", "shut 0"])
def test_postcopy(message):
    check("postcopy", message)
