"""`Vm`: what the author of an emulator touches to make a machine migrate.

    vm = Vm(machine="e2k", emulator=emulator)
    ram = vm.add_ram("e2k.ram", size=1 << 30)
    vm.register(uart_state, emulator.uart)
    vm.start()                                     # the guest runs
    vm.migrate("tcp:host:4444").wait()             # and now it runs there

The destination is the same program with `vm.incoming("tcp:0:4444").wait()` in place of the last two lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from qmig_e2k._core import Block
from qmig_e2k.e2k.machines import FIRMWARE_BASE, bare
from qmig_e2k.e2k.models import MAX_CPUS
from qmig_e2k.errors import migration_error
from qmig_e2k.migration import checks, tls
from qmig_e2k.migration.descriptors import closed_on_error, refuse_unwanted
from qmig_e2k.migration.incoming import incoming
from qmig_e2k.migration.lifetime import close_with_program
from qmig_e2k.migration.machine import Machine, MappedRam
from qmig_e2k.migration.notifier import Notifier
from qmig_e2k.migration.outgoing import migrate, resume_switchover
from qmig_e2k.migration.settings import Settings
from qmig_e2k.migration.snapshot_files import SnapshotDirectory
from qmig_e2k.migration.snapshots import delvm, loadvm, savevm, snapshots
from qmig_e2k.monitor.server import QmpServer
from qmig_e2k.savevm import Profile, SaveVmHandler
from qmig_e2k.vmstate import VMStateDescription
from qmig_e2k.vmstate.mapped import view

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from typing_extensions import Buffer

    from qmig_e2k.e2k import Machine as Hardware
    from qmig_e2k.migration.dirty_rate import Mode
    from qmig_e2k.migration.handle import Arrival, Migration
    from qmig_e2k.migration.machine import Emulator
    from qmig_e2k.migration.snapshot_files import Snapshot
    from qmig_e2k.savevm import Entry
    from qmig_e2k.vmstate import Format

__all__ = ["Vm"]

_LOW_RAM = 1 << 31
_HIGH_RAM = 0x4_0000_0000
_ADDRESS_LIMIT = 1 << 63


class Vm:
    """One machine that can migrate.

    Clock, RAM and run state travel by themselves; devices are registered. All methods may be called from any thread.
    Close it, or use it as a
    context manager; at the end of the program it is closed in any case.

    Args:
        machine: machine type: `e2k` (the newest `e2k-*`), `e2k-qemu` or `none`, on which both sides must agree; or a
            machine made by `e2k.build`, whose devices are then registered as well.
        emulator: its `stop()` and `start()`; may have `reset()`, `throttle(percent)`, `inactivate_storage()`,
            `activate_storage()`. None:
            nothing runs.
        cpus: number of vCPUs, 1 to 8.
        name: a name for people (query-name).
        uuid: the machine's UUID, compared if `validate-uuid` is on.
        format: whose stream this side writes (contract section 4).
        settings: instead of `format`: all settings at once.
        running: the emulator is running already.
        snapshot_dir: directory of its snapshots, made if it is not there; None: it has none.

    Raises:
        MigrationError: `invalid-argument` for an unknown machine type, number of vCPUs or format; `not-permitted` for
            one with an unmigratable device under --only-migratable; `io` if there can be no such directory.
    """

    def __init__(
        self,
        machine: str | Hardware = "e2k",
        emulator: Emulator | None = None,
        *,
        cpus: int = 1,
        name: str | None = None,
        uuid: UUID | None = None,
        format: Format = "7.2",  # noqa: A002  the word of the command line
        settings: Settings | None = None,
        running: bool = False,
        snapshot_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 1 <= cpus <= MAX_CPUS:
            raise migration_error("invalid-argument", f"a machine has 1 to {MAX_CPUS} vCPUs, not {cpus}")
        hardware = bare(machine) if isinstance(machine, str) else machine
        self.cpus = cpus
        self.machine = Machine(
            hardware.wire_name,
            emulator=emulator,
            label=name,
            uuid=uuid,
            settings=settings or Settings(profile=_profile(format)),
            running=running,
            cpus=cpus,
        )
        if snapshot_dir is not None:
            self.machine.snapshots = SnapshotDirectory(snapshot_dir)
        self._hardware = hardware
        self._emulator = emulator
        hardware.register(self.machine.registry, self.machine.clock, self.machine.global_state)
        self.machine.blockers.check_migratable()
        self.machine.reset_hooks.append(hardware.reset)

    # what the machine consists of

    def add_ram(
        self,
        name: str,
        size: int | None = None,
        *,
        buffer: Block | Buffer | None = None,
        max_size: int | None = None,
        address: int | None = None,
    ) -> Block:
        """Register RAM, either made here or the caller's own.

        Args:
            name: idstr of the block, the same on both sides.
            size: bytes to make (anonymous memory, huge pages asked for).
            buffer: instead of `size`: any page-aligned writable buffer (mmap, np.memmap on tmpfs), or a RamBlock of
                that name.
            max_size: bytes to reserve so that a stream may bring a larger block.
            address: guest physical address, for `pmemsave`. None: that of the machine's main RAM and firmware by their
                usual names, else none.

        Raises:
            MigrationError: `bad-block`, `no-dirty-log`, `no-memory`, `invalid-argument` for a name that is taken or a
                number that no block can have, or `invalid-state` while a migration is under way, which would leave it
                behind.
        """
        if (size is None) == (buffer is None):
            raise TypeError("add_ram needs either size or buffer")
        self.machine.refuse_change(f"RAM block {name!r} cannot be added")
        if any(block.name == name for block in self.machine.blocks):
            raise migration_error("invalid-argument", f"there is a RAM block {name!r} already")
        for word, value in (("size", size), ("max_size", max_size), ("address", address)):
            if value is not None and not 0 <= value < _ADDRESS_LIMIT:
                message = f"RAM block {name!r}: {word} {value} is impossible; it must be at least 0 and below 2^63"
                raise migration_error("invalid-argument", message)
        if size is not None:
            block = Block(name, size, max_size=max_size)
        elif isinstance(buffer, Block):
            if buffer.name != name:
                raise migration_error(
                    "invalid-argument", f"the RamBlock handed in is called {buffer.name!r}, not {name!r}"
                )
            block = buffer
        else:
            assert buffer is not None
            block = Block.adopt(name, buffer)
        self.machine.blocks.append(block)
        self.machine.memory_map += _mapped(block, address)
        return block

    def register(
        self,
        state: VMStateDescription | SaveVmHandler,
        obj: Any = None,
        *,
        name: str | None = None,
        instance_id: int | None = None,
        bus_path: str | None = None,
        mapping: Mapping[str, str] | None = None,
    ) -> Entry:
        """Register a device.

        Args:
            state: description of the device's state, one of `qmig_e2k.e2k` or your own; or a handler of its own.
            obj: with a description: the device, any object or dict.
            name: with a handler: its section's name.
            instance_id: number among the devices of that name; None: the next one.
            bus_path: with a description: path on the bus, e.g. `0000:00:02.2`, which becomes part of the name.
            mapping: with a description: where values are that have another name on `obj` or are held by its parts,
                e.g. `{"regs_lo": "file.low", "psp_lo": "psp.0"}`.

        Raises:
            MigrationError: `invalid-argument` if name and number are taken, or a name in `mapping` is none of the
                description's; `not-permitted` for an unmigratable device
                under --only-migratable; `invalid-state` while a migration is under way.
        """
        machine = self.machine
        machine.refuse_change("a device cannot be added")
        if isinstance(state, VMStateDescription):
            if state.unmigratable:
                machine.blockers.check_migratable(state.name)
            if obj is None:
                raise TypeError(f"register({state.name}) needs the device whose state it describes")
            try:
                seen = view(state, obj, mapping)
            except ValueError as error:
                raise migration_error("invalid-argument", str(error)) from None
            entry = machine.registry.register_description(state, seen, instance_id=instance_id, bus_path=bus_path)
            machine.blockers.publish()
            return entry
        if not isinstance(state, SaveVmHandler):
            raise TypeError(f"register needs a description (or a handler) and then the device, not {state!r} first")
        if name is None:
            raise TypeError("a handler needs a name: register(handler, name=...)")
        return machine.registry.register(name, state, instance_id=instance_id)

    def check(self) -> list[str]:
        """What would stop a migration now, one sentence each; empty if nothing is known that would.

        Named are blockers, run state, RAM that the machine type has and this machine has not, and whatever a
        description asks for and its object lacks, with the field and what to do.
        """
        return list(checks.stops(self.machine, self._hardware, self._emulator))

    def notes(self) -> list[str]:
        """What stops no migration but is worth knowing, one sentence each, such as devices that were left out."""
        return list(checks.notes(self.machine, self._hardware, self.cpus, resettable=hasattr(self._emulator, "reset")))

    def add_blocker(self, reason: str) -> int:
        """Keep the machine from migrating until `del_blocker`.

        Raises MigrationError (`not-permitted`, `invalid-state`).
        """
        return self.machine.add_blocker(reason)

    def del_blocker(self, number: int) -> None:
        """Remove a blocker by the number that `add_blocker` returned."""
        self.machine.del_blocker(number)

    # running

    @property
    def run_state(self) -> str:
        """QMP run state: `prelaunch`, `running`, `paused`, `inmigrate`, `postmigrate`, ..."""
        return self.machine.control.run_state

    def start(self) -> None:
        """Let the guest run, or say that it shall when it has arrived. Raises MigrationError (`invalid-state`)."""
        self.machine.cont()

    cont = start

    def stop(self) -> None:
        """Pause the guest, or say that it shall not run when it has arrived.

        Raises MigrationError (`invalid-state`).
        """
        self.machine.pause()

    def reset(self) -> None:
        """Reset devices and emulator. Raises MigrationError (`invalid-state`)."""
        self.machine.reset()

    # migrating

    def set_capabilities(self, **changes: bool) -> None:
        """Switch capabilities, e.g. `set_capabilities(pause_before_switchover=True)`.

        Raises MigrationError and then changes nothing.
        """
        self.machine.set_capabilities((name.replace("_", "-"), state) for name, state in changes.items())

    def set_parameters(self, **changes: object) -> None:
        """Change parameters, e.g. `set_parameters(max_bandwidth=0, downtime_limit=50)`.

        Raises MigrationError and then changes nothing.
        """
        self.machine.set_parameters({name.replace("_", "-"): value for name, value in changes.items()})

    def add_object(self, kind: str, name: str, **properties: object) -> None:
        """Make what the parameters `tls_creds` and `tls_authz` name, as QMP `object-add` does.

            vm.add_object("tls-creds-x509", "tls0", endpoint="client", dir="/etc/pki/qemu")
            vm.set_parameters(tls_creds="tls0")

        Args:
            kind: `tls-creds-x509` (`dir`, `endpoint`, `verify_peer`, `sanity_check`), `authz-simple` (`identity`) or
                `authz-list` (`policy`, `rules`).
            name: its id.
            properties: see docs/how-to/tls.md; `_` in a name stands for `-`.

        Raises:
            MigrationError: `invalid-argument`, `unsupported`; `tls` for certificates that are of no use, with the file.
        """
        tls.add_object(self.machine, kind, name, {key.replace("_", "-"): value for key, value in properties.items()})

    def del_object(self, name: str) -> None:
        """Forget an object by its id. Raises MigrationError (`invalid-argument`, `invalid-state`)."""
        tls.del_object(self.machine, name)

    def migrate(self, uri: str, *, fd: int | None = None) -> Migration:
        """Move the machine to `uri`; returns at once with a handle to watch, wait for or cancel.

        Args:
            uri: where to: `tcp:host:port`, `unix:path`, `exec:command`, `file:path`, `fd:name`.
            fd: the descriptor behind `fd:name`, owned by the migration from here on.

        Raises:
            MigrationError: `invalid-state` or `blocked`; for `exec:`, `file:` and `fd:` also what opening them failed
                with.
        """
        close_with_program(self.machine)
        return migrate(self.machine, uri, fd)

    def resume_switchover(self, state: str = "pre-switchover") -> None:
        """Let a migration that waits before its switchover go on; MigrationError (`invalid-state`) if none does."""
        resume_switchover(self.machine, state)

    def incoming(self, uri: str, *, fd: int | None = None) -> Arrival | None:
        """Receive a machine at `uri`; returns a handle as soon as it listens.

        Args:
            uri: where to listen; `defer`: only enter run state `inmigrate`, for a later `incoming` or QMP `migrate-
                incoming`; then None is returned.
            fd: the descriptor behind `fd:name`, owned by the migration from here on.

        Raises:
            MigrationError: listening failed, the machine has run, or another incoming migration is under way.
        """
        close_with_program(self.machine)
        if uri == "defer":
            with closed_on_error(fd):
                refuse_unwanted(uri, fd)
            self.machine.expect_incoming()
            return None
        return incoming(self.machine, uri, fd)

    # snapshots

    def savevm(self, name: str) -> None:
        """Save the machine as snapshot `name`; a guest that runs stands still meanwhile, and runs on.

        A snapshot of that name is replaced, in one step, when the new one is on disk. What the emulator keeps on disks
        of its own is not part of it.

        Raises:
            MigrationError: `invalid-state`, `blocked`, `invalid-argument`; `io`, `device-state`, `cancelled` and the
                like. The machine goes on as before, and an earlier snapshot of that name is whole.
        """
        savevm(self.machine, name)

    def loadvm(self, name: str) -> None:
        """Go back to snapshot `name`; the guest runs on from there if it ran before.

        Raises:
            MigrationError: `invalid-state`, `blocked`, `invalid-argument`, or `io` for a snapshot that is missing or
                cut off: nothing has happened. StreamError and the like: the machine has no state any more; it stands
                still until another `loadvm`, or `reset`.
        """
        loadvm(self.machine, name)

    def delvm(self, name: str) -> None:
        """Delete snapshot `name`. Raises MigrationError (`io`, `invalid-argument`, `invalid-state`)."""
        delvm(self.machine, name)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots in the machine's directory, the oldest first. Raises MigrationError (`io`, `invalid-state`)."""
        return snapshots(self.machine)

    def calc_dirty_rate(self, milliseconds: int = 1000, *, mode: Mode = "page-sampling") -> None:
        """Begin to measure how fast the guest writes its memory; `dirty_rate` has the answer.

        Args:
            milliseconds: for how long, 50 to 60000.
            mode: `page-sampling` or `dirty-bitmap`, which is exact and slows the guest down a little.

        Raises MigrationError as `DirtyRates.start`.
        """
        close_with_program(self.machine)
        self.machine.dirty_rates.start(milliseconds, mode=mode)

    def dirty_rate(self) -> dict[str, Any]:
        """The last measurement as `query-dirty-rate` answers: `status`, and at the end `dirty-rate` in MiB/s."""
        return self.machine.dirty_rates.query()

    # being controlled

    def notify(self, call: Callable[[str, dict[str, Any]], object]) -> Notifier:
        """Have `call(name, data)` called for each event of the machine from now on, until the notifier is closed.

        Events and their data are those of QMP: `STOP`, `RESUME`, `RESET`, `JOB_STATUS_CHANGE`, and with the capability
        `events` also `MIGRATION` with its `status` and `MIGRATION_PASS`. It is called in a thread of its own after the
        event, so it can neither refuse nor delay anything; it may call the Vm. What it raises is logged.
        """
        close_with_program(self.machine)
        notifier = Notifier(self.machine.control, call, self.machine.notifiers.discard)
        self.machine.notifiers.add(notifier)
        return notifier

    def serve_qmp(self, address: str, *, on_quit: Callable[[], None] | None = None) -> str:
        """Accept QMP clients.

        Args:
            address: `unix:PATH` or `tcp:HOST:PORT` (port 0: any).
            on_quit: called after a client's `quit` was answered; by default only the QMP service ends.

        Returns:
            The bound address.

        Raises:
            MigrationError: `listen`.
        """
        close_with_program(self.machine)
        server = QmpServer(self.machine, on_quit=on_quit)
        try:
            bound = server.listen(address)
        except BaseException:
            server.close()
            raise
        server.start()
        self.machine.servers.append(server)
        return bound

    def close(self) -> None:
        """End migrations and QMP service. Idempotent, from any thread.

        A cancelled migration leaves the machine running here. A postcopy under way is waited for at the source, as long
        as it has a connection; at the destination it is given up, with the guest stopped. A thread that waits for a
        page there finds no zeros: it waits until the process ends, which the end of the program sees to.
        """
        self.machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _profile(format: Format) -> Profile:  # noqa: A002
    try:
        return Profile(format=format)
    except ValueError as error:
        raise migration_error("invalid-argument", str(error)) from None


def _mapped(block: Block, address: int | None) -> list[MappedRam]:
    """Where the guest sees `block`."""
    if address is not None:
        return [MappedRam(address, block, 0, block.size)]
    if block.name == "ram":
        return [MappedRam(0, block, 0, block.size)]
    if block.name == "e2k.firmware":
        return [MappedRam(FIRMWARE_BASE, block, 0, block.size)]
    if block.name == "e2k.ram":
        low = min(block.size, _LOW_RAM)
        parts = [MappedRam(0, block, 0, low)]
        return parts if low == block.size else [*parts, MappedRam(_HIGH_RAM, block, low, block.size - low)]
    return []
