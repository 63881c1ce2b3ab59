"""The destination of a migration: the listener, and the thread that drives the core's `Incoming` to the end.

The core places RAM and answers commands; this thread resets the machine, hands each device section to its handler, and
decides at the end whether the machine runs (spec/control-plane 8.3); in postcopy it waits for the memory after that. A
load that fails leaves the process usable: run state `inmigrate`, and another attempt is accepted.
"""

import json
import logging
import threading
import time

from qmig_e2k._core import Control, Incoming, MigrationError
from qmig_e2k.errors import as_migration_error, begin, migration_error, stream_error
from qmig_e2k.migration import tls
from qmig_e2k.migration.descriptors import closed_on_error, inherited, refuse_unwanted
from qmig_e2k.migration.handle import Arrival
from qmig_e2k.migration.machine import Machine
from qmig_e2k.migration.stream import Loading
from qmig_e2k.savevm import Configuration, check_configuration

__all__ = ["incoming", "load", "refuse_unmigratable"]

log = logging.getLogger(__name__)

_NO_ARRIVAL = frozenset({"debug", "inmigrate", "finish-migrate", "restore-vm", "save-vm"})
"""Run states that a stream can name, but in which no machine can begin here."""


def incoming(machine: Machine, uri: str, fd: int | None = None) -> Arrival:
    """Listen at `uri` for one migration into `machine`, which enters run state `inmigrate`.

    Args:
        machine: where it shall arrive; it has not run yet.
        uri: where to listen, e.g. `tcp:0:4444`; `fd:N` takes an inherited descriptor.
        fd: the descriptor for an `fd:` URI that names one, owned from here on.

    Raises:
        MigrationError: `listen`, `bad-uri` and the like if listening failed; `invalid-state` if the machine has run or
            another attempt is under way; `not-permitted`: the capability `postcopy-ram` is on, but cannot work here.
    """
    control, profile = machine.control, machine.settings.profile
    if fd is None:
        fd = inherited(uri)
    with closed_on_error(fd):
        refuse_unwanted(uri, fd)
        machine.expect_incoming()
        machine.check_postcopy()
        machine.settings.check_file()
        tls.secure(machine, "server")
        machine.dirty_rates.cut()
        control.begin_incoming()
        try:
            source = Incoming(
                control,
                machine.blocks,
                configuration=profile.configuration,
                footers=profile.footers,
                description=profile.description,
                cpus=machine.cpus,
                uuid=bytes(16) if machine.uuid is None else machine.uuid.bytes,
                limits=machine.settings.limits.core,
            )
        except BaseException as error:
            control.fail_incoming(str(error))
            raise
    try:
        addresses = source.listen(uri, fd)
        control.set_socket_addresses(addresses)
        arrival = Arrival(control, uri, json.loads(addresses), source)
        begin(threading.Thread(target=_Destination(machine, source, arrival).run, name="incoming"))
    except BaseException as error:
        source.close()
        control.fail_incoming(str(error))
        raise
    return arrival


class _Destination:
    """One incoming migration that listens."""

    def __init__(self, machine: Machine, source: Incoming, arrival: Arrival) -> None:
        self._machine = machine
        self._control = machine.control
        self._source = source
        self._arrival = machine.arrival = arrival

    def run(self) -> None:
        """The incoming thread."""
        failure: MigrationError | None = None
        try:
            self._source.accept()
            self._control.set_incoming_status("none", "active")
            refuse_unmigratable(self._machine)
            if load(self._machine, self._control, self._source, self._machine.configuration()):
                self._arrive(postcopy=True)
                self._wait()
            else:
                self._arrive(postcopy=False)
                self._control.set_incoming_status("active", "completed")
                self._answer(0)
        except BaseException as error:  # noqa: BLE001  the handle raises it to whoever waits
            failure = as_migration_error(error)
            level = logging.INFO if failure.kind == "cancelled" else logging.WARNING  # `quit`, or what was asked for
            log.log(level, "incoming migration failed: %s", failure)
            # in this order: as soon as the status is final, another attempt may listen at the same address
            self._answer(1)
            self._control.fail_incoming(str(failure))
        self._arrival.finish(failure)

    def _arrive(self, *, postcopy: bool) -> None:
        machine = self._machine
        state = machine.global_state.received
        if postcopy and not machine.settings.parameters["x-postcopy-keep-runstate"]:
            state = None  # as QEMU: whatever it was, it runs, unless it shall not start here (spec/control-plane 8.3)
        begun = time.perf_counter_ns()
        self._control.set_socket_addresses(None)  # as soon as it runs a recovery may set others
        machine.arrive(state)
        self._control.note_time("start", (time.perf_counter_ns() - begun) // 1000)

    def _wait(self) -> None:
        """Wait for the memory; the core says the last word to the source, and `completed`."""
        try:
            self._source.wait()
        except BaseException:
            self._machine.give_up()  # nobody waits for a page any more
            raise
        self._source.close()

    def _answer(self, status: int) -> None:
        """Tell the source, if there is one to tell; it may well be gone."""
        try:
            self._source.finish(status)
        except MigrationError as error:
            log.info("the source did not hear the outcome: %s", error)
        finally:
            self._source.close()


def refuse_unmigratable(machine: Machine) -> None:
    """Raises MigrationError (`blocked`) if the machine has a device whose state no stream brings."""
    unmigratable = machine.registry.unmigratable()
    if unmigratable:
        raise migration_error("blocked", f"device {unmigratable[0]} cannot be migrated")


def load(machine: Machine, control: Control, source: Incoming, configuration: Configuration) -> bool:
    """Read everything, or up to where postcopy lets the machine run: then True.

    A migration is loaded without the machine lock, which commands would then wait for as long as the source likes: the
    status keeps them from the devices. A reset that began before the status changed ends before this one's.

    In postcopy the devices are loaded while memory arrives. A handler that touches a missing page stops here with
    the interpreter's lock held, and goes on when the core, which needs none, has fetched it.

    Args:
        machine: where it goes; it stands still.
        control: of the load.
        source: a channel was accepted.
        configuration: what the stream's must be like.
    """
    machine.reset_devices()
    loading = Loading(machine.registry)
    waits = not loading.ready()
    if waits:
        source.hold_ack()
    begun = ended = 0
    while (event := source.next()).type not in ("eof", "run"):
        if event.type == "configuration":
            check_configuration(
                configuration,
                event.machine,
                capabilities=event.capabilities,
                uuid=event.uuid,
                page_bits=event.page_bits,
                offset=event.offset,
            )
        elif event.type == "fence":
            _check_complete(machine, loading)
        else:
            if event.type == "full":
                begun = begun or time.perf_counter_ns()
            loading.load(event, source.reader)
            source.section_done()
            ended = time.perf_counter_ns()
            if waits and loading.ready():
                waits = False
                source.devices_ready()
    _check_complete(machine, loading)
    if begun:
        control.note_time("load", (ended - begun) // 1000)
        for device, microseconds in loading.microseconds.items():
            control.note_device_time(device, microseconds)
    return event.type == "run"


def _check_complete(machine: Machine, loading: Loading) -> None:
    """Refuse now what could not run later: at a fence the source still has the machine."""
    loading.check_complete()
    state = machine.global_state.received
    if state in _NO_ARRIVAL:
        raise stream_error("device-state", f"a machine cannot arrive in run state {state!r}", path="globalstate/0")
