"""Helpers for tests of emulators: a tiny one, machines ready to migrate or full of values, a faulty proxy."""

from qmig_e2k.testing.emulator import COUNTER, TinyEmulator
from qmig_e2k.testing.filled import fill, filled
from qmig_e2k.testing.pair import Side, pair
from qmig_e2k.testing.proxy import Fault, Proxy, Way

__all__ = ["COUNTER", "Fault", "Proxy", "Side", "TinyEmulator", "Way", "fill", "filled", "pair"]
