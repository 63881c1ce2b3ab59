"""The peer itself: QEMU to QEMU works, so that a failing interop test means us and not the harness."""

import random


def test_ram_filled_from_a_file_moves_between_two_qemus(qemu, tmp_path):
    content = random.Random(7).randbytes(3 << 20)
    image = tmp_path / "ram"
    image.write_bytes(content)
    source = qemu(ram=image)
    destination = qemu(incoming=f"unix:{tmp_path}/channel")

    source.command("migrate", uri=f"unix:{tmp_path}/channel")
    source.wait_migration("completed")
    destination.wait_arrived()

    assert destination.memory(64 << 20) == content.ljust(64 << 20, b"\0")
