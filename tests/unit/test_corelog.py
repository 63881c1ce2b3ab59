"""What the core has to say comes out of Python's logging."""

import logging
import socket
import subprocess
import sys
import textwrap

from qmig_e2k import Vm
from support import wait_until


def speak():
    """A surplus connection is turned away by a thread of the core, which says so once."""
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20)
        arrival = vm.incoming("tcp:127.0.0.1:0")
        assert arrival is not None
        address = ("127.0.0.1", int(arrival.addresses[0]["port"]))
        with socket.create_connection(address):
            for _ in range(3):
                with socket.create_connection(address) as surplus:
                    assert surplus.recv(1) == b""
        arrival.cancel()


def test_messages_of_the_core_are_logged(caplog):
    """Whoever repeats it does not fill the log."""
    with caplog.at_level(logging.INFO, "qmig_e2k.core"):

        def said():
            return [record for record in caplog.records if "a further connection was closed" in record.getMessage()]

        speak()
        wait_until(lambda: len(said()) >= 2, what="messages")
    assert {(record.name, record.levelno) for record in said()} == {("qmig_e2k.core.channel.surplus", logging.WARNING)}
    assert len(said()) == 2
    assert said()[1].getMessage().endswith("(2 so far)")


def test_a_handler_that_raises_costs_its_message_only(capsys):
    """It is told once, on standard error."""
    records = []

    def judge(record):
        records.append(record)
        if len(records) <= 2:
            raise ValueError("no such message")
        return True

    logger = logging.getLogger("qmig_e2k.core.channel.surplus")
    logger.addFilter(judge)
    try:
        speak()
        speak()
        wait_until(lambda: len(records) == 4, what="messages after those that were lost")
    finally:
        logger.removeFilter(judge)
    assert capsys.readouterr().err.count("ValueError: no such message") == 1


def run(program):
    text = textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)


def test_the_end_of_a_program_does_not_wait_for_messages():
    """The thread is woken and has ended when the interpreter is taken down; what is registered first runs last."""
    done = run("""
        import atexit, threading
        atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
        import logging
        from qmig_e2k import Vm
        logging.basicConfig()
        vm = Vm("none")
        print("corelog" in [thread.name for thread in threading.enumerate()])
    """)
    assert (done.stdout, done.stderr) == ("True\n['MainThread']\n", "")


def test_a_child_hands_on_messages_of_its_own():
    run("""
        import os, threading
        from qmig_e2k import Vm
        Vm("none").close()
        child = os.fork()
        if child == 0:
            Vm("none").close()
            os._exit("corelog" not in [thread.name for thread in threading.enumerate()])
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
