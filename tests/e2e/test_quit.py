"""`quit` of a source whose machine runs elsewhere: it stays until its memory is there, as long as that gets on."""

import os

import pytest

from support import assert_same_memory, wait_until

SIZE = 24 << 20


@pytest.mark.long
def test_the_memory_is_delivered_first(serve, tmp_path):
    content = os.urandom(SIZE)
    (tmp_path / "ram").write_bytes(content)
    ram = ("--mem-path", str(tmp_path / "ram"))
    source, destination = serve("-m", "24M", *ram), serve("-m", "24M", incoming="defer")
    for peer in (source, destination):
        peer.set_capabilities(postcopy_ram=True)
    # Longer than an exit may otherwise take.
    source.command("migrate-set-parameters", max_bandwidth=1 << 20, max_postcopy_bandwidth=3 << 20)
    source.command("migrate", uri=destination.listen())
    source.wait_migration("active")
    source.command("migrate-start-postcopy")
    destination.wait_migration("postcopy-active")
    source.command("quit")
    destination.wait_migration("completed")
    assert source.process.wait(20) == 0
    wait_until(lambda: destination.run_state() != "inmigrate", what="arriving")
    assert_same_memory(destination.memory(SIZE), content)
