"""CPU payloads for tests: made, taken apart, changed at one register, put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k import MODELS, CpuModel
from qmig_e2k.e2k.cpu import CPU, GROUPS, Cpu
from qmig_e2k.errors import StreamError

if TYPE_CHECKING:
    from qmig_e2k.e2k.registers import Register

ENTRY = 0x1_0000_0000
V7 = CpuModel("v7", 7, 0x0E, 8, 0x60, 2, epic=True, physical_bits=48)
"""A model of the newest ISA; those that exist are not described completely."""
ALL_MODELS = {**MODELS, "v7": V7}

MAIN = "cpu"
MAIN_SIZE = 2332


class Place(NamedTuple):
    """Where an element of a register is, seen from the start of its description's fields."""

    offset: int
    size: int
    signed: bool


def cpu(model: str = "e8c", index: int = 0, *, tags: bool = True) -> Cpu:
    return Cpu(index, ALL_MODELS[model], ENTRY, tags)


def save(obj: Any, description: vmstate.VMStateDescription = CPU) -> bytes:
    writer = Writer()
    vmstate.save(description, obj, writer)
    return writer.getvalue()


def load(obj: Any, raw: bytes, description: vmstate.VMStateDescription = CPU) -> None:
    reader = Reader(raw)
    vmstate.load(description, obj, reader, 1, path=f"{description.name}/{obj.index}")
    assert reader.offset == len(raw)


def refusal(obj: Any, raw: bytes) -> StreamError | None:
    """What a load is refused with."""
    try:
        load(obj, raw)
    except StreamError as error:
        return error
    return None


def registers(name: str) -> list[Register]:
    """The registers of the main body or of a subsection, in the order of the wire."""
    return [register for group_name, group in GROUPS if group_name == name for register in group.registers]


def size_of(name: str) -> int:
    return sum(_size(register) * max(register.length, 1) for register in registers(name))


def _size(register: Register) -> int:
    return register.field.kind.size  # type: ignore[attr-defined]


def place(name: str, field: str, index: int = 0) -> Place:
    offset = 0
    for register in registers(name):
        if register.name == field:
            assert index < max(register.length, 1)
            signed = register.field.kind.dtype.kind == "i"  # type: ignore[attr-defined]
            return Place(offset + index * _size(register), _size(register), signed)
        offset += _size(register) * max(register.length, 1)
    raise KeyError(f"{name}.{field}")


def split(raw: bytes) -> dict[str, bytes]:
    """The fields of the main body and of each subsection, by name, in the order of the stream."""
    parts, at = {MAIN: raw[:MAIN_SIZE]}, MAIN_SIZE
    while at < len(raw):
        assert raw[at] == 5
        name = raw[at + 2 : at + 2 + raw[at + 1]].decode()
        at += 2 + len(name)
        assert raw[at : at + 4] == b"\0\0\0\1"
        parts[name] = raw[at + 4 : at + 4 + size_of(name)]
        at += 4 + size_of(name)
    return parts


def join(parts: dict[str, bytes]) -> bytes:
    raw = b""
    for name, data in parts.items():
        raw += (b"" if name == MAIN else bytes([5, len(name)]) + name.encode() + b"\0\0\0\1") + data
    return raw


def changed(raw: bytes, *edits: tuple[str, str, int, int]) -> bytes:
    """The payload with `(description, field, index, value)` put in place; an absent subsection is added as zeros."""
    parts = split(raw)
    for name, field, index, value in edits:
        data = parts.get(name, bytes(size_of(name)))
        offset, size, signed = place(name, field, index)
        parts[name] = data[:offset] + value.to_bytes(size, "big", signed=signed) + data[offset + size :]
    return join(parts)


def values(obj: Cpu) -> dict[str, Any]:
    """Every register of the `cpu` section, comparable."""
    found = {r.attribute: getattr(obj, r.attribute) for _, group in GROUPS for r in group.registers}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}
