"""Descriptions of device state, and the engine that saves and loads them.

A device is a plain Python object. A `VMStateDescription` lists what of it travels:

    timer_state = VMStateDescription(
        "my-timer", version_id=2, minimum_version_id=1,
        fields=[uint32("control"), timer("deadline"), array("latch", uint16, 4, version=2)],
        subsections=[VMStateDescription("my-timer/irq", fields=[bool_("pending")], needed=lambda t: t.pending)],
    )

Fields are made by the element kinds (`uint32("name")`) and by the constructors of `fields`. Values may be attributes
or dict members; arrays may be lists or numpy arrays (converted in bulk, filled in place), buffers bytes or bytearrays.
"""

from qmig_e2k.vmstate.description import Format, VMStateDescription, VMStateField
from qmig_e2k.vmstate.engine import load, save
from qmig_e2k.vmstate.fields import (
    array,
    array2d,
    array_of_pointer,
    bitmap,
    buffer,
    gtree,
    pointer,
    qlist,
    qtailq,
    struct,
    unused,
    unused_varray,
    validate,
    varray,
    vbuffer,
    vstruct,
    with_tmp,
)
from qmig_e2k.vmstate.json import JsonObject, Members
from qmig_e2k.vmstate.kinds import (
    bool_,
    bool_strict,
    capability,
    cpu_double_u,
    fd,
    float64,
    int8,
    int16,
    int32,
    int32_equal,
    int32_positive_le,
    int64,
    nullptr,
    timer,
    uint8,
    uint8_equal,
    uint16,
    uint16_equal,
    uint32,
    uint32_equal,
    uint64,
    uint64_equal,
)

__all__ = [
    "Format",
    "JsonObject",
    "Members",
    "VMStateDescription",
    "VMStateField",
    "array",
    "array2d",
    "array_of_pointer",
    "bitmap",
    "bool_",
    "bool_strict",
    "buffer",
    "capability",
    "cpu_double_u",
    "fd",
    "float64",
    "gtree",
    "int8",
    "int16",
    "int32",
    "int32_equal",
    "int32_positive_le",
    "int64",
    "load",
    "nullptr",
    "pointer",
    "qlist",
    "qtailq",
    "save",
    "struct",
    "timer",
    "uint8",
    "uint8_equal",
    "uint16",
    "uint16_equal",
    "uint32",
    "uint32_equal",
    "uint64",
    "uint64_equal",
    "unused",
    "unused_varray",
    "validate",
    "varray",
    "vbuffer",
    "vstruct",
    "with_tmp",
]
