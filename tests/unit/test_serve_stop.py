"""How `serve` ends: its guest's threads first, unless they wait for a page that will never come."""

import logging
import os
from types import SimpleNamespace

import pytest

from qmig_e2k.serve import _stop


class Ended(BaseException):
    """What os._exit is here."""


@pytest.fixture
def parts(monkeypatch):
    """What was done, and what it is done to."""
    done = []

    def ended(status):
        done.append(f"exit {status}")
        raise Ended

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(logging, "shutdown", lambda: done.append("log written"))
    machine = SimpleNamespace(stuck=0)
    guest = SimpleNamespace(stop=lambda: done.append("guest stopped"))
    server = SimpleNamespace(close=lambda: done.append("server closed"))
    return done, machine, (SimpleNamespace(machine=machine), guest, server)


def test_the_guest_stops(parts):
    done, _, arguments = parts
    _stop(*arguments)
    assert done == ["guest stopped"]


def test_a_guest_that_cannot_stop_ends_with_the_process(parts):
    done, machine, arguments = parts
    machine.stuck = 2
    with pytest.raises(Ended):
        _stop(*arguments)
    assert done == ["server closed", "log written", "exit 0"]
