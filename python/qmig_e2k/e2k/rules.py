"""What the full machine demands of a stream beyond each section by itself (spec/e2k-machine.md 5, R2 and R7).

It looks at what is registered, not at our own classes, so it holds for an emulator's devices as well: the root bus
is the first `PCIBUS`; a PCI device is what `PCI_DEVICE` begins; its place is the bus path in its section's name.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from qmig_e2k.e2k.devices.apic import APIC, BASE_BOOTSTRAP
from qmig_e2k.e2k.devices.iommu import IOMMU
from qmig_e2k.e2k.devices.pci import PCI_BUS, PINS, bus_pin, is_pci_device
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.savevm import VmStateHandler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qmig_e2k.savevm import Entry
    from qmig_e2k.vmstate import VMStateDescription

log = logging.getLogger(__name__)


class E2kRules:
    """The rules of `e2k-1.0`."""

    def before_section(self, entry: Entry, loaded: Iterable[Entry]) -> None:
        """R7: PCI devices ask the IOMMU as soon as they load."""
        if entry.idstr == IOMMU.name and any(True for _ in _pci_devices(loaded)):
            raise CheckError("R7", "iommu: section after PCI devices")

    def after_sections(self, entries: Iterable[Entry]) -> None:
        """P03, A03: what can only be seen when everything has arrived."""
        entries = list(entries)
        _check_irq_counts(entries)
        bootstrap = [apic.index for apic in _of(entries, APIC) if apic.apicbase & BASE_BOOTSTRAP]
        if len(bootstrap) != 1 and any(True for _ in _of(entries, APIC)):
            log.debug("apic: bootstrap bit on CPUs %s", bootstrap)


def _check_irq_counts(entries: list[Entry]) -> None:
    root = next(_of(entries, PCI_BUS), None)
    devices = list(_pci_devices(entries))
    if root is None or not devices:
        return
    counts = [0] * PINS
    for path, device in devices:
        for pin in range(PINS):
            counts[bus_pin(path, pin)] += int(device.irq_state[pin])
    if list(root.irq_count) != counts:
        raise CheckError("P03", "pci: irq count mismatch", "PCIBUS/0/irq_count")


def _of(entries: Iterable[Entry], description: VMStateDescription) -> Iterator[Any]:
    """The objects that are registered with a description, by its name."""
    for entry in entries:
        if isinstance(entry.handler, VmStateHandler) and entry.handler.description.name == description.name:
            yield entry.handler.obj


def _pci_devices(entries: Iterable[Entry]) -> Iterator[tuple[str, Any]]:
    """Bus path and common part of each PCI device."""
    for entry in entries:
        if isinstance(entry.handler, VmStateHandler) and is_pci_device(entry.handler.description):
            parent = entry.handler.description.fields[0]
            yield entry.idstr.rpartition("/")[0], parent.get(entry.handler.obj)
