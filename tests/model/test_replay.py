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
SHUT, PONG = 1, 2
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
    """Where the model's messages begin, in a migration of a guest that rests, and so is the same each time."""
    run = Run(MODES[kind], None, still=True)()
    assert not run.wrong, run.wrong
    stream, back = run.streams["forward", 0], run.streams["back", 0]
    pongs = [at for word, at in words_back(back) if word == PONG]
    shut = next(at for word, at in words_back(back) if word == SHUT)
    if kind == "precopy":
        fence = stream.index(FENCE, stream.index(FIRST_DEVICE))
        found = {"state": stream.index(FIRST_DEVICE), "ping": fence, "eof": fence + FENCE_LENGTH}
        found["pong"] = pongs[-1]
    else:
        end = package_end(stream)
        package = stream.index(PACKAGE)
        # the PING stands before the package here, and is answered when all before it is done
        found = {"ping": package - FENCE_LENGTH, "package": package, "run": end - RUN_LENGTH}
        found |= {"page": end + FENCE_LENGTH, "pong": pongs[1]}
    return found | {"shut 0": shut}


def check(kind, message):
    way = "back" if message in {"pong", "shut 0"} else "forward"
    known = ends_after_cut(Protocol(kind), message, way)
    if message == "end":  # pages come in any order
        fault = Fault("cut", -len(RAM_END), way, 0, RAM_END)
    else:
        fault = Fault("cut", places(kind)[message], way, 0)
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
