"""`Vm.check` names what would stop a migration, `Vm.notes` what is worth knowing; machines with devices left out."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import make_dataclass
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


def read_only(count: int) -> Any:
    made = np.zeros(count, np.uint32)
    made.setflags(write=False)
    return made


ADD = "; add it, or name its place by mapping= at registration"


def vm_with(obj: Any, description: VMStateDescription = EVERYTHING, **options: Any) -> Vm:
    vm = Vm("none", **options)
    vm.add_ram("ram", size=4096)
    vm.register(description, obj)
    return vm


def test_nothing_to_say() -> None:
    vm = vm_with(good(), emulator=SimpleNamespace(stop=print, start=print, reset=print))
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
        (
            {"words": np.zeros(4)},
            "words: words of SimpleNamespace is an array of float64, which cannot hold uint32; make it one of uint32",
        ),
        ({"words": [0, 1, -1, 2]}, "words[2]: words of SimpleNamespace holds -1 there, no uint32"),
        ({"words": [0, None, 0, 0]}, "words[1]: words of SimpleNamespace holds None there, no uint32"),
        ({"words": [0, 0, 0, 1 << 32]}, "words[3]: words of SimpleNamespace holds 4294967296 there, no uint32"),
        ({"words": np.full(4, 1 << 32)}, "words[0]: words of SimpleNamespace holds 4294967296 there, no uint32"),
        (
            {"words": read_only(4)},
            "words: words of SimpleNamespace is a read-only array: no stream could be loaded into it",
        ),
        (
            {"words": ..., "word": 1},
            f"words: there is no words of SimpleNamespace{ADD}; did you mean 'word', which it has?",
        ),
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


# -- as a stranger would go wrong


def own_cpu(**changes: Any) -> SimpleNamespace:
    """An emulator's own CPU, its registers as attributes."""
    made = vars(e2k.build("e2k", RAM, tags=True).cpus[0]) | changes
    return SimpleNamespace(**{name: value for name, value in made.items() if value is not ...})


def said(description: VMStateDescription, obj: Any, **options: Any) -> list[str]:
    vm = Vm("e2k")
    vm.add_ram("e2k.ram", size=65536)
    vm.register(description, obj, **options)
    return vm.check()


def test_facts_that_hooks_read_have_what_is_read_of_them() -> None:
    assert said(e2k.CPU, own_cpu()) == []
    text = "cpu/0/model: model of SimpleNamespace is 'e8c', which has no physical_bits"
    assert said(e2k.CPU, own_cpu(model="e8c")) == [text]
    assert said(e2k.CPU, own_cpu(model=...)) == ["cpu/0/model: there is no model of SimpleNamespace" + ADD]
    cepic = SimpleNamespace(**vars(e2k.devices.Cepic(0, e2k.MODELS["e16c"])) | {"model": 6})
    assert said(e2k.CEPIC, cepic) == ["cepic/0/model: model of SimpleNamespace is 6, which has no cores"]


def test_a_class_instead_of_an_object_is_told_once() -> None:
    class Core:
        pass

    text = "cpu/0: Core is a class and lacks what its objects may have; register one of them: Core()"
    assert said(e2k.CPU, Core) == [text]
    assert len(said(e2k.CPU, Core())) > 100


def test_values_that_cannot_be_read_or_set() -> None:
    class Odd:
        b = 1

        @property
        def a(self) -> int:
            return 1

        @property
        def c(self) -> int:
            raise RuntimeError("boom")

    pair = namedtuple("pair", "a")  # noqa: PYI024
    one = VMStateDescription("dev", fields=[uint8("a")])
    assert said(VMStateDescription("dev", fields=[uint8("a"), uint8("b"), uint8("c")]), Odd()) == [
        "dev/0/a: a of Odd is a property without a setter: no stream could be loaded into it",
        "dev/0/c: c of Odd cannot be read: RuntimeError: boom",
    ]
    frozen = make_dataclass("Fixed", [("a", int)], frozen=True)
    for obj, name in ((pair(1), "pair"), (frozen(1), "Fixed")):
        text = f"a of {name} is held by a {name}, which cannot be changed: no stream could be loaded into it"
        assert said(one, obj) == [f"dev/0/a: {text}"]
    (text,) = said(one, SimpleNamespace(parts=[Odd()]), mapping={"a": "parts.0.a"})
    assert text.startswith("dev/0/a: parts.0.a of SimpleNamespace is a property without a setter")
    assert said(one, {"a": 1}) == said(one, SimpleNamespace(p=[1]), mapping={"a": "p.0"}) == []


def test_two_fields_at_one_place() -> None:
    vm = Vm("e2k")
    vm.register(e2k.CPU, own_cpu(), mapping={"psp_lo": "psr", "lsr1": "regs_lo.255", "ilcr1": "regs_lo.254"})
    assert [note for note in vm.notes() if note.startswith("cpu/0/")] == [
        "cpu/0/psp_lo: psr of SimpleNamespace is the place of psr, too"
    ]


def test_a_subsection_that_stays_at_home_is_looked_at_too() -> None:
    vm = vm_with(good(q=np.zeros(1, np.uint16)))
    text = (
        "dev/0/dev/part.q: q of SimpleNamespace has 1 elements, 2 are needed (it matters as soon as dev/part travels)"
    )
    assert vm.check() == []
    assert vm.notes()[-1] == text
    vm = vm_with(good(q=np.zeros(3, np.uint16)))
    assert not any("dev/part" in note for note in vm.notes()), "more than enough"


def test_the_emulators_own_hooks() -> None:
    assert said(e2k.CPU, own_cpu(before_save=5, after_load=lambda: None)) == [
        "cpu/0/before_save: before_save of SimpleNamespace is 5; it must be a method",
        "cpu/0/after_load: after_load of SimpleNamespace is called as after_load(version), but takes ()",
    ]
    assert said(e2k.CPU, own_cpu(before_save=[].clear, after_load=[].append)) == []
    uncalled = VMStateDescription("dev", fields=[uint8("a")])
    assert said(uncalled, SimpleNamespace(a=1, after_load=5)) == [], "nobody calls it"


def test_an_emulator_needs_its_two_methods() -> None:
    assert vm_with(good(), emulator=SimpleNamespace(start=5)).check() == [
        "the emulator has no stop(), by which its guest is stopped",
        "the emulator has no start(), by which its guest is started",
    ]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (None, "e2k-gpio/0: it has no bus_path"),
        ("slot2", "slot2/e2k-gpio/0: its bus_path is 'slot2'"),
        ("0000:00:02.9", "0000:00:02.9/e2k-gpio/0: its bus_path is '0000:00:02.9'"),
    ],
)
def test_a_pci_function_needs_its_place(path: str | None, text: str) -> None:
    gpio = e2k.devices.Gpio(e2k.MODELS["e8c"])
    assert said(e2k.GPIO, gpio, bus_path=path) == [f"{text}; register it with its place, e.g. bus_path='0000:00:02.4'"]
    for right in ("0000:00:02.4", "0000:00:00.0:03.1"):
        assert said(e2k.GPIO, gpio, bus_path=right) == []


def test_a_cpu_has_the_number_of_its_section() -> None:
    vm = Vm("e2k", cpus=2)
    vm.register(e2k.CPU, own_cpu(index=1))
    text = "cpu/0: index is 1, but the section has the number 0; make them equal (instance_id= at registration)"
    assert text in vm.notes()
    other = Vm("e2k", cpus=2)
    other.register(e2k.CPU, own_cpu(index=1), instance_id=1)
    assert not [note for note in other.notes() if "section has the number" in note]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((e2k.ESCC,), r"register\(escc\) needs the device"),
        (("escc", SimpleNamespace()), "needs a description .* not 'escc' first"),
        ((SimpleNamespace(a=1), EVERYTHING), r"needs a description .* not namespace\(a=1\) first"),
    ],
)
def test_what_is_no_registration(arguments: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Vm("e2k").register(*arguments)


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"psp_lo": 5}, "mapping: the place of 'psp_lo' must be a path such as 'file.low', not 5"),
        ({"psp_lo": ""}, "the place of 'psp_lo' must be a path"),
        ({"psp_lo": "stack..low"}, "not 'stack..low'"),
        (["psp_lo"], r"mapping: \['psp_lo'\] is no dict from names to paths"),
    ],
)
def test_what_is_no_mapping(mapping: Any, text: str) -> None:
    with pytest.raises(MigrationError, match=text) as caught:
        Vm("e2k").register(e2k.CPU, own_cpu(), mapping=mapping)
    assert caught.value.kind == "invalid-argument"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"version_id": None}, "mine: version_id is None, no whole number"),
        ({"version_id": 1.5}, r"mine: version_id is 1\.5, no whole number"),
        ({"fields": ["a"]}, r"mine: fields\[0\] is 'a', nothing such as uint32\(.level.\)"),
        ({"fields": [uint8]}, r"mine: fields\[0\] is <kind uint8>, nothing such as"),
        ({"fields": uint8("a")}, "mine: fields is .* no list of such as"),
        ({"subsections": [uint8("a")]}, r"mine: subsections\[0\] is .*, nothing such as VMStateDescription"),
        ({"post_load": 5}, "mine: post_load is 5, no function"),
    ],
)
def test_what_is_no_description(facts: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        VMStateDescription("mine", **facts)


def test_a_description_without_versions_has_version_1() -> None:
    made = VMStateDescription("mine", fields=[uint8("a")])
    assert (made.version_id, made.minimum_version_id) == (1, 1)
    assert said(made, SimpleNamespace(a=1)) == []


def test_an_array_of_more_than_travels() -> None:
    description = VMStateDescription("mine", fields=[array("w", uint32, 4)])
    assert said(description, SimpleNamespace(w=np.zeros((2, 2), np.uint32))) == []
    (problem,) = said(description, SimpleNamespace(w=np.zeros((4, 2), np.uint32)))
    assert "shape (4, 2); 4 elements travel" in problem


def test_properties_that_raise_are_told() -> None:
    class Broken:
        def __init__(self) -> None:
            self.__dict__.update(vars(own_cpu()))

        @property
        def before_save(self) -> None:
            raise RuntimeError("boom")

    assert any("boom" in problem for problem in said(e2k.CPU, Broken()))
