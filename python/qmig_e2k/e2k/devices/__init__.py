"""Devices of the e2k machines: each with its state, reset values and description."""

from qmig_e2k.e2k.devices.escc import ESCC, Escc
from qmig_e2k.e2k.devices.pci import PCI_BUS, PCI_HOST, PciBus, PciHost

__all__ = ["ESCC", "PCI_BUS", "PCI_HOST", "Escc", "PciBus", "PciHost"]
