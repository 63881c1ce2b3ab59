"""The JSON description of a stream, which Python reads: `python fuzz/python/run.py description`.

Input: a 16-bit length, as many bytes that stand for the payload of each device, then the text.

Asserted: a text is refused by ValueError and nothing else; a payload by a Refusal inside it; what is read takes no more
bytes than there are, has a plain form that is JSON again, and no more parts than the budget allows.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from qmig_e2k.analyze.cursor import Cursor, StoredFile
from qmig_e2k.analyze.layout import Budget, Decoder, member, parse_device, parse_document
from qmig_e2k.e2k import build
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, save_full
from qmig_e2k.savevm.text import description_text
from qmig_e2k.testing import filled
from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.vmstate.json import JsonObject

DEVICES = 8
"""Devices of one input that are read."""


def check(data: bytes) -> None:
    """Parse the text, then read the payload by each device in it."""
    if len(data) < 2:
        return
    (length,) = struct.unpack_from(">H", data)
    payload, text = data[2 : 2 + length], data[2 + length :]
    try:
        devices: list[JsonObject] = member(parse_document(text), "devices", list)
    except ValueError:
        return
    for device in devices[:DEVICES]:
        _read(device, payload)


def _read(device: JsonObject, payload: bytes) -> None:
    try:
        layout = parse_device(device)
    except ValueError:
        return
    file = StoredFile(payload)
    try:
        budget = Budget()
        decoder = Decoder(Cursor(file, 0), layout, 1, budget)
        try:
            decoder.run()
        except Refusal as refusal:
            error = refusal.stream_error(layout.name)
            assert error.offset is not None
            assert 0 <= error.offset <= len(payload), str(error)
            assert error.kind in {"truncated", "device-state", "limit-exceeded"}, error.kind
        assert decoder.cursor.offset <= len(payload)
        text = json.dumps(decoder.body.plain())
        assert text.count("{") <= budget.most
    finally:
        file.close()


def seeds() -> Iterator[bytes]:
    """Every section of two machines with its part of the description, in both styles."""
    for kind, format_ in (("e2k", "7.2"), ("e2k-qemu", "2.9"), ("e2k", "10.0")):
        machine, profile = filled(build(kind, 1 << 20)), Profile(format_, footers=False)
        registry = Registry(profile)
        machine.register(registry, VirtualClock(), GlobalState(profile))
        for entry in registry:
            if not entry.handler.live:
                alone = Registry(profile)
                alone.register(entry.idstr, entry.handler, instance_id=entry.instance_id)
                saved = save_full(alone)
                payload = saved.data[14 + len(entry.idstr) :]
                text = description_text({"page_size": 4096, "devices": saved.devices}, loose=format_ == "2.9")
                yield struct.pack(">H", len(payload)) + payload + text


def close() -> None:
    """Nothing is left."""
