"""Refusals with a code and a place, and the two hooks of an emulator's own objects."""

from types import SimpleNamespace
from typing import Any

import pytest

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k import OPTIONS, build
from qmig_e2k.e2k.cpu import CPU_COMMON
from qmig_e2k.e2k.hooks import CheckError, after_load, before_save, require
from qmig_e2k.errors import MigrationError, StreamError


def check(obj: Any, version: int) -> object:
    require(obj.a <= 9, "X01", "dev %d: %s too big: 0x%x", 3, "a", obj.a, field="a")
    require(obj.a % 2 == 0 or obj.b == 0, "X02", "dev: odd")
    return after_load(obj, version)


DEVICE = vmstate.VMStateDescription(
    "dev", fields=[vmstate.uint8("a"), vmstate.uint8("b")], pre_save=before_save, post_load=check
)


def load(obj: Any, raw: bytes) -> None:
    vmstate.load(DEVICE, obj, Reader(raw, 100), 1, path="dev/0")


@pytest.mark.parametrize(
    ("raw", "code", "text", "path"),
    [(b"\x0a\0", "X01", "dev 3: a too big: 0xa", "dev/0/a"), (b"\x05\1", "X02", "dev: odd", "dev/0")],
)
def test_a_refusal_has_code_text_and_place_and_is_taken_back(raw: bytes, code: str, text: str, path: str) -> None:
    obj = SimpleNamespace(a=1, b=2)
    with pytest.raises(StreamError) as caught:
        load(obj, raw)
    assert (caught.value.message, caught.value.path, caught.value.offset) == (text, path, 100)
    cause = caught.value.__cause__
    assert isinstance(cause, CheckError)
    assert (cause.code, str(cause)) == (code, text)
    assert vars(obj) == {"a": 1, "b": 2}


def test_the_emulators_hooks_are_called_with_what_is_loaded_and_before_what_is_saved() -> None:
    seen = []
    obj = SimpleNamespace(a=0, b=0)
    obj.after_load = lambda version: seen.append((version, obj.a))
    obj.before_save = lambda: setattr(obj, "b", obj.a + 1)
    load(obj, b"\4\0")
    assert seen == [(1, 4)]
    writer = Writer()
    vmstate.save(DEVICE, obj, writer)
    assert writer.getvalue() == b"\4\5"


def test_what_the_emulators_hooks_return_counts() -> None:
    obj = SimpleNamespace(a=0, b=0, after_load=lambda version: -22, before_save=lambda: -5)
    with pytest.raises(StreamError, match="post_load returned -22"):
        load(obj, b"\4\0")
    assert obj.a == 0
    with pytest.raises(MigrationError, match="pre_save returned -5"):
        vmstate.save(DEVICE, obj, Writer())


@pytest.mark.parametrize("model", ["e8c", "e16c"])
@pytest.mark.parametrize("kind", ["e2k", "e2k-qemu"])
def test_every_shipped_description_calls_both_of_them(kind: str, model: str) -> None:
    hardware = build(kind, 1 << 20, model=model, options=OPTIONS if kind == "e2k" else ())
    for device in hardware.devices:
        if device.description.name == "e2k-machine":
            continue  # it compares two machines and has no state
        calls: list[object] = []
        device.obj.before_save = lambda calls=calls: calls.append("save")
        device.obj.after_load = calls.append
        writer = Writer()
        vmstate.save(device.description, device.obj, writer)
        version = device.description.version_id
        vmstate.load(device.description, device.obj, Reader(writer.getvalue()), version)
        assert calls == ["save", version], device.description.name


def test_a_cpu_is_called_for_the_common_part_when_its_own_requests_are_right() -> None:
    cpu = build("e2k-qemu", 1 << 20, cpus=1).cpus[0]
    seen = []
    cpu.after_load = lambda version: seen.append((version, cpu.halted, cpu.interrupt_request))  # type: ignore[attr-defined]
    vmstate.load(CPU_COMMON, cpu, Reader(b"\0\0\0\1\0\0\2\3"), 1)
    assert seen == [(1, 1, 0x202)]
