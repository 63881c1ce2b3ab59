"""The destination of a postcopy has no memory for a page that comes.

Both sides are paused, with the reason at the destination; who waits for a page finds no zeros; and once there is memory
a recovery goes on where it stopped.
"""

import threading

import pytest

from qmig_e2k.monitor.client import QmpClient
from support import assert_same_memory, mixed_ram

SIZE = 8 << 20
ROOM = 2 << 20
SLOW = 256 << 10
"""Bytes per second before the switch: precopy does not fill the little room that there is."""


@pytest.mark.parametrize("preempt", [False, True])
def test_pause_and_recover(serve, room, tmp_path, preempt):
    content = mixed_ram(SIZE)
    (tmp_path / "image").write_bytes(content)
    source = serve("-m", "8M", ram=tmp_path / "image")
    there = serve("-m", "8M", "--mem-path", str(tmp_path / "small" / "ram"), incoming="defer")
    for side in (source, there):
        side.set_capabilities(events=True, postcopy_ram=True, postcopy_preempt=preempt)

    def reached(status):
        for side in (source, there):
            side.qmp.wait_event("MIGRATION", 60, status=status)

    source.command("migrate-set-parameters", max_bandwidth=SLOW)
    source.command("migrate", uri=there.listen())
    source.command("migrate-start-postcopy")
    reached("postcopy-paused")
    saved = []

    def save():
        with QmpClient(f"unix:{there.folder}/qmp", deadline=60) as client:
            saved.append(client.execute("pmemsave", val=0, size=SIZE, filename=str(tmp_path / "dump")))

    saving = threading.Thread(target=save)
    saving.start()
    with QmpClient(f"unix:{there.folder}/qmp", oob=True) as urgent:  # the other clients' commands wait behind `save`
        for size in (ROOM, 2 * SIZE):
            assert "no memory for page" in urgent.execute_oob("query-migrate")["error-desc"]
            assert not saved, "who waits for a page finds no zeros"
            assert room(size)
            uri = f"unix:{tmp_path}/{size}"
            urgent.execute_oob("migrate-recover", uri=uri)
            source.command("migrate", uri=uri, resume=True)
            reached("postcopy-paused" if size == ROOM else "completed")
    saving.join(30)
    assert saved == [{}]
    assert_same_memory((tmp_path / "dump").read_bytes(), content)
