"""Helpers for tests of emulators: a tiny emulator, two machines ready to migrate, a proxy that cuts the wire."""

from qmig_e2k.testing.emulator import COUNTER, TinyEmulator
from qmig_e2k.testing.pair import Side, pair
from qmig_e2k.testing.proxy import Proxy

__all__ = ["COUNTER", "Proxy", "Side", "TinyEmulator", "pair"]
