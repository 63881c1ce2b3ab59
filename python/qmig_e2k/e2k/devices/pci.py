"""PCI host bridge and buses (spec/e2k-machine.md 3.7)."""

from __future__ import annotations

from qmig_e2k.vmstate import VMStateDescription, int32, int32_equal, uint32, varray


class PciHost:
    """The host bridge.

    Attributes:
        config_reg: last value written to port 0xcf8.
    """

    def __init__(self) -> None:
        """A bridge in its reset state."""
        self.reset()

    def reset(self) -> None:
        """Values after power-on."""
        self.config_reg = 0


class PciBus:
    """One bus.

    Attributes:
        nirq: host interrupt pins (4 at the root, none behind a bridge); the same on both sides.
        irq_count: how many device pins assert each.
    """

    def __init__(self, nirq: int) -> None:
        """A bus with `nirq` pins in its reset state."""
        self.nirq = nirq
        self.irq_count = [0] * nirq

    def reset(self) -> None:
        """Values after power-on."""
        self.irq_count[:] = [0] * self.nirq


PCI_HOST = VMStateDescription("PCIHost", fields=[uint32("config_reg")])
PCI_BUS = VMStateDescription("PCIBUS", fields=[int32_equal("nirq"), varray("irq_count", int32, "nirq")])
