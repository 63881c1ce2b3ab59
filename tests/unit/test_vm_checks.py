"""`Vm.check` names what would stop a migration, `Vm.notes` what is worth knowing; machines with devices left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qmig_e2k import MigrationError, Vm, e2k
from qmig_e2k.testing import filled
from qmig_e2k.vmstate import (
    VMStateDescription,
    array,
    array_of_pointer,
    bitmap,
    bool_,
    buffer,
    qtailq,
    struct,
    uint8,
    uint16,
    uint32,
    unused,
    validate,
    varray,
    vbuffer,
    with_tmp,
)

RAM = 16 << 20
INNER = VMStateDescription("inner", fields=[uint8("x")])
PART = VMStateDescription("dev/part", fields=[uint8("p"), array("q", uint16, 2)], needed=lambda dev: dev.p)
EVERYTHING = VMStateDescription(
    "dev",
    fields=[
        uint32("a"),
        uint32("deep", attr="inside.deep"),
        array("words", uint32, 4),
        varray("some", uint8, "a"),
        array("flags", bool_, 2),
        buffer("raw", 4),
        vbuffer("sized", "a"),
        bitmap("bits", "a"),
        struct("one", INNER),
        array("many", INNER, 2),
        array_of_pointer("pointers", INNER, 2),
        qtailq("list", INNER, dict),
        unused(4),
        validate("sane", lambda dev, version: True),
        with_tmp(INNER, lambda dev: SimpleNamespace(x=1)),
        uint8("never", version=2, exists=lambda dev, version: False),
    ],
    subsections=[PART],
    reads=("index",),
)


def good(**changes: Any) -> SimpleNamespace:
    inner = SimpleNamespace(x=1)
    made = {
        "index": 0,
        "a": 2,
        "inside": SimpleNamespace(deep=1),
        "words": np.zeros(4, np.uint32),
        "some": [1, 2],
        "flags": [True, False],
        "raw": bytearray(4),
        "sized": b"ab",
        "bits": [0],
        "one": inner,
        "many": [inner, inner],
        "pointers": [None, inner],
        "list": [],
        "p": 0,
    }
    return SimpleNamespace(**{name: value for name, value in (made | changes).items() if value is not ...})


def vm_with(obj: Any, description: VMStateDescription = EVERYTHING, **options: Any) -> Vm:
    vm = Vm("none", **options)
    vm.add_ram("ram", size=4096)
    vm.register(description, obj)
    return vm


ADD = "; add it, or name its place by mapping= at registration"


def test_nothing_to_say() -> None:
    vm = vm_with(good(), emulator=SimpleNamespace(stop=None, start=None, reset=None))
    assert (vm.check(), vm.notes()) == ([], [])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"index": ...}, "index: there is no index of SimpleNamespace" + ADD),
        ({"a": "x"}, "a: a of SimpleNamespace is 'x', no uint32: "),
        ({"a": 1 << 32}, "a: a of SimpleNamespace is 4294967296, no uint32: "),
        ({"inside": SimpleNamespace()}, "deep: there is no inside.deep of SimpleNamespace" + ADD),
        ({"inside": ...}, "deep: there is no inside.deep of SimpleNamespace" + ADD),
        ({"words": ...}, "words: there is no words of SimpleNamespace" + ADD),
        ({"words": np.zeros(3, np.uint32)}, "words: words of SimpleNamespace has 3 elements, 4 are needed"),
        (
            {"words": np.zeros(4, np.int32)},
            "words: words of SimpleNamespace is an array of int32, which cannot hold uint32",
        ),
        ({"words": None}, "words: words of SimpleNamespace is None, no array"),
        ({"some": [1]}, "some: some of SimpleNamespace has 1 elements, 2 are needed"),
        (
            {"flags": np.zeros(2, "datetime64[s]")},
            "flags: flags of SimpleNamespace is an array of datetime64[s], which cannot",
        ),
        ({"raw": 5}, "raw: raw of SimpleNamespace is a int; a bytearray is needed"),
        ({"raw": b"abc"}, "raw: raw of SimpleNamespace has 3 elements, 4 are needed"),
        ({"sized": b"a"}, "sized: sized of SimpleNamespace has 1 elements, 2 are needed"),
        ({"bits": ...}, "bits: there is no bits of SimpleNamespace" + ADD),
        ({"one": SimpleNamespace()}, "one.x: there is no x of SimpleNamespace" + ADD),
        ({"one": None}, "one: there is no one of SimpleNamespace" + ADD),
        ({"many": [SimpleNamespace(x=1)]}, "many: many of SimpleNamespace has 1 elements, 2 are needed"),
        ({"many": [SimpleNamespace(x=1), {}]}, "many[1].x: there is no x of the dict" + ADD),
        ({"many": ...}, "many: there is no many of SimpleNamespace" + ADD),
        ({"pointers": [None]}, "pointers: pointers of SimpleNamespace has 1 elements, 2 are needed"),
        ({"list": ...}, "list: there is no list of SimpleNamespace" + ADD),
        ({"p": 1}, "dev/part.q: there is no q of SimpleNamespace" + ADD),
        ({"p": 1, "q": [1]}, "dev/part.q: q of SimpleNamespace has 1 elements, 2 are needed"),
    ],
)
def test_what_an_object_lacks(change: dict[str, Any], text: str) -> None:
    vm = vm_with(good(**change))
    assert vm.check()[0].startswith(f"dev/0/{text}")
    dependent = 4 if "a" in change else 1
    assert len(vm.check()) == dependent


def test_tests_that_cannot_be_asked() -> None:
    def broken(*_: object) -> bool:
        raise ValueError("what is this?")

    vm = vm_with(good(p=...))
    assert vm.check() == ["dev/0/dev/part.p: there is no p of SimpleNamespace" + ADD, *vm.check()[1:]]
    tests = VMStateDescription(
        "dev",
        fields=[uint8("a", exists=broken), varray("v", uint8, "nothing")],
        subsections=[VMStateDescription("dev/part", fields=[uint8("p")], needed=broken)],
    )
    no_nothing = "AttributeError: 'types.SimpleNamespace' object has no attribute 'nothing'"
    assert vm_with(good(v=[]), tests).check() == [
        "dev/0/a: its test cannot be asked: what is this?",
        f"dev/0/v: the length of v of SimpleNamespace cannot be told: {no_nothing}",
        "dev/0/dev/part: needed cannot be asked: what is this?",
    ]


def test_what_a_hook_may_still_make_is_only_told() -> None:
    def prepare(dev: Any) -> None:
        dev.a = 1

    description = VMStateDescription("dev", fields=[uint8("a")], pre_save=prepare)
    vm = vm_with(SimpleNamespace(), description)
    assert vm.check() == []
    told = f"dev/0/a: there is no a of SimpleNamespace{ADD} (unless it is made just before saving)"
    assert told in vm.notes()
    late = SimpleNamespace(before_save=lambda: None)
    assert told in vm_with(late, VMStateDescription("dev", fields=[uint8("a")])).notes()


def test_notes() -> None:
    vm = vm_with(good(words=np.zeros(5, np.uint32)))
    assert vm.check() == []
    assert vm.notes() == [
        "the emulator has no reset(), so what a stream leaves out of dev/0 keeps its old value",
        "dev/0/words: words of SimpleNamespace has 5 elements, of which the first 4 travel",
    ]


def test_ram_of_the_machine_type() -> None:
    vm = Vm(e2k.build("e2k", RAM, tags=False))
    assert vm.check() == ["no RAM is registered: use add_ram"]
    vm.add_ram("e2k.ram", size=2 * RAM)
    assert vm.check() == [
        f"RAM block e2k.ram has {2 * RAM} bytes, in e2k-1.0 it has {RAM}: add it in that size",
        "RAM block e2k.firmware is missing: use add_ram('e2k.firmware', size=16777216)",
    ]
    good = Vm(e2k.build("e2k", RAM))
    good.add_ram("e2k.ram", size=RAM)
    good.add_ram("e2k.firmware", size=16 << 20)
    assert (good.check(), good.notes()) == ([], [])
    own = Vm("e2k")
    own.add_ram("e2k.ram", size=RAM)
    assert own.check() == [], "an emulator without firmware is one"
    own.add_ram("e2k.firmware", size=4096)
    assert own.check() == ["RAM block e2k.firmware has 4096 bytes, in e2k-1.0 it has 16777216: add it in that size"]
    plain = Vm("none")
    plain.add_ram("e2k.firmware", size=4096)
    assert (plain.check(), plain.notes()) == ([], [])


def test_devices_that_are_left_out() -> None:
    vm = Vm(e2k.build("e2k", RAM, cpus=2, options=["rtc"]).without("escc", "escc-pci"))
    left_out = "left out of what e2k-1.0 has, so the other side must not have them either: "
    assert vm.notes() == [left_out + "escc, 0000:00:02.2/escc-pci"]
    vm.register(e2k.ESCC, SimpleNamespace(chn=[SimpleNamespace(), SimpleNamespace()]))
    assert vm.notes() == [left_out + "0000:00:02.2/escc-pci"]
    assert vm.check()[-1].startswith("escc/0/chn[1].rregs: there is no rregs of SimpleNamespace")

    own = Vm("e2k", cpus=2)
    own.register(e2k.CPU, filled(e2k.build("e2k", RAM, model="e16c")).cpus[0])
    (note, _) = own.notes()
    assert "2 x cpu_common, cpu, 2 x cepic" not in note, "nobody has told which model it is"
    assert "2 x cpu_common, cpu, 2 x apic, e2k-sic, ioapic" in note
    own.register(e2k.IOEPIC, SimpleNamespace())
    assert "2 x cpu_common, cpu, 2 x cepic, e2k-sic, PCIHost" in own.notes()[0]


def test_without() -> None:
    whole = e2k.build("e2k", RAM, cpus=2)
    part = whole.without("cpu", "PCIBUS")
    assert [d.description.name for d in whole.devices if d not in part.devices] == ["cpu", "cpu", "PCIBUS", "PCIBUS"]
    assert (part.blocks, part.type) == (whole.blocks, whole.type)
    with pytest.raises(MigrationError, match="no 'esc' among PCIBUS, PCIHost, apic") as caught:
        whole.without("esc")
    assert caught.value.kind == "invalid-argument"
