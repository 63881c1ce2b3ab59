"""Offline reading of any stream of any QEMU machine: `analyze("stream")` gives everything in it as plain data.

made = analyze("machine.stream")           # a path, bytes, or [main, channel, channel] with multifd
made.devices[0].body.plain()               # values by name
made.blocks[0].sha256, made.read_ram(0, 0, 4096)
made.complete, made.error                  # damage: what stands before it is all there
made.record()                              # the JSON record of `qmig-e2k analyze --json`
"""

from qmig_e2k.analyze.model import SCHEMA, Analysis, Block, Body, Device, Field
from qmig_e2k.analyze.stream import analyze

__all__ = ["SCHEMA", "Analysis", "Block", "Body", "Device", "Field", "analyze"]
