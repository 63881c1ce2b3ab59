"""`qmig-e2k serve`: one process, one machine, what `qemu-system-e2k` is to QEMU."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qmig_e2k._core import Block, ModelGuest
from qmig_e2k.e2k import build
from qmig_e2k.e2k.models import DEFAULT_MODEL
from qmig_e2k.errors import migration_error
from qmig_e2k.limits import DEFAULT
from qmig_e2k.live import LiveView
from qmig_e2k.migration import objects
from qmig_e2k.migration.settings import Settings
from qmig_e2k.monitor.server import QmpServer
from qmig_e2k.savevm import Profile
from qmig_e2k.vm import Vm

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from qmig_e2k.e2k import Machine as Hardware
    from qmig_e2k.limits import Limits
    from qmig_e2k.vmstate import Format

__all__ = ["Options", "serve"]

log = logging.getLogger(__name__)

_STEPS = 4
"""The register of the model guest that counts a vCPU's steps."""


@dataclass(slots=True)
class Options:
    """The command line of `serve`, parsed (contract section 1)."""

    machine: str = "e2k"
    tags: bool = False
    cpu: str | None = None
    smp: int | None = None
    memory: int = 128 << 20
    backing: Literal["anon", "memfd", "hugetlb"] = "anon"
    memory_path: Path | None = None
    bios: Path | None = None
    kernel: Path | None = None
    paused: bool = False
    incoming: str | None = None
    loadvm: str | None = None
    snapshot_dir: Path | None = None
    name: str | None = None
    uuid: UUID | None = None
    only_migratable: bool = False
    qmp: list[str] = field(default_factory=list)
    globals: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    format: Format = "7.2"
    guest: str = "idle"
    seed: int = 0
    limits: Limits = DEFAULT


class GuestEmulator:
    """The model guest as the emulator of a machine; its registers travel in the CPUs of machine `e2k`."""

    def __init__(self, guest: ModelGuest, hardware: Hardware) -> None:
        self._guest = guest
        self._hardware = hardware
        self._show()

    def start(self) -> None:
        """Go on from what the CPUs hold."""
        self._take()
        self._guest.start()

    def stop(self) -> None:
        """Finish the present steps and put the registers into the CPUs."""
        self._guest.stop()
        self._show()

    def keep(self) -> None:
        """Before the CPUs are reset: what was loaded into them, and has not run yet, is the guest's state."""
        if not self._guest.running:
            self._take()

    def reset(self) -> None:
        """The guest goes on: its registers and RAM belong together, and a reset does not clear RAM."""
        self._show()

    def throttle(self, percent: int) -> None:
        """Take so much of the guest's time away."""
        self._guest.throttle(percent)

    def verify(self) -> tuple[int, bool, int | None]:
        """Replay all steps, also those of a machine that has arrived and not run yet.

        Returns as ModelGuest.verify, and raises MigrationError as it does.
        """
        if not self._guest.running:
            self._take()
        return self._guest.verify()

    def vcpu_steps(self) -> list[int]:
        """Steps done by each vCPU. Raises MigrationError while the guest runs."""
        return [self._guest.registers(vcpu)[_STEPS] for vcpu in range(self._guest.threads)]

    def _take(self) -> None:
        for vcpu, registers in enumerate(self._hardware.guest_state()[: self._guest.threads]):
            self._guest.set_registers(vcpu, registers)

    def _show(self) -> None:
        self._hardware.set_guest_state([self._guest.registers(vcpu) for vcpu in range(self._guest.threads)])


def serve(options: Options) -> None:
    """Run a machine until `quit` or a signal.

    Raises:
        MigrationError: the machine cannot be made or cannot listen; `invalid-argument`: the command line is wrong.
        OSError: a file could not be read.
    """
    settings = Settings(
        profile=Profile(format=options.format), only_migratable=options.only_migratable, limits=options.limits
    )
    settings.apply_global(*options.globals)
    hardware = build(
        options.machine,
        options.memory,
        cpus=options.smp,
        kernel_size=options.kernel.stat().st_size if options.kernel and options.machine != "none" else None,
        tags=options.tags,
        model=DEFAULT_MODEL if options.cpu is None else options.cpu,
    )
    blocks = _memory(options, hardware)
    guest = _guest(options, blocks[0])
    with ExitStack() as cleanup:
        emulator = GuestEmulator(guest, hardware)
        vm = Vm(
            hardware,
            emulator,
            cpus=max(len(hardware.cpus), 1),
            name=options.name,
            uuid=options.uuid,
            settings=settings,
            snapshot_dir=options.snapshot_dir,
        )
        vm.machine.reset_hooks.insert(0, emulator.keep)
        for text in options.objects:
            vm.machine.objects.add(*objects.parse(text))
        for block in blocks:
            vm.add_ram(block.name, buffer=block)
            if block.dirty_log == "explicit":
                # a file on a disk: its only writer is the model guest, which says what it writes
                vm.machine.dirty_log = "explicit"
        server = QmpServer(vm.machine, guest=emulator)
        # from here on signals and `quit` end even a stuck process
        server.monitor.handle_signals()
        cleanup.callback(server.close)
        cleanup.callback(_stop, vm, guest, server)
        cleanup.callback(vm.close)
        # whoever gets an answer over QMP finds the machine running or waiting, as the command line says
        _begin(options, vm)
        for address in options.qmp:
            log.info("QMP at %s", server.listen(address))
        if sys.stdout.isatty():
            cleanup.callback(LiveView(vm.machine, sys.stdout).close)
        server.serve()


def _stop(vm: Vm, guest: ModelGuest, server: QmpServer) -> None:
    """The guest's threads end; those that wait for a page that will never come end with the process, which is over."""
    if not vm.machine.stuck:
        guest.stop()
        return
    server.close()
    logging.shutdown()
    os._exit(0)


def _begin(options: Options, vm: Vm) -> None:
    """Let the machine run, or wait for it."""
    vm.machine.autostart = not options.paused
    if options.loadvm is not None:
        vm.loadvm(options.loadvm)
    if options.incoming is not None:
        arrival = vm.incoming(options.incoming)
        if arrival is not None:
            log.info("waiting for a migration at %s", arrival.addresses or arrival.uri)
    elif not options.paused:
        vm.start()


def _memory(options: Options, hardware: Hardware) -> list[Block]:
    """The RAM blocks, with the contents that the command line asks for."""
    blocks = []
    for index, spec in enumerate(hardware.blocks):
        if index == 0 and options.memory_path is not None:
            blocks.append(Block(spec.name, spec.size, backing="file", path=str(options.memory_path)))
        elif index == 0:
            blocks.append(Block(spec.name, spec.size, backing=options.backing))
        else:
            blocks.append(Block(spec.name, spec.size))
    by_name = {block.name: block for block in blocks}
    if options.bios is not None:
        _fill(by_name.get("e2k.firmware"), options.bios, "-bios")
    if options.kernel is not None:
        _fill(by_name.get("e2k.kernel") or by_name.get("ram"), options.kernel, "-kernel")
    return blocks


def _fill(block: Block | None, path: Path, option: str) -> None:
    if block is None:
        raise migration_error("invalid-argument", f"{option}: this machine has no memory for it")
    data = path.read_bytes()
    if len(data) > block.size:
        raise migration_error(
            "invalid-argument", f"{option} {path}: {len(data)} bytes do not fit into {block.name} ({block.size} bytes)"
        )
    block.write(0, data)


def _guest(options: Options, ram: Block) -> ModelGuest:
    try:
        return ModelGuest(ram, options.guest, seed=options.seed, threads=options.smp or 1)
    except ValueError as error:
        raise migration_error("invalid-argument", f"--guest {options.guest}: {error}") from None
