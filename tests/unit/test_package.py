"""The package's own face."""

import pickle
import subprocess
import sys

import pytest

import qmig_e2k
import qmig_e2k.errors


def test_every_public_name_is_there():
    for name in qmig_e2k.__all__:
        assert getattr(qmig_e2k, name)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = qmig_e2k.nothing_like_it


def test_importing_it_starts_no_threads_of_numpy():
    # A process that turns signals into `quit` masks them first; threads that exist by then would not have them masked.
    code = "import sys, qmig_e2k; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(qmig_e2k.errors.stream_error("bad-version", "too new", offset=8, path="cpu/0")))
    assert type(error) is qmig_e2k.StreamError
    assert (error.kind, error.offset, error.path) == ("bad-version", 8, "cpu/0")
