"""The model guest through Python: determinism, moves, and what verify notices."""

import numpy as np
import pytest

from qmig_e2k._core import Block, MigrationError, ModelGuest
from support import wait_until

SIZE = 1 << 20


def run(guest: ModelGuest, steps: int = 1000) -> None:
    wanted = guest.steps() + steps
    guest.start()
    wait_until(lambda: guest.steps() >= wanted, what=f"{steps} steps")
    guest.stop()


def test_runs_stops_and_verifies():
    guest = ModelGuest(Block("ram", SIZE), "random,threads=2,wss=512K", seed=2**64 - 1, threads=3)
    assert (guest.threads, guest.running, guest.steps()) == (3, False, 0)
    guest.start()
    assert guest.running
    guest.stop()
    run(guest)
    assert guest.verify() == (guest.steps(), True, None)
    assert guest.registers(2) == [0] * guest.REGISTERS


def test_goes_on_after_registers_and_ram_have_moved():
    here, there = Block("ram", SIZE), Block("ram", SIZE, backing="memfd")
    source = ModelGuest(here, "zipf,read=0.3", seed=5, threads=2)
    run(source)
    there.write(0, here.read(0, SIZE))
    destination = ModelGuest(there, "idle", threads=2)
    for vcpu in range(source.threads):
        destination.set_registers(vcpu, source.registers(vcpu))
    run(destination)
    assert destination.verify() == (destination.steps(), True, None)
    assert destination.steps() > source.steps()


def test_one_flipped_byte_through_numpy_is_found():
    block = Block("ram", SIZE)
    guest = ModelGuest(block, "seq,wss=64K")
    run(guest)
    np.frombuffer(block, np.uint8)[777_777] ^= 0x80
    assert guest.verify() == (guest.steps(), False, 777_777)


def test_a_lost_write_is_found():
    block = Block("ram", SIZE)
    guest = ModelGuest(block, "random,rate=2000")
    run(guest, 20)
    before = np.frombuffer(block, np.uint8).copy()
    run(guest, 20)
    changed = int(np.flatnonzero(before != np.frombuffer(block, np.uint8))[0]) // 8 * 8
    block.write(changed, before[changed : changed + 8])
    steps, equal, first = guest.verify()
    assert (steps, equal) == (guest.steps(), False)
    assert first is not None
    assert first // 8 * 8 == changed


@pytest.mark.parametrize(
    ("spec", "reason"),
    [("walk", "unknown"), ("seq,wss=2M", "does not fit"), ("seq,threads=9", "1 vCPUs"), ("seq,read=2", "from 0 to 1")],
)
def test_a_wrong_spec_says_what_is_wrong(spec, reason):
    with pytest.raises(ValueError, match=reason):
        ModelGuest(Block("ram", SIZE), spec)


def test_registers_of_something_else_are_refused():
    guest = ModelGuest(Block("ram", SIZE), "random")
    with pytest.raises(ValueError, match="16 registers, not 3"):
        guest.set_registers(0, [1, 2, 3])
    with pytest.raises(ValueError, match="no model guest's state"):
        guest.set_registers(0, range(16))
    with pytest.raises(ValueError, match="vCPU 1 does not exist"):
        guest.registers(1)


def test_state_is_out_of_reach_while_it_runs():
    guest = ModelGuest(Block("ram", SIZE), "random,rate=10")
    guest.start()
    for call in (guest.verify, lambda: guest.registers(0), lambda: guest.set_registers(0, [0] * 16)):
        with pytest.raises(MigrationError) as caught:
            call()
        assert caught.value.kind == "invalid-state"
    guest.stop()


def test_throttle_slows_and_ends():
    guest = ModelGuest(Block("ram", SIZE), "random")
    guest.throttle(99)
    run(guest, 100)
    guest.throttle(0)
    run(guest, 10_000)
    assert guest.verify()[1]
