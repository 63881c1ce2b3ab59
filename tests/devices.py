"""What tests of single devices share: saving and loading one description, its state as plain numbers, refusals.

LAYOUTS and HUB_LAYOUTS are the specification's own tables of the devices (spec/e2k-machine.md 3.1 to 3.6, 3.7 to 3.10),
written down apart from the descriptions: `pack` makes the bytes of a payload from them, so the two can be compared.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import strategies as st

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k.cpu.parts import Preset
from qmig_e2k.e2k.hooks import CheckError
from qmig_e2k.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmig_e2k.e2k import Machine
    from qmig_e2k.vmstate import VMStateDescription

State = dict[str, Any]

RANGES = {
    "B": (0, (1 << 8) - 1),
    "H": (0, (1 << 16) - 1),
    "I": (0, (1 << 32) - 1),
    "Q": (0, (1 << 64) - 1),
    "i": (-(1 << 31), (1 << 31) - 1),
    "q": (-(1 << 63), (1 << 63) - 1),
}
"""Least and greatest number of each code in the tables below."""


@cache
def number(code: str) -> st.SearchStrategy[int]:
    """Any content of one register; extremes and single bits are frequent."""
    low, high = RANGES[code]
    bits = st.integers(0, high.bit_length() - 1).map(lambda bit: 1 << bit)
    return st.integers(low, high) | st.sampled_from([low, high]) | bits


LAYOUTS = {
    "apic": """apicbase:I id:B arb_id:B tpr:B spurious_vec:I log_dest:B dest_mode:B isr:8I tmr:8I irr:8I lvt:6I esr:I
        icr:2I divide_conf:I count_shift:i initial_count:I initial_count_load_time:q next_time:q timer_expiry:q""",
    "apic_sipi": "sipi_vector:i wait_for_sipi:i",
    "apic/e2k": """nm_timer_lvtt:I nm_timer_init:I nm_timer_cur:I nm_timer_div:I lvt2:I lvt3:I lvt4:I m_erm:I nm:I
        nm_timer_expiry:q""",
    "cepic": """ctrl:I id:I cpr:I esr:I esr2:I cir:I pmirr:16Q pnmirr:I esr_new:I icr:Q timer_lvtt:I timer_init:I
        timer_cur:I timer_div:I nm_timer_lvtt:I nm_timer_init:I nm_timer_cur:I nm_timer_div:I svr:I pnmirr_mask:I
        vect_inta:I timer_expiry:q nm_timer_expiry:q wait_for_startup:I""",
    "cepic/hv": "ctrl2:I dat:Q epic_int:I epic_int2:Q gstbase:Q gstid:I guest_page:4096B",
    "ioapic": "id:B ioregsel:B unused:8B irr:I ioredtbl:24Q",
    "ioepic": "id:I int_ctrl:64I msg_data:64I addr_high:64I addr_low:64I int_rid:64I irr:Q line_level:Q",
    "e2k-sic": """rt_lcfg:4I rt_mhi:4I rt_mlo:4I rt_pcim:4I rt_pciio:4I rt_pcimp_b:4I rt_pcimp_e:4I rt_pcicfgb:I
        rt_msi:Q rt_ln:I rt_ioapic:4I rt_ioapicintb:I rt_pcicfged:I rt_lapicintb:I st_p:I st_core:16I pwr_mgr:I
        io_vid:I io_csr:I io_str:I iol_csr:I""",
    "e2k-sic/prepic": "ctrl:I id:I ctrl2:I err_stat:I err_int:I err_msg:Q mcr:I mid:I mar:2Q linp:6I",
    "e2k-sic/hc": "hc_ctrl:I hc_mcr:I hc_mid:I hc_mar:2Q ioapic_eoi:I",
    "e2k-sic/mc": "mc:192I",
    "e2k-sic/hmu": "hmu:57I",
    "e2k-sic/ic": "ir:2I mr:2I",
    "e2k-sic/mon": "sccfg:I sic_mcr:I sic_mar:2Q sic_int:I",
    "e2k-sic/pcs": "pcs_ctrl:10I",
    "e2k-sic/bc": "bc:31I",
    "e2k-sic/rdma": "vid:I cs:I",
    "e2k-sic/ipcc": "csr:3I str:3I",
    "e2k-sic/pmc": "freq_cfg:I freq_steps:I freq_c2:I core_ctrl:16I core_sleep:16I",
    "e2k-sic/l3": "l3_ctrl:I l3:8I",
    "e2k-sic/link1": "rt_ioapic:4I io_vid:I io_csr:I io_str:I iol_csr:I rdma_vid:I rdma_cs:I",
    "e2k-iommu": "ctrl:I ptbar:Q dtbar:Q err:Q err_info:Q flush_pending:I",
    "e2k-iommu/mon": "mcr:I mid:I mar:2Q",
    "e2k-iommu/v6": "cmd_c:Q cmd_d:Q",
    "e2k-iommu/edbc": "ctrl:I ba:Q dtba:Q err:Q err_info:Q",
    "e2k-iommu/embedded": "unit:70Q",
}

HUB_LAYOUTS = {
    "PCIHost": "config_reg:I",
    "PCIBUS": "nirq:i irq_count:4i",
    "PCIDevice": "version_id:i config:256B irq_state:4I",
    "iohub": "parent:@PCIDevice",
    "iohub-pcibridge": "parent:@PCIDevice",
    "escc-pci": "parent:@PCIDevice",
    "escc_chn": """vmstate_dummy:I reg:I rxint:I txint:I rxint_under_svc:I txint_under_svc:I rx:B tx:B wregs:16B
        rregs:16B""",
    "escc": "chn:2@escc_chn",
    "lmscon": "tx:B",
    "e2k-lt": """counter_limit:I counter_start:I counter:I counter_control:I counter_base_ns:q counter_timer:q
        power_counter:Q reset_counter:Q latch_power_h:I latch_reset_h:I irq_level:I""",
    "e2k-lt/wd": "wd_counter:I wd_prescaler:I wd_limit:I wd_control:I wd_base_ns:q wd_timer:q",
    "e2k-spmc": """parent:@PCIDevice pm1_sts:I pm_tmr_offset:q g_state:I s_state:I atnsus:I purst:I overflow_timer:q
        sci_state:I""",
    "e2k-i2c-spi": "parent:@PCIDevice ctrl:16I data:64B",
    "e2k-gpio": "parent:@PCIDevice regs:8I inputs:I",
    "mc146818rtc": """cmos_data:128B cmos_index:B unused:28B periodic_timer:q next_periodic_time:q unused:24B
        irq_coalesced:I period:I base_rtc:Q last_update:Q offset:q update_timer:q next_alarm_time:Q""",
    "mc146818rtc/irq_reinject_on_ack_count": "irq_reinject_on_ack_count:H",
}
"""`@NAME`: the fields of another table, held by the same object; `2@NAME`: by two objects in a list."""


def layout(name: str) -> list[tuple[str, str]]:
    """Name and `struct` code of each field."""
    return [(field, code) for field, code in (row.split(":") for row in (LAYOUTS | HUB_LAYOUTS)[name].split())]


def pack(name: str, values: Mapping[str, Any]) -> bytes:
    """The payload of a description without its subsections; what is not in `values` is zero, one number is for all."""
    out = b""
    for field, code in layout(name):
        number, nested, inner = code.partition("@")
        if nested:
            out += b"".join(pack(inner, held) for held in (values[field] if number else [values]))
            continue
        count, value = int(code[:-1] or 1), values.get(field, 0)
        out += struct.pack(f">{count}{code[-1]}", *([value] * count if isinstance(value, int) else value))
    return out


def subsection(name: str, values: Mapping[str, Any]) -> bytes:
    """A subsection of version 1 with its header."""
    return b"\x05" + bytes([len(name)]) + name.encode() + struct.pack(">I", 1) + pack(name, values)


def save(description: VMStateDescription, obj: Any) -> bytes:
    """The payload that is written for `obj`."""
    writer = Writer()
    vmstate.save(description, obj, writer)
    return writer.getvalue()


def load(description: VMStateDescription, obj: Any, raw: bytes, version: int | None = None) -> None:
    """Load a payload that must be wholly consumed."""
    reader = Reader(raw)
    number = description.version_id if version is None else version
    vmstate.load(description, obj, reader, number, path=f"{description.name}/0")
    assert reader.offset == len(raw)


def refused(description: VMStateDescription, obj: Any, raw: bytes, version: int | None = None) -> StreamError:
    """The error with which a payload is refused; `obj` has its old state again."""
    before = state(description, obj)
    with pytest.raises(StreamError) as caught:
        load(description, obj, raw, version)
    assert state(description, obj) == before
    return caught.value


def told(error: StreamError) -> tuple[str, str, str]:
    """Code, text and place of a refused check."""
    cause = error.__cause__
    assert isinstance(cause, CheckError), error
    assert str(cause) == error.message
    return cause.code, error.message, error.path


def own_rows(description: VMStateDescription) -> list[Any]:
    """The fields of the main body that have bytes and a value, those of the common part of PCI devices too."""
    own: list[Any] = []
    for row in description.fields:
        if getattr(row, "vmsd", None) is not None and not row.attribute:
            own += rows(row.vmsd)  # type: ignore[attr-defined]
        elif not isinstance(row, Preset) and row.type_name != "unused_buffer":
            own.append(row)
    return own


def rows(description: VMStateDescription) -> list[Any]:
    """All fields with a value, those of subsections too."""
    return own_rows(description) + [row for sub in description.subsections for row in rows(sub)]


def plain(value: Any) -> Any:
    """A number, or a list of numbers, or a list of states."""
    if isinstance(value, list) and value and hasattr(value[0], "__dict__"):
        return [{name: plain(held) for name, held in vars(element).items()} for element in value]
    return value if isinstance(value, int) else list(map(int, value))


def state(description: VMStateDescription, obj: Any) -> State:
    """Every value that a description knows of, by attribute."""
    return {row.attribute: plain(getattr(obj, row.attribute)) for row in rows(description)}


def machine_state(machine: Machine) -> dict[str, State]:
    """Every value of every device of a machine, by description and number."""
    made = {}
    for index, device in enumerate(machine.devices):
        made[f"{index} {device.description.name}"] = state(device.description, device.obj)
    return made


def put(obj: Any, attribute: str, value: Any) -> None:
    """Set a register; the containers of arrays stay, a dict sets single elements, one number stands for all."""
    have = getattr(obj, attribute)
    if isinstance(have, int):
        setattr(obj, attribute, value)
    elif isinstance(have, list) and isinstance(value, list) and isinstance(value[0], dict):
        for element, values in zip(have, value, strict=True):
            change(element, values)
    elif isinstance(value, dict):
        for index, element in value.items():
            have[index] = element
    else:
        have[:] = [value] * len(have) if isinstance(value, int) else value


def change(obj: Any, values: Mapping[str, Any]) -> Any:
    """`obj` with registers set."""
    for attribute, value in values.items():
        put(obj, attribute, value)
    return obj


def present(description: VMStateDescription, obj: Any) -> list[str]:
    """Names of the subsections that are written."""
    return [sub.name for sub in description.subsections if sub.needed is None or sub.needed(obj)]


def fill(description: VMStateDescription, obj: Any, start: int = 1) -> None:
    """Give every register, and every element of an array, a value of its own that fits in a byte or more."""
    number = start
    for row in rows(description):
        have = getattr(obj, row.attribute)
        if isinstance(have, int):
            setattr(obj, row.attribute, number % 251 + 1)
            number += 1
            continue
        top = 251 if isinstance(have, bytearray) else np.iinfo(have.dtype).max
        for index in range(len(have)):
            have[index] = number % top
            number += 1
