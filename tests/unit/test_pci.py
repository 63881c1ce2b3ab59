"""PCI host, buses, hub functions, ESCC (spec/e2k-machine.md 3.7 to 3.9).

Reset values, layout, checks, and that QEMU's own bytes load and are written again.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from device_vectors import pci_config
from devices import HUB_LAYOUTS, change, layout, load, pack, refused, save, state, told
from qmig_e2k import vmstate
from qmig_e2k._core import Writer
from qmig_e2k.e2k import MODELS
from qmig_e2k.e2k import devices as e2k
from qmig_e2k.e2k.devices.pci import bus_pin, host_line
from qmig_e2k.errors import MigrationError
from support import STREAMS

if TYPE_CHECKING:
    from qmig_e2k.vmstate import VMStateDescription

OLD, NEW = MODELS["e8c"], MODELS["e16c"]
# description, new device, path, configuration space after reset
FUNCTIONS = {
    "iohub": (e2k.IOHUB, e2k.IoHub, "0000:00:01.0", pci_config(0x8017, "0200000600")),
    "bridge": (e2k.IOHUB_PCIBRIDGE, e2k.PciBridge, "0000:00:00.0", pci_config(0x8000, "1000040681")),
    "escc-pci": (e2k.ESCC_PCI, e2k.EsccPci, "0000:00:02.2", pci_config(0x8019, "0102000780", pin=1)),
    "spmc": (e2k.SPMC, e2k.Spmc, "0000:00:02.1", pci_config(0x800E, "0000800880", {0x52: 0x37, 0x56: 0x37})),
    "i2c-spi": (e2k.I2C_SPI, lambda: e2k.I2cSpi(OLD), "0000:00:02.3", pci_config(0x8018, "0000050C80", pin=1)),
    "i2c-spi-v6": (e2k.I2C_SPI, lambda: e2k.I2cSpi(NEW), "0000:00:02.3", pci_config(0x8028, "0000050C80", pin=1)),
    "gpio": (e2k.GPIO, lambda: e2k.Gpio(OLD), "0000:00:02.4", pci_config(0x8014, "0000800880", pin=1)),
    "gpio-v6": (e2k.GPIO, lambda: e2k.Gpio(NEW), "0000:00:02.4", pci_config(0x8025, "0000800880", pin=1)),
}
IDENTITY = [*range(4), *range(8, 12), 14, 52, 61]
"""Bytes of configuration space that no guest can change."""


def bad_config(name: str, at: int) -> Any:
    """The error for a stream whose byte `at` of configuration space differs."""
    description, new, *_ = FUNCTIONS[name]
    raw = bytearray(save(description, new()))
    raw[4 + at] ^= 0x10
    return refused(description, new(), bytes(raw))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reset_and_layout_of_functions(name: str) -> None:
    description, new, path, config = FUNCTIONS[name]
    device = new()
    assert device.path == path
    assert (description.version_id, description.minimum_version_id, description.priority) == (1, 1, 0)
    assert [row.name for row in description.fields] == [field for field, _ in layout(description.name)]
    raw = save(description, device)
    assert raw[:276] == pack("PCIDevice", {"version_id": 2, "config": config})
    assert raw == pack(description.name, vars(device))
    views = device.config, device.irq_state
    device.config[64:72], device.irq_state[3], device.version_id = b"12345678", 1, 1
    assert save(description, device) != raw
    device.reset()
    assert save(description, device) == raw
    assert (device.config is views[0], device.irq_state is views[1]) == (True, True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_p01_identity_must_be_equal_and_all_else_may_differ(name: str) -> None:
    description, new, path, _ = FUNCTIONS[name]
    compared = IDENTITY + ([] if name == "bridge" else [44, 45, 46, 47])
    for at in compared:
        expected = f"pci {path}: config byte {at:#x} differs", f"{description.name}/0/parent.config"
        assert told(bad_config(name, at)) == ("P01", *expected)
    assert told(bad_config(name, 6))[0] == "P01"  # whether there are capabilities
    source, target = new(), new()
    open_to_guests = [at for at in range(256) if at not in compared and at != 6]
    if name == "escc-pci":
        source.config[20], open_to_guests = 0xFC, [at for at in open_to_guests if at != 20]
    change(source, {"config": {at: at ^ 0xA5 for at in open_to_guests}})
    if name == "spmc":
        source.pm1_sts, source.atnsus, source.purst = 1, 2, 3
    load(description, target, save(description, source))
    assert state(description, target) == state(description, source)


def test_p01_the_size_of_a_window_is_compared_its_address_not() -> None:
    source = change(e2k.EsccPci(), {"config": {0x14: 0xFC, 0x15: 0xFF, 0x17: 0x80}})
    target = e2k.EsccPci()
    load(e2k.ESCC_PCI, target, save(e2k.ESCC_PCI, source))
    assert target.config[0x14:0x18] == b"\xfc\xff\0\x80"
    source.config[0x14] |= 2
    assert told(refused(e2k.ESCC_PCI, e2k.EsccPci(), save(e2k.ESCC_PCI, source)))[:2] == (
        "P01",
        "pci 0000:00:02.2: config byte 0x14 differs",
    )


def test_p01_errors_that_the_guest_clears_and_masks_of_an_emulators_own() -> None:
    plain = SimpleNamespace(
        path="0000:00:05.0", version_id=2, config=bytearray(256), irq_state=[0] * 4, cmask=b"\xff" * 256
    )
    plain.wmask, plain.w1cmask = b"\0" * 32 + b"\xff" + b"\0" * 223, b"\0" * 33 + b"\x0f" + b"\0" * 222
    source = SimpleNamespace(**vars(plain) | {"config": bytearray(256)})
    source.config[32], source.config[33] = 0x5A, 0x0C
    load(e2k.PCI_DEVICE, plain, save(e2k.PCI_DEVICE, source))
    assert plain.config == source.config
    source.config[33] = 0x1C
    error = refused(e2k.PCI_DEVICE, plain, save(e2k.PCI_DEVICE, source))
    assert told(error) == ("P01", "pci 0000:00:05.0: config byte 0x21 differs", "PCIDevice/0/config")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("level", [2, (1 << 32) - 1])
def test_p02_pins_are_low_or_high(name: str, level: int) -> None:
    description, new, path, _ = FUNCTIONS[name]
    for pin in range(4):
        good = change(new(), {"irq_state": {pin: 1}})
        target = new()
        load(description, target, save(description, good))
        assert list(target.irq_state) == [int(i == pin) for i in range(4)]
        error = refused(description, new(), save(description, change(new(), {"irq_state": {pin: level}})))
        expected = f"pci {path}: bad irq state", f"{description.name}/0/parent.irq_state"
        assert told(error) == ("P02", *expected)


def test_version_of_the_common_part() -> None:
    source, target = change(e2k.IoHub(), {"version_id": 1}), e2k.IoHub()
    load(e2k.IOHUB, target, save(e2k.IOHUB, source))
    target.reset()
    assert target.version_id == 2
    for version in (3, -1):
        error = refused(e2k.IOHUB, target, save(e2k.IOHUB, change(e2k.IoHub(), {"version_id": version})))
        assert error.path == "iohub/0/parent.version_id"


def test_a_pci_express_device_has_4096_bytes() -> None:
    def express() -> Any:
        device = e2k.IoHub()
        device.config = bytearray(device.config) + bytes(4096 - 256)
        return device

    source, target = express(), express()
    source.config[4095] = 7
    raw = save(e2k.IOHUB, source)
    assert len(raw) == 4 + 4096 + 16
    load(e2k.IOHUB, target, raw)
    assert target.config[4095] == 7


@pytest.mark.parametrize(
    ("path", "pins"),
    [
        ("0000:00:00.0", [0, 1, 2, 3]),
        ("0000:00:02.2", [2, 3, 0, 1]),
        ("0000:00:1f.7", [3, 0, 1, 2]),
        ("0000:00:01.0:03.1", [0, 1, 2, 3]),
        ("0000:00:00.0:03.1", [3, 0, 1, 2]),
    ],
)
def test_pins_turn_by_the_slots_on_the_way(path: str, pins: list[int]) -> None:
    assert [bus_pin(path, pin) for pin in range(4)] == pins


def test_vector_31_pin_a_of_slot_2_is_line_17() -> None:
    assert host_line(bus_pin("0000:00:02.2", 0)) == 17
    assert [host_line(pin) for pin in range(4)] == [19, 16, 17, 18]


# -- host and buses


def test_host_and_buses() -> None:
    host, target = change(e2k.PciHost(), {"config_reg": 0x8000_1234}), e2k.PciHost()
    raw = save(e2k.PCI_HOST, host)
    assert raw == pack("PCIHost", {"config_reg": 0x8000_1234})
    load(e2k.PCI_HOST, target, raw)
    assert target.config_reg == 0x8000_1234
    target.reset()
    assert target.config_reg == 0
    assert e2k.PCI_HOST.needed is not None
    assert e2k.PCI_HOST.needed(target)
    target.migrate_config_reg = False
    assert not e2k.PCI_HOST.needed(target)

    assert e2k.PCI_BUS.priority == 2
    assert save(e2k.PCI_BUS, e2k.PciBus(0)) == b"\0" * 4
    bus = change(e2k.PciBus(4), {"irq_count": [1, 2, 3, 4]})
    assert save(e2k.PCI_BUS, bus) == pack("PCIBUS", {"nirq": 4, "irq_count": [1, 2, 3, 4]})
    view = bus.irq_count
    bus.reset()
    assert bus.irq_count is view
    assert not bus.irq_count.any()
    error = refused(e2k.PCI_BUS, e2k.PciBus(0), save(e2k.PCI_BUS, bus))
    assert (error.path, error.message) == ("PCIBUS/0/nirq", "0x4 in the stream, 0x0 here")


# -- what QEMU writes


def sections() -> dict[str, dict[str, Any]]:
    """Sections of `qemu-system-x86_64 -M pc`, by name: description and payload."""
    recorded = json.loads((STREAMS / "sections" / "qemu7-pc.json").read_text())
    return {row["description"]["vmsd_name"]: row for row in recorded}


def like_qemu(description: VMStateDescription, obj: Any, payload: bytes) -> dict[str, Any]:
    """Load QEMU's bytes, write them again, and return how they are described."""
    load(description, obj, payload)
    writer = Writer()
    made = vmstate.save(description, obj, writer)
    assert writer.getvalue() == payload
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize(
    ("description", "obj"),
    [(e2k.PCI_HOST, e2k.PciHost()), (e2k.PCI_BUS, e2k.PciBus(4)), (e2k.RTC, e2k.Rtc())],
    ids=["PCIHost", "PCIBUS", "mc146818rtc"],
)
def test_bytes_and_description_are_qemus(description: VMStateDescription, obj: Any) -> None:
    row = sections()[description.name]
    made = like_qemu(description, obj, bytes.fromhex(row["payload"]))
    wanted = row["description"]
    assert {"name": wanted["name"], "instance_id": 0} | made == wanted


def test_the_common_part_of_devices_is_qemus() -> None:
    row = sections()["I440FX"]
    device = e2k.IoHub()
    device.cmask = bytes(256)
    made = like_qemu(e2k.PCI_DEVICE, device, bytes.fromhex(row["payload"])[:276])
    (parent,) = (field for field in row["description"]["fields"] if field["name"] == "parent_obj")
    assert made == parent["struct"]


# -- ESCC


def test_escc_reset_and_layout() -> None:
    device = e2k.Escc()
    channel = {
        "wregs": [0, 0, 0, 0, 4, 0, 0, 0, 0, 0xC0, 0, 8, 0, 0, 0x30, 0xF8],
        "rregs": [0x44, 7, *[0] * 14],
    }
    raw = save(e2k.ESCC, device)
    assert raw == pack("escc", {"chn": [channel, channel]})
    assert len(raw) == 116
    assert (e2k.ESCC.version_id, e2k.ESCC.minimum_version_id) == (2, 1)
    view = device.chn[1].wregs
    device.chn[0].rx, device.chn[1].wregs[3] = 5, 6
    device.reset()
    assert save(e2k.ESCC, device) == raw
    assert device.chn[1].wregs is view
    load(e2k.ESCC, device, b"", version=1)


def test_channel_b_comes_first() -> None:
    device = change(e2k.Escc(), {"chn": [{"rx": 0xB0}, {"rx": 0xA0}]})
    raw = save(e2k.ESCC, device)
    assert (raw[24], raw[58 + 24]) == (0xB0, 0xA0)


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("reg", [15, 16, (1 << 32) - 1])
def test_k01_selected_register(channel: int, reg: int) -> None:
    source, target = e2k.Escc(), e2k.Escc()
    source.chn[channel].reg = reg
    raw = save(e2k.ESCC, source)
    if reg < 16:
        load(e2k.ESCC, target, raw)
        assert target.chn[channel].reg == reg
        return
    code, text, path = told(refused(e2k.ESCC, target, raw))
    assert (code, text) == ("K01", "escc: bad register index")
    assert path == f"escc/0/chn[{channel}].reg"


def test_only_serial_channels_migrate() -> None:
    device = e2k.Escc()
    device.chn[1].channel_type = "mouse"
    with pytest.raises(MigrationError, match="escc: channel type not migratable"):
        save(e2k.ESCC, device)


# -- hooks


def own(description: VMStateDescription, obj: Any) -> Any:
    """An emulator's object, not one of our classes, that has the attributes of `obj` and both methods."""
    calls: list[Any] = []
    facts = vars(obj) | {"before_save": lambda: calls.append("save"), "after_load": calls.append, "calls": calls}
    if description is e2k.ESCC:
        facts["chn"] = [SimpleNamespace(**vars(channel)) for channel in obj.chn]
    return SimpleNamespace(**facts)


@pytest.mark.parametrize(
    ("description", "new", "version"),
    [
        *((description, new, 1) for description, new, *_ in FUNCTIONS.values()),
        (e2k.PCI_HOST, e2k.PciHost, 1),
        (e2k.PCI_BUS, lambda: e2k.PciBus(4), 1),
        (e2k.ESCC, e2k.Escc, 2),
        (e2k.LT, e2k.Lt, 1),
        (e2k.RTC, e2k.Rtc, 3),
        (e2k.LMSCON, e2k.Lmscon, 1),
    ],
)
def test_an_emulators_own_object_is_called_before_and_after(
    description: VMStateDescription, new: Any, version: int
) -> None:
    source, target = own(description, new()), own(description, new())
    raw = save(description, source)
    assert raw == save(description, new())
    load(description, target, raw)
    assert (source.calls, target.calls) == (["save"], [version])
    target.after_load = lambda version: [][version]
    assert refused(description, target, raw).kind == "device-state"


def test_every_table_of_the_specification_has_a_description() -> None:
    described = [e2k.PCI_HOST, e2k.PCI_BUS, e2k.PCI_DEVICE, e2k.ESCC, e2k.LT, e2k.RTC, e2k.LMSCON]
    described += [description for description, *_ in FUNCTIONS.values()]
    described += [row.element for row in e2k.ESCC.fields]  # type: ignore[attr-defined]
    parts = [part for description in described for part in (description, *description.subsections)]
    assert {part.name for part in parts} == set(HUB_LAYOUTS)
    assert np.dtype(np.int32) == e2k.PciBus(4).irq_count.dtype
