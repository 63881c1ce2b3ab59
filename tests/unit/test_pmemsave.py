"""`pmemsave` into what is no file: refused at once, for all other commands would wait."""

import os

import pytest

from qmig_e2k import Vm
from qmig_e2k.monitor.client import QmpClient, QmpError


@pytest.fixture
def qmp(tmp_path):
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20).write(0, b"content")
        vm.serve_qmp(f"unix:{tmp_path}/qmp")
        with QmpClient(f"unix:{tmp_path}/qmp") as client:
            yield client


def save(qmp, name):
    qmp.execute("pmemsave", val=0, size=1 << 20, filename=str(name))


def test_files(qmp, tmp_path):
    (tmp_path / "dump").write_bytes(bytes(2 << 20))
    save(qmp, tmp_path / "dump")
    assert (tmp_path / "dump").read_bytes() == b"content".ljust(1 << 20, b"\0")
    save(qmp, "/dev/null")


@pytest.mark.parametrize("read", [False, True])
def test_a_fifo(qmp, tmp_path, read):
    """Whether or not somebody has it open, who may never read."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK) if read else None
    try:
        with pytest.raises(QmpError, match="is no file"):
            save(qmp, tmp_path / "fifo")
    finally:
        if reader is not None:
            os.close(reader)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pmemsave", {"val": 0, "size": 1, "filename": "a\0b"}),
        ("migrate", {"uri": "file:a\0b"}),
        ("object-add", {"qom-type": "tls-creds-x509", "id": "tls0", "endpoint": "client", "dir": "a\0b"}),
        ("snapshot-delete", {"job-id": "a\0b", "tag": "x", "devices": []}),
    ],
)
def test_a_nul_in_a_name(qmp, command, arguments, caplog):
    with pytest.raises(QmpError, match=r"NUL|Invalid job ID"):
        qmp.execute(command, arguments)
    assert "Traceback" not in caplog.text


def test_a_directory(qmp, tmp_path):
    with pytest.raises(QmpError, match="Is a directory"):
        save(qmp, tmp_path)
