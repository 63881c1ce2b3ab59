"""Streams that a real QEMU has just written: every device is decoded, and RAM is what that QEMU holds."""

from __future__ import annotations

import hashlib
import json

import pytest

from qmig_e2k.analyze import analyze
from support import mixed_ram

SIZE = 32 << 20
MACHINES = {
    "none": ("none", []),
    "bare pc": ("pc", []),
    "pc with devices": (
        "pc",
        "-device VGA -device e1000 -device virtio-rng-pci -device virtio-balloon-pci -device virtio-serial-pci "
        "-device usb-ehci -device usb-tablet -device intel-hda -device hda-duplex -device lsi53c895a -device sb16 "
        "-device isa-serial,chardev=none -chardev null,id=none -device i6300esb -device tpci200 -smp 2".split(),
    ),
    "q35 with devices": (
        "q35",
        "-device qxl-vga -device e1000e -device ahci -device nec-usb-xhci -device usb-kbd -device usb-mouse "
        "-device pcie-root-port,id=root1 -device virtio-net-pci,bus=root1 -device rtl8139 -smp 3".split(),
    ),
    "isapc": ("isapc", "-device ne2k_isa -device isa-vga -device ib700".split()),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("coding", ["plain", "compress"])
def test_every_device(qemu, tmp_path, name, coding):
    machine, arguments = MACHINES[name]
    content = tmp_path / "content"
    content.write_bytes(mixed_ram(SIZE - (1 << 20), 3))
    loader = ["-device", f"loader,file={content},addr={1 << 20},force-raw=on"]
    peer = qemu("-m", f"{SIZE >> 20}M", *arguments, *loader, machine=machine)
    if coding == "compress":
        peer.set_capabilities(compress=True)
    path = tmp_path / "stream"
    peer.command("migrate", uri=f"exec:cat > {path}")
    peer.wait_migration("completed")

    made = analyze(path)
    assert (made.complete, made.notes) == (True, [])
    listed = json.loads(path.read_bytes()[made.description["offset"] + 5 :])["devices"]
    assert [(d.name, d.instance_id) for d in made.devices] == [(d["name"], d["instance_id"]) for d in listed]
    for device, listing in zip(made.devices, listed, strict=True):
        assert device.source == "description", device.note
        assert not device.disagreements
        assert {field.name for field in device.body.fields} == {field["name"] for field in listing["fields"]}
    assert bool(made.pages["compressed"]) is (coding == "compress")

    memory = peer.memory(SIZE)
    ((index, main),) = ((i, block) for i, block in enumerate(made.blocks) if block.name in {"ram", "pc.ram"})
    assert main.size == SIZE
    # below 1 MiB a pc has its firmware and video memory in front of RAM
    seen_from = 0 if machine == "none" else 1 << 20
    hashed = hashlib.sha256()
    for at in range(seen_from, SIZE, 1 << 20):
        hashed.update(made.read_ram(index, at, 1 << 20))
    assert hashed.hexdigest() == hashlib.sha256(memory[seen_from:]).hexdigest()
    if not seen_from:
        assert main.sha256 == hashed.hexdigest()
