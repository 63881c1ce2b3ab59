"""Helpers for tests of emulators: a tiny emulator, machines ready to migrate or full of values, a proxy that cuts."""

from qmig_e2k.testing.emulator import COUNTER, TinyEmulator
from qmig_e2k.testing.filled import fill, filled
from qmig_e2k.testing.pair import Side, pair
from qmig_e2k.testing.proxy import Proxy

__all__ = ["COUNTER", "Proxy", "Side", "TinyEmulator", "fill", "filled", "pair"]
