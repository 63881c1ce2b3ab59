"""Machine types: what RAM blocks and devices each has, made fresh by `build` (spec/e2k-machine.md 1, 5).

| type      | name on the wire | what it is |
|-----------|------------------|------------|
| `none`    | `none`           | RAM only, with the sections of QEMU's `-M none` |
| `e2k-qemu`| `e2k`            | exactly the sections of the public qemu-system-e2k |
| `e2k-1.0` | `e2k-1.0`        | this project's own machine; `e2k` is an alias of the newest such type |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qmig_e2k.e2k.cpu import CPU_COMMON, Cpu, CpuCommon
from qmig_e2k.e2k.devices import ESCC, PCI_BUS, PCI_HOST, Escc, PciBus, PciHost
from qmig_e2k.e2k.full import OPTIONS, Device, Identity, full_devices
from qmig_e2k.e2k.models import DEFAULT_MODEL, MAX_CPUS, CpuModel, cpu_model
from qmig_e2k.e2k.rules import E2kRules
from qmig_e2k.errors import migration_error
from qmig_e2k.savevm import GlobalState, RamHandler, Registry, VirtualClock, VmStateHandler, timer_description

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MACHINE_TYPES = ("e2k-1.0", "e2k-qemu", "none")
ALIASES = {"e2k": "e2k-1.0"}
PAGE_SIZE = 4096
FIRMWARE_SIZE = 16 << 20
FIRMWARE_BASE = 0x1_0000_0000


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A RAM block that the machine has: idstr and used length in bytes."""

    name: str
    size: int


@dataclass(slots=True)
class Machine:
    """One machine, without memory: the caller makes the blocks.

    Attributes:
        type: versioned machine type.
        wire_name: its name in the configuration element.
        blocks: RAM blocks, the main one first.
        devices: in the order of registration.
        cpus: CPU objects (none on `none`).
        model: CPU model.
    """

    type: str
    wire_name: str
    blocks: list[BlockSpec]
    devices: list[Device] = field(default_factory=list)
    cpus: list[CpuCommon] = field(default_factory=list)
    model: CpuModel | None = None

    def register(self, registry: Registry, clock: VirtualClock, global_state: GlobalState) -> None:
        """Register the sections that every machine has, and the devices, in this machine's order."""
        profile = registry.profile
        if self.type == "e2k-1.0":
            registry.rules = E2kRules()
        registry.register("timer", VmStateHandler(timer_description(profile), clock), section_id=0)
        registry.register("ram", RamHandler(), section_id=profile.facts.ram_section_id)
        for device in self.devices:
            registry.register_description(
                device.description, device.obj, instance_id=device.instance_id, bus_path=device.bus_path
            )
        registry.register_description(global_state.description, global_state)

    def without(self, *names: str) -> Machine:
        """The same machine without the devices of these names, which an emulator lacks or has of its own.

        Raises:
            MigrationError: `invalid-argument`: the machine has no such device.
        """
        known = {device.description.name for device in self.devices}
        for name in names:
            if name not in known:
                raise migration_error("invalid-argument", f"there is no {name!r} among {', '.join(sorted(known))}")
        return replace(self, devices=[device for device in self.devices if device.description.name not in names])

    def reset(self) -> None:
        """Every device back to its values after power-on (also before a load: absent subsections mean reset values)."""
        for device in self.devices:
            device.obj.reset()

    def guest_state(self) -> list[list[int]]:
        """The model guest's 16 registers of each CPU; empty on machines that do not carry them."""
        return [cpu.guest_registers() for cpu in self.cpus if isinstance(cpu, Cpu)]

    def set_guest_state(self, state: Sequence[Sequence[int]]) -> None:
        """Put the model guest's registers into the CPUs; no effect on machines that do not carry them."""
        for cpu, values in zip((cpu for cpu in self.cpus if isinstance(cpu, Cpu)), state, strict=False):
            cpu.set_guest_registers(values)


def resolve(machine_type: str) -> str:
    """The versioned type behind a name or alias."""
    name = ALIASES.get(machine_type, machine_type)
    if name not in MACHINE_TYPES:
        known = ", ".join([*ALIASES, *MACHINE_TYPES])
        raise migration_error("invalid-argument", f"machine type {machine_type!r} is none of {known}")
    return name


def bare(machine_type: str) -> Machine:
    """A machine of that type with neither memory nor devices, for emulators that register their own."""
    name = resolve(machine_type)
    return Machine(name, "e2k" if name == "e2k-qemu" else name, [])


def build(
    machine_type: str,
    ram_size: int,
    *,
    cpus: int | None = None,
    model: str = DEFAULT_MODEL,
    kernel_size: int | None = None,
    entry: int | None = None,
    tags: bool = False,
    options: Collection[str] = (),
) -> Machine:
    """A machine in its reset state.

    Args:
        machine_type: name or alias.
        ram_size: bytes of main RAM, a multiple of 4 KiB.
        cpus: 1 to 8, default 1; `none` has none.
        model: CPU model.
        kernel_size: bytes of the kernel image; the machine then has a kernel block instead of firmware.
        entry: address of the first instruction; default: start of the firmware, 0 with a kernel.
        tags: memory-tag mode: a further block with 4 bits for every 8 bytes.
        options: names of `OPTIONS`, devices that `e2k` has if it is asked for them.

    Raises:
        MigrationError: `invalid-argument`, with the reason.
    """
    name = resolve(machine_type)
    if ram_size <= 0 or ram_size % PAGE_SIZE:
        raise migration_error("invalid-argument", f"RAM of {ram_size} bytes: a positive multiple of 4096 is needed")
    for option in options:
        if option not in OPTIONS:
            raise migration_error("invalid-argument", f"device {option!r} is none of {', '.join(OPTIONS)}")
        if name != "e2k-1.0":
            raise migration_error("invalid-argument", f"the machine {name} has no device {option}; use e2k")
    try:
        chosen = cpu_model(model)
    except ValueError as error:
        raise migration_error("invalid-argument", str(error)) from None
    if name == "none":
        if tags:
            raise migration_error("invalid-argument", "the machine none has no memory tags; use e2k")
        return _build_none(ram_size, cpus or 0)
    count = 1 if cpus is None else cpus
    if not 1 <= count <= MAX_CPUS:
        raise migration_error("invalid-argument", f"{count} CPUs: 1 to {MAX_CPUS} are possible")
    blocks = [BlockSpec("e2k.ram", ram_size)]
    if kernel_size is None:
        blocks.append(BlockSpec("e2k.firmware", FIRMWARE_SIZE))
    else:
        blocks.append(BlockSpec("e2k.kernel", max(-(-kernel_size // PAGE_SIZE), 1) * PAGE_SIZE))
    if tags:
        blocks.append(_tag_block(name, ram_size))
    if name == "e2k-qemu":
        return _build_qemu(blocks, count, chosen)
    identity = Identity(chosen, count, ram_size, kernel=kernel_size is not None, tags=tags)
    start = entry if entry is not None else FIRMWARE_BASE if kernel_size is None else 0
    full = [Cpu(index, chosen, start, tags) for index in range(count)]
    return Machine(name, name, blocks, full_devices(full, identity, options), list(full), chosen)


def _tag_block(name: str, ram_size: int) -> BlockSpec:
    if name == "e2k-qemu":
        raise migration_error("invalid-argument", "e2k-qemu has no memory tags; use e2k")
    if ram_size % (16 * PAGE_SIZE):
        raise migration_error("invalid-argument", f"RAM of {ram_size} bytes: with tags a multiple of 65536 is needed")
    return BlockSpec("e2k.ram-tags", ram_size // 16)


def _build_none(ram_size: int, cpus: int) -> Machine:
    if cpus:
        raise migration_error("invalid-argument", "the machine none has no CPUs")
    return Machine("none", "none", [BlockSpec("ram", ram_size)])


_QEMU_BUS = replace(PCI_BUS, priority=0)


def _build_qemu(blocks: list[BlockSpec], count: int, model: CpuModel) -> Machine:
    cpus = [CpuCommon(index) for index in range(count)]
    devices = [
        *(Device(CPU_COMMON, cpu, cpu.index) for cpu in cpus),
        Device(PCI_HOST, PciHost()),
        Device(_QEMU_BUS, PciBus(4)),
        Device(_QEMU_BUS, PciBus(0)),
        Device(ESCC, Escc()),
    ]
    return Machine("e2k-qemu", "e2k", blocks, devices, cpus, model)
