"""Devices of the e2k machines: each with its state, reset values and description."""

from qmig_e2k.e2k.devices.apic import APIC, Apic
from qmig_e2k.e2k.devices.cepic import CEPIC, Cepic
from qmig_e2k.e2k.devices.escc import ESCC, Escc
from qmig_e2k.e2k.devices.ioapic import IOAPIC, Ioapic
from qmig_e2k.e2k.devices.ioepic import IOEPIC, Ioepic
from qmig_e2k.e2k.devices.iommu import IOMMU, Iommu
from qmig_e2k.e2k.devices.pci import PCI_BUS, PCI_HOST, PciBus, PciHost
from qmig_e2k.e2k.devices.sic import SIC, Sic

__all__ = [
    "APIC",
    "CEPIC",
    "ESCC",
    "IOAPIC",
    "IOEPIC",
    "IOMMU",
    "PCI_BUS",
    "PCI_HOST",
    "SIC",
    "Apic",
    "Cepic",
    "Escc",
    "Ioapic",
    "Ioepic",
    "Iommu",
    "PciBus",
    "PciHost",
    "Sic",
]
