"""A process that sees the faults of user code only, as without root: what postcopy cannot do there is said."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent("""
    import ctypes, logging, os, sys
    sys.path[:0] = %r
    from qmig_e2k import MigrationError, RamBlock, Vm, faults
    from qmig_e2k._core import probe
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # its own files in /proc stay its own

    ok, detail, remedy = probe()["kernel-faults"]
    if ok:
        print("no limits")
        sys.exit()
    logging.basicConfig(stream=sys.stderr, format="%%(levelname)s %%(message)s")
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20)
        assert not any("postcopy" in note for note in vm.notes())
        vm.set_capabilities(postcopy_ram=True)
        (caution,) = (note for note in vm.notes() if "postcopy" in note)
        assert remedy in caution and "recv_into" in caution, caution
        vm.incoming("tcp:127.0.0.1:0")
        vm.set_capabilities(postcopy_ram=False)
        vm.set_capabilities(postcopy_ram=True)
    block = RamBlock("late", 1 << 20)
    with faults.arm(block, bytes(1 << 20)):
        try:
            block.prefault(0, 4096)
        except MigrationError as error:
            assert error.kind == "not-permitted" and remedy in str(error), error
        else:
            sys.exit("prefault reached a missing page")
    print("said")
""")


def test_what_postcopy_cannot_do_without_privilege_is_said():
    if os.geteuid() != 0:
        pytest.skip("only root can give its privileges up")
    command = [sys.executable, "-c", PROGRAM % sys.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.stdout.strip() == "no limits":
        pytest.skip("this host lets every process wait in the kernel, too (vm.unprivileged_userfaultfd=1)")
    assert (done.stdout.strip(), done.returncode) == ("said", 0), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING")
    assert "EFAULT" in line
    assert "sysctl vm.unprivileged_userfaultfd=1" in line
