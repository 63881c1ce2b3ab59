"""Devices of the e2k machines: each with its state, reset values and description."""

from qmig_e2k.e2k.devices.apic import APIC, Apic
from qmig_e2k.e2k.devices.cepic import CEPIC, Cepic
from qmig_e2k.e2k.devices.escc import ESCC, ESCC_PCI, Escc, EsccPci
from qmig_e2k.e2k.devices.gpio import GPIO, Gpio
from qmig_e2k.e2k.devices.i2c_spi import I2C_SPI, I2cSpi
from qmig_e2k.e2k.devices.ioapic import IOAPIC, Ioapic
from qmig_e2k.e2k.devices.ioepic import IOEPIC, Ioepic
from qmig_e2k.e2k.devices.iohub import IOHUB, IOHUB_PCIBRIDGE, IoHub, PciBridge
from qmig_e2k.e2k.devices.iommu import IOMMU, Iommu
from qmig_e2k.e2k.devices.lmscon import LMSCON, Lmscon
from qmig_e2k.e2k.devices.lt import LT, Lt
from qmig_e2k.e2k.devices.pci import PCI_BUS, PCI_DEVICE, PCI_HOST, PciBus, PciDevice, PciFunction, PciHost, pci_fields
from qmig_e2k.e2k.devices.rtc import RTC, Rtc
from qmig_e2k.e2k.devices.sic import SIC, Sic
from qmig_e2k.e2k.devices.spmc import SPMC, Spmc

__all__ = [
    "APIC",
    "CEPIC",
    "ESCC",
    "ESCC_PCI",
    "GPIO",
    "I2C_SPI",
    "IOAPIC",
    "IOEPIC",
    "IOHUB",
    "IOHUB_PCIBRIDGE",
    "IOMMU",
    "LMSCON",
    "LT",
    "PCI_BUS",
    "PCI_DEVICE",
    "PCI_HOST",
    "RTC",
    "SIC",
    "SPMC",
    "Apic",
    "Cepic",
    "Escc",
    "EsccPci",
    "Gpio",
    "I2cSpi",
    "IoHub",
    "Ioapic",
    "Ioepic",
    "Iommu",
    "Lmscon",
    "Lt",
    "PciBridge",
    "PciBus",
    "PciDevice",
    "PciFunction",
    "PciHost",
    "Rtc",
    "Sic",
    "Spmc",
    "pci_fields",
]
