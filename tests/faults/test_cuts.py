"""Cuts at chosen bytes of every wire: the machine has one owner, or can be recovered, and no byte of it is lost.

`make cuts` cuts at every byte; docs/explanation/cut-at-every-byte.md has what came of it.
"""

import pytest

from campaign.__main__ import campaign
from campaign.modes import MODES

QUICK = {"precopy": (60, 40), "postcopy": (30, 10), "tls": (120, 10)}
"""Steps in the control part, and offsets of the page part, of what `make test` has."""


def check(mode, certificates, *, step, pages, seed):
    record = campaign(mode, pages, seed, certificates / "good", step=step, quiet=True)
    assert not record["wrong"], record["wrong"][0]
    assert record["cuts"] > record["not_reached"]
    owners = {owner for by in record["outcomes"].values() for owner in by}
    assert owners & {"source", "recovered"}
    return owners


@pytest.mark.parametrize("mode", QUICK)
def test_some_cuts(mode, certificates):
    step, pages = QUICK[mode]
    owners = check(mode, certificates, step=step, pages=pages, seed=1)
    assert "source" in owners
    assert ("recovered" in owners) == MODES[mode].postcopy


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", MODES)
def test_many_cuts(mode, certificates):
    check(mode, certificates, step=3, pages=300, seed=2)
