"""Streams that real QEMUs wrote load here; and what we write of the same machine is what they wrote.

Each golden stream belongs to one format profile, so the four together are every profile and both
machines that QEMU has.
"""

import hashlib
import json
import lzma
from collections import Counter
from functools import cache

import pytest

from elements import take_apart
from qmig_e2k import Vm
from qmig_e2k.e2k import build
from support import STREAMS

GOLDEN = [
    pytest.param("qemu29-none-plain", "none", "2.9", id="2.9"),
    pytest.param("qemu7-none-plain", "none", "7.2", id="7.2"),
    pytest.param("qemu10-none-plain", "none", "10.0", id="10.0"),
    pytest.param("e2k-plain", "e2k-qemu", "7.2", id="e2k"),
]


@cache
def golden(name):
    """The stream and what its JSON says of it."""
    facts = json.loads((STREAMS / f"{name}.json").read_text())
    return lzma.decompress((STREAMS / f"{name}.stream.xz").read_bytes()), facts


def assert_same_stream(written, wanted, *, clock=True):
    """All that is no page equal in order and to the byte, and the same page records, each as often."""
    ours, theirs = take_apart(written), take_apart(wanted)
    assert [element.name for element in ours.elements] == [element.name for element in theirs.elements]
    for found, expected in zip(ours.elements, theirs.elements, strict=True):
        if expected.name == "timer" and not clock:
            # header 19 bytes, then three numbers, of which the first and the last are time
            assert len(found.data) == len(expected.data) == 48
            assert found.data[:19] + found.data[27:35] + found.data[43:] == (
                expected.data[:19] + expected.data[27:35] + expected.data[43:]
            )
        else:
            assert found.data == expected.data, expected.name
    difference = Counter(ours.records)
    difference.subtract(Counter(theirs.records))
    assert not [record[:4] for record, count in difference.items() if count]


@pytest.mark.parametrize(("name", "machine", "format_"), GOLDEN)
def test_loads_and_is_written_again(serve, tmp_path, name, machine, format_):
    stream, facts = golden(name)
    (tmp_path / "in").write_bytes(stream)
    size = facts["ram_bytes"]
    peer = serve("-m", f"{size >> 20}M", "--format", format_, machine=machine, incoming=f"file:{tmp_path}/in")
    peer.wait_migration("completed")

    assert peer.run_state() == "prelaunch"
    memory = peer.memory(size)
    assert hashlib.sha256(memory[facts["ram_sha256_from"] :]).hexdigest() == facts["ram_sha256"]

    # nothing has run since, so even the clock stands where it stood
    peer.command("migrate", uri=f"file:{tmp_path}/out")
    peer.wait_migration("completed")
    assert_same_stream((tmp_path / "out").read_bytes(), stream)


@pytest.mark.parametrize(("name", "machine", "format_"), GOLDEN)
def test_a_new_machine_with_the_same_ram_writes_the_same(tmp_path, name, machine, format_):
    stream, facts = golden(name)
    theirs = take_apart(stream)
    hardware = build(machine, facts["ram_bytes"])
    with Vm(hardware, format=format_) as vm:
        for block in hardware.blocks:
            content = theirs.memory(block.name.encode())
            assert len(content) == block.size
            vm.add_ram(block.name, block.size).numpy()[:] = memoryview(content)
        vm.migrate(f"file:{tmp_path}/out").wait(20)
    assert_same_stream((tmp_path / "out").read_bytes(), stream, clock=False)
