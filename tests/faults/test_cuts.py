"""Cuts at chosen bytes of every wire: the machine has one owner, or can be recovered, and no byte of it is lost.

`make cuts` cuts at every byte; docs/explanation/cut-at-every-byte.md has what came of it.
"""

import pytest

from campaign.__main__ import campaign
from campaign.machine import sides
from campaign.modes import MODES, TRICKLE
from support import wait_until

QUICK = {"precopy": (97, 20), "postcopy": (61, 8), "tls": (241, 8)}
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


def test_a_recovery_that_begins_while_the_machine_is_being_started():
    """Found by the campaign: the address for the recovery was forgotten when the start was over."""
    with sides() as (source, destination, _, _):
        for side in (source, destination):
            side.vm.set_capabilities(postcopy_ram=True)
        source.vm.set_parameters(**TRICKLE)
        source.vm.start()
        arrival = destination.vm.incoming("tcp:127.0.0.1:0")
        start = destination.emulator.start

        def start_and_recover():
            start()
            migration.pause()
            wait_until(lambda: migration.status == arrival.status == "postcopy-paused", what="the pause")
            arrival.recover("tcp:127.0.0.1:0")

        destination.emulator.start = start_and_recover
        migration = source.vm.migrate(f"tcp:127.0.0.1:{arrival.addresses[0]['port']}")
        migration.start_postcopy()
        wait_until(lambda: "start" in arrival.info().get("x-downtime", {}), what="the end of the start")
        assert arrival.info()["socket-address"] == arrival.addresses
        source.vm.set_parameters(max_postcopy_bandwidth=0)
        migration.recover(f"tcp:127.0.0.1:{arrival.addresses[0]['port']}")
        for handle in (migration, arrival):
            handle.wait(30)
