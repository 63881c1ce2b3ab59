"""Three destinations for the same stream: the oracle as machine `none`, ours, and a real QEMU.

All have one block, `ram`, of `RAM` bytes, and the sections `timer` and `globalstate`.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oracle.memory import CONTINUE, EOS, MEM_SIZE, PAGE, RAW, ZERO
from oracle.reader import Reader
from oracle.source import Refused
from oracle.streams import HEAD, be
from qmig_e2k import StreamError, Vm
from support import wait_until

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from oracle.source import Source

RAM = 1 << 20
RUN_STATES = """debug inmigrate internal-error io-error paused postmigrate prelaunch finish-migrate restore-vm running
save-vm shutdown suspended watchdog guest-panicked colo""".split()
"""spec/stream.md 2.7."""


@dataclass
class Verdict:
    """What a destination makes of a stream: `refused` says why not (any words), `memory` is what it has got."""

    refused: str | None
    memory: bytes = b""


def stream(numbers: Random) -> bytes:
    """A stream for machine `none` as a QEMU 7.2 may send it."""
    made = HEAD + b"\7" + be(4, 4) + b"none\1" + be(4, 2) + b"\3ram" + be(4, 0) + be(4, 4)
    made += be(8, RAM | MEM_SIZE) + b"\3ram" + be(8, RAM) + be(8, EOS) + b"\x7e" + be(4, 2)
    named = True
    for kind in (2, 2, 3):
        made += be(1, kind) + be(4, 2)
        for _ in range(numbers.randrange(4)):
            flags = numbers.choice([ZERO] * 12 + [RAW])
            offset = PAGE * numbers.randrange(RAM // PAGE)
            made += be(8, offset | flags | (0 if named else CONTINUE)) + (b"\3ram" if named else b"")
            made += b"\0" if flags == ZERO else numbers.randbytes(PAGE)
            named = False
        made += be(8, EOS) + b"\x7e" + be(4, 2)
    made += b"\4" + be(4, 0) + b"\5timer" + be(4, 0) + be(4, 2) + bytes(24) + b"\x7e" + be(4, 0)
    made += b"\4" + be(4, 4) + b"\x0bglobalstate" + be(4, 0) + be(4, 1)
    made += be(4, 8) + b"running".ljust(100, b"\0") + b"\x7e" + be(4, 4)
    return made + b"\0\6" + be(4, 2) + b"{}"


def _payload(source: Source, idstr: bytes, instance: int, version: int) -> None:
    if instance or idstr not in {b"timer", b"globalstate"}:
        raise KeyError(idstr)
    if not 1 <= version <= (2 if idstr == b"timer" else 1):
        raise source.refused("bad-version", source.at - 4)
    begin = source.at
    if idstr == b"timer":
        # the last field came with version 2
        for _ in range(version + 1):
            source.raw(8)
        return
    source.raw(4)
    name, nul, _ = source.raw(100).partition(b"\0")
    if not nul or name.decode("latin-1") not in RUN_STATES:
        raise source.refused("device-state", begin)


def oracle(data: bytes) -> tuple[Verdict, Refused | None]:
    """By the specification."""
    reader = Reader(data, _payload, {b"ram": RAM})
    reader.machine = b"none"
    reader.memory.codings = reader.capabilities = frozenset()
    made = reader.read()
    # behind the end marker nothing counts any more (1.4)
    refused = None if any(element["type"] == "eof" for element in made.elements) else made.refused
    came = {element.get("idstr") for element in made.elements}
    if refused is None and not {b"ram", b"timer"} <= came:
        refused = Refused("missing-section", -1)
    (block,) = made.blocks.values() or (None,)
    memory = bytes(RAM) if block is None else block.content()
    return Verdict(None if refused is None else str(refused), memory), refused


def ours(folder: Path, data: bytes) -> tuple[Verdict, StreamError | None]:
    """Our own machine."""
    path = folder / "stream"
    path.write_bytes(data)
    vm = Vm("none")
    try:
        ram = vm.add_ram("ram", RAM)
        try:
            vm.incoming(f"file:{path}").wait(30)
        except StreamError as error:
            return Verdict(str(error)), error
        return Verdict(None, bytes(ram.read(0, RAM))), None
    finally:
        vm.close()


def qemu(binary: str, folder: Path, data: bytes) -> Verdict:
    """A real one. It ends when it refuses a stream, so there is one for each."""
    path = folder / "stream"
    path.write_bytes(data)
    command = [binary, "-M", "none", "-m", "1M", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, "-incoming", f"exec:cat {path}"], **pipes, text=True, errors="replace")

    def ask(name: str, **arguments: object) -> Any:
        """The answer; None if it is gone."""
        try:
            process.stdin.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        while line := process.stdout.readline():
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                return answer
        return None

    try:
        ask("qmp_capabilities")

        def over() -> str | None:
            answer = ask("query-status")
            if answer is None:
                return "gone"
            return None if answer["return"]["status"] == "inmigrate" else "here"

        if wait_until(over, 50, "QEMU's verdict") == "gone":
            return Verdict(process.stderr.read() or "it ended without a word")
        dump = folder / "dump"
        assert "return" in ask("pmemsave", val=0, size=RAM, filename=os.fspath(dump))
        return Verdict(None, dump.read_bytes())
    finally:
        process.kill()
        process.communicate()


__all__ = ["RAM", "Verdict", "oracle", "ours", "qemu", "stream"]
