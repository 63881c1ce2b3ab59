"""What the core has to say comes out of Python's logging."""

import logging
import socket
import subprocess
import sys
import textwrap

from qmig_e2k import Vm
from support import wait_until


def test_messages_of_the_core_are_logged(caplog):
    """A surplus connection is turned away by a thread of the core, which says so."""
    with Vm("none") as vm, caplog.at_level(logging.INFO, "qmig_e2k.core"):
        vm.add_ram("ram", 1 << 20)
        arrival = vm.incoming("tcp:127.0.0.1:0")
        assert arrival is not None
        address = ("127.0.0.1", int(arrival.addresses[0]["port"]))
        with socket.create_connection(address), socket.create_connection(address) as second:
            assert second.recv(1) == b""

            def said():
                return [record for record in caplog.records if "a further connection was closed" in record.getMessage()]

            wait_until(said, what="a message")
        arrival.cancel()
    (record,) = said()
    assert (record.name, record.levelno) == ("qmig_e2k.core.channel.listen", logging.WARNING)


PROGRAM = textwrap.dedent("""
    import logging
    from qmig_e2k import Vm
    logging.basicConfig()
    vm = Vm("none")
""")


def test_the_end_of_a_program_does_not_wait_for_messages():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")
