"""The functions of the I/O hub that have no state but their configuration space (spec/e2k-machine.md 3.8)."""

from __future__ import annotations

from qmig_e2k.e2k.devices.pci import BRIDGE_HEADER, MULTIFUNCTION, PciDevice, PciFunction, pci_fields
from qmig_e2k.e2k.hooks import after_load, before_save
from qmig_e2k.vmstate import VMStateDescription


class IoHub(PciDevice):
    """The hub itself, 1fff:8017."""

    def __init__(self, path: str = "0000:00:01.0") -> None:
        """The hub in its reset state."""
        super().__init__(path, PciFunction(0x8017, 0x060000, revision=2))


class PciBridge(PciDevice):
    """The bridge to the second bus, 1fff:8000; bus numbers and windows are 0 after reset."""

    def __init__(self, path: str = "0000:00:00.0") -> None:
        """The bridge in its reset state."""
        header_type = MULTIFUNCTION | BRIDGE_HEADER
        super().__init__(path, PciFunction(0x8000, 0x060400, revision=0x10, header_type=header_type))


IOHUB = VMStateDescription("iohub", fields=pci_fields(), pre_save=before_save, post_load=after_load)
IOHUB_PCIBRIDGE = VMStateDescription("iohub-pcibridge", fields=pci_fields(), pre_save=before_save, post_load=after_load)
