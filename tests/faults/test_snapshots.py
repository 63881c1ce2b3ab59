"""A process that dies while it saves, and a disk that is full: the snapshot from before is there and whole."""

import signal
import subprocess
import sys

import pytest

from qmig_e2k import MigrationError, Vm
from qmig_e2k.migration.snapshots import savevm
from qmig_e2k.testing import pair
from support import mixed_ram

SIZE = 4 << 20

SAVE = """
import os, signal, sys
from qmig_e2k import Vm
from qmig_e2k.savevm import SaveVmHandler

folder, moment = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Device(SaveVmHandler):
    dies = False
    def save(self, writer):
        if self.dies:
            die()
        writer.u8(1)
    def load(self, reader, version):
        reader.u8()

device = Device()
with Vm("none", snapshot_dir=folder) as vm:
    ram = vm.add_ram("ram", 1 << 20)
    vm.register(device, name="device")
    ram.numpy()[:] = 1
    vm.savevm("x")
    ram.numpy()[:] = 2
    device.dies = moment == "device"
    if moment == "rename":
        os.replace = os.rename = lambda *_, **__: die()
    elif moment == "directory":
        os.fsync = lambda fd: die()  # the core has its own for the file
    vm.savevm("x")
"""

LOAD = """
import sys
from qmig_e2k import Vm
from qmig_e2k.savevm import SaveVmHandler

class Device(SaveVmHandler):
    def save(self, writer):
        writer.u8(1)
    def load(self, reader, version):
        reader.u8()

with Vm("none", snapshot_dir=sys.argv[1]) as vm:
    ram = vm.add_ram("ram", 1 << 20)
    vm.register(Device(), name="device")
    vm.loadvm("x")
    content = set(ram.numpy().tolist())
    print(*content, *(snapshot.tag for snapshot in vm.snapshots()))
    vm.savevm("y")
"""


@pytest.mark.parametrize(("moment", "content"), [("device", 1), ("rename", 1), ("directory", 2)])
def test_a_process_that_is_killed_while_it_saves(tmp_path, moment, content):
    folder = tmp_path / "snapshots"
    saver = subprocess.run([sys.executable, "-c", SAVE, folder, moment], timeout=60, check=False)
    assert saver.returncode == -signal.SIGKILL
    drafts = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(drafts) == (0 if moment == "directory" else 1)
    loader = subprocess.run(
        [sys.executable, "-c", LOAD, folder], timeout=60, check=True, capture_output=True, text=True
    )
    assert loader.stdout.split() == [str(content), "x"]
    assert sorted(path.name for path in folder.iterdir()) == ["x.qmig", "y.qmig"], "and what the dead one left is gone"


def test_the_draft_of_a_living_one_stays(tmp_path):
    """Two machines that save into the same directory at the same time."""
    with Vm("none", snapshot_dir=tmp_path) as vm:
        vm.add_ram("ram", 1 << 20)
        with vm.machine.snapshots.draft("other") as draft:
            vm.savevm("x")
            assert len(list(tmp_path.iterdir())) == 2
            draft.keep()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other.qmig", "x.qmig"]
        assert [snapshot.tag for snapshot in vm.snapshots()] == ["x"], "nothing was written to the other"


def test_two_at_once_that_must_not_replace(tmp_path):
    """Whoever is later finds the name taken, though it was free when both began."""
    with Vm("none", snapshot_dir=tmp_path) as vm:
        vm.add_ram("ram", 1 << 20)
        with vm.machine.snapshots.draft("x", replace=False) as draft:
            vm.savevm("x")
            with pytest.raises(MigrationError, match="already exists"):
                draft.keep()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.qmig"]
        vm.loadvm("x")


def test_what_only_looks_like_a_draft_stays(tmp_path):
    (tmp_path / ".notes.draft").write_text("mine")
    with Vm("none", snapshot_dir=tmp_path) as vm:
        vm.add_ram("ram", 1 << 20)
        names = {savevm(vm.machine) for _ in range(3)}
        assert len(names) == 3, "each without a name is a new one"
    assert (tmp_path / ".notes.draft").read_text() == "mine"


def test_the_disk_is_full(room, tmp_path):
    with pair(size=SIZE, snapshot_dir=tmp_path / "small") as (here, there):
        here.vm.savevm("x")
        here.ram.write(0, mixed_ram(SIZE))
        memory = here.ram.read(0, SIZE)
        with pytest.raises(MigrationError, match=r"snapshot 'x' was not saved: .*No space left") as caught:
            here.vm.savevm("x")
        assert caught.value.kind == "io"
        assert "No space left" in here.vm.machine.control.query_migrate()
        assert here.ram.read(0, SIZE) == memory
        there.vm.loadvm("x")
        assert there.ram.read(0, SIZE) == bytes(SIZE)
        assert [path.name for path in (tmp_path / "small").iterdir()] == ["x.qmig"]

        assert room(3 * SIZE)
        here.vm.savevm("x")
        there.vm.loadvm("x")
        assert there.ram.read(0, SIZE) == memory
