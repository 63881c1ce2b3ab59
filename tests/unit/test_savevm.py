"""Handlers, registry, sections, configuration, globalstate, clock, description text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qmig_e2k._core import Reader, Writer
from qmig_e2k.errors import MigrationError, StreamError, migration_error, stream_error
from qmig_e2k.savevm import (
    Configuration,
    Entry,
    GlobalState,
    Profile,
    RamHandler,
    Registry,
    SaveVmHandler,
    VirtualClock,
    VmStateHandler,
    check_configuration,
    end_section,
    load_section,
    part_section,
    save_full,
    start_section,
    stream_head,
    stream_tail,
    timer_description,
)
from qmig_e2k.savevm.text import description_text
from qmig_e2k.vmstate import Members, VMStateDescription, uint8

DEVICE = VMStateDescription("dev", version_id=2, minimum_version_id=1, fields=[uint8("v")])


class Live(SaveVmHandler):
    """Sends bytes in pieces of at most the budget."""

    version_id = 3

    def __init__(self, data: bytes = b"") -> None:
        self.left = data
        self.got = b""

    def setup(self, writer: Writer) -> None:
        writer.cstr8(b"head")

    def iterate(self, writer: Writer, budget: int) -> bool:
        writer.cstr8(self.left[:budget])
        self.left = self.left[budget:]
        return not self.left

    def pending(self) -> int:
        return len(self.left)

    def complete(self, writer: Writer) -> None:
        writer.cstr8(self.left)
        self.left = b""

    def load(self, reader: Reader, version: int) -> None:
        assert version == 3
        self.got += reader.cstr8()


class Old(SaveVmHandler):
    """An old-style handler."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def save(self, writer: Writer) -> None:
        writer.cstr8(self.data)

    def load(self, reader: Reader, version: int) -> None:
        self.data = reader.cstr8()


def test_kinds_of_handlers() -> None:
    assert Live.live
    assert RamHandler.live
    assert not Old.live
    assert Live().is_active()
    with pytest.raises(TypeError, match="either old-style or live"):
        type("Both", (Live,), {"save": lambda *_: None})
    bare = SaveVmHandler()
    assert (bare.iterate(Writer(), 1), bare.pending()) == (True, 0)
    with pytest.raises(NotImplementedError):
        bare.save(Writer())
    with pytest.raises(NotImplementedError):
        bare.load(Reader(b""), 1)


# -- registry


def test_order_is_priority_then_registration() -> None:
    registry = Registry()
    registry.register("a", Old())
    registry.register("b", Old(), priority=2)
    registry.register("c", Live())
    registry.register("d", Old(), priority=2)
    registry.register_description(VMStateDescription("e", priority=1), object())
    assert [entry.idstr for entry in registry] == ["b", "d", "e", "a", "c"]
    assert [entry.idstr for entry in registry.live] == ["c"]
    assert len(registry) == 5
    assert registry.ram is None


def test_instance_ids() -> None:
    registry = Registry()
    assert registry.register("a", Old()).instance_id == 0
    assert registry.register("a", Old(), instance_id=5).instance_id == 5
    assert registry.register("a", Old()).instance_id == 6
    assert registry.register("b", Old()).instance_id == 0
    with pytest.raises(MigrationError, match="registered already") as caught:
        registry.register("a", Old(), instance_id=5)
    assert caught.value.kind == "invalid-argument"
    with pytest.raises(MigrationError, match="32 bits"):
        registry.register("a", Old(), instance_id=1 << 32)
    entry = registry.register("c", Old())
    registry.unregister(entry)
    assert registry.register("c", Old()).section_id == entry.section_id + 1
    with pytest.raises(MigrationError, match="is taken"):
        registry.register("d", Old(), section_id=entry.section_id + 1)


def test_bus_paths() -> None:
    registry = Registry()
    first = registry.register_description(DEVICE, object(), bus_path="0000:00:03.0")
    second = registry.register_description(DEVICE, object(), bus_path="0000:00:04.0")
    third = registry.register_description(DEVICE, object(), bus_path="0000:00:05.0", instance_id=9)
    assert (first.idstr, first.instance_id, first.compat) == ("0000:00:03.0/dev", 0, ("dev", 0))
    assert (second.compat, third.compat, third.instance_id) == (("dev", 1), ("dev", 9), 0)
    assert registry.find("0000:00:04.0/dev", 0, 1) is second
    assert registry.find("dev", 1, 1) is second, "streams from before bus paths"
    assert registry.find("dev", 9, 2) is third
    with pytest.raises(MigrationError, match="255"):
        registry.register("x" * 200, Old(), bus_path="y" * 55)
    registry.register("x" * 199, Old(), bus_path="y" * 55)
    with pytest.raises(MigrationError, match="0 bytes"):
        registry.register("", Old())


def test_alias_ids() -> None:
    registry = Registry()
    described = registry.register_description(DEVICE, object(), instance_id=3, alias_id=1)
    old = registry.register("old", Old(), instance_id=4)
    assert registry.find("dev", 1, 1) is described
    assert registry.find("old", 0, 1) is old, "old-style handlers answer to 0"
    with pytest.raises(StreamError) as caught:
        registry.find("dev", 0xFFFF_FFFF, 1, offset=77)
    assert (caught.value.kind, caught.value.offset, caught.value.path) == ("unknown-section", 77, "dev/4294967295")
    assert "instances here: 3" in caught.value.message
    with pytest.raises(StreamError, match="differ in their devices"):
        registry.find("none", 0, 1)
    with pytest.raises(StreamError, match="at most 2") as caught:
        registry.find("dev", 3, 3, offset=5)
    assert (caught.value.kind, caught.value.path) == ("bad-version", "dev/3")


def test_missing_and_unmigratable() -> None:
    registry = Registry()
    device = registry.register_description(DEVICE, object())
    old = registry.register("old", Old())
    registry.register("ram", RamHandler())
    registry.register_description(VMStateDescription("maybe", needed=lambda _: False), object())
    assert registry.missing([]) == [device, old]
    assert registry.missing({device}) == [old]
    assert registry.missing([old, device]) == []
    assert registry.ram is not None
    assert registry.unmigratable() == []
    registry.register_description(VMStateDescription("stuck", unmigratable=True), object())
    assert registry.unmigratable() == ["stuck"]


@pytest.mark.parametrize(("format_", "ram", "first"), [("2.9", 3, 4), ("7.2", 2, 4), ("10.0", 1, 3)])
def test_section_ids_leave_the_gaps_of_the_generation(format_: Any, ram: int, first: int) -> None:
    profile = Profile(format_)
    registry = Registry(profile)
    registry.register("timer", Old(), section_id=0)
    registry.register("ram", RamHandler(), section_id=profile.facts.ram_section_id)
    assert [registry.register("dev", Old()).section_id for _ in range(2)] == [first, first + 1]
    assert registry.ram is not None
    assert registry.ram.section_id == ram


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match=r"2\.9, 7\.2, 10\.0"):
        Profile("8.0")  # type: ignore[arg-type]
    assert Profile("10.0").switchover_start
    assert not Profile("10.0", send_switchover_start=False).switchover_start
    assert not Profile("7.2").switchover_start


# -- sections


def test_live_sections() -> None:
    profile = Profile()
    registry = Registry(profile)
    source = registry.register("live", Live(b"abcdef"), instance_id=7)
    footer = b"\x7e\0\0\0\4"
    start = start_section(source, profile)
    assert start == b"\1\0\0\0\4\4live\0\0\0\7\0\0\0\3" + b"\4head" + footer
    part, done = part_section(source, profile, 4)
    assert (part, done) == (b"\2\0\0\0\4" + b"\4abcd" + footer, False)
    assert part_section(source, profile, 4) == (b"\2\0\0\0\4" + b"\2ef" + footer, True)
    assert end_section(source, profile) == b"\3\0\0\0\4" + b"\0" + footer
    assert part_section(source, Profile(footers=False), 4)[0] == b"\2\0\0\0\4\0"
    target = Live()
    entry = Registry().register("live", target)
    for payload in (b"\4head", b"\4abcd", b"\2ef", b"\0"):
        load_section(entry, Reader(payload), 3)
    assert target.got == b"headabcdef"


def test_full_sections() -> None:
    registry = Registry(Profile(footers=False))
    registry.register_description(DEVICE, {"v": 1})
    registry.register("live", Live())
    registry.register_description(VMStateDescription("no", needed=lambda _: False), {})
    registry.register("old", Old(b"xy"))
    saved = save_full(registry)
    assert saved.data == b"\4\0\0\0\4\3dev\0\0\0\0\0\0\0\2\1" + b"\4\0\0\0\7\3old\0\0\0\0\0\0\0\1\2xy"
    assert saved.devices == [
        {
            "name": "dev",
            "instance_id": 0,
            "vmsd_name": "dev",
            "version": 2,
            "fields": [{"name": "v", "type": "uint8", "size": 1}],
        },
        {"name": "old", "instance_id": 0, "size": 3, "fields": [{"name": "data", "size": 3, "type": "buffer"}]},
    ]
    assert list(saved.devices[1]) == ["name", "instance_id", "size", "fields"]
    assert list(saved.microseconds) == ["dev/0", "old/0"]
    assert b"\x7e\0\0\0\4" in save_full(registry, Profile()).data


def fail(error: Exception) -> Any:
    def raising(*_: Any) -> None:
        raise error

    return raising


def test_failing_handlers_are_named() -> None:
    def entry_of(**methods: Any) -> Entry:
        return Registry().register("bad", type("Bad", (SaveVmHandler,), methods)(), instance_id=2)

    for method, call in (("setup", start_section), ("complete", end_section)):
        with pytest.raises(MigrationError, match=r"^bad/2: KeyError: 1") as caught:
            call(entry_of(**{method: fail(KeyError(1))}), Profile())
        assert (caught.value.kind, caught.value.path) == ("device-state", "bad/2")
    registry = Registry()
    registry.register("bad", type("Bad", (SaveVmHandler,), {"save": fail(ValueError("no"))})())
    with pytest.raises(MigrationError, match=r"^bad/0: no"):
        save_full(registry)
    registry = Registry()
    registry.register_description(VMStateDescription("bad", needed=fail(ValueError("no"))), {})
    with pytest.raises(MigrationError, match=r"^bad/0: no"):
        save_full(registry)
    registry = Registry()
    registry.register_description(DEVICE, {"v": -1}, instance_id=1)
    with pytest.raises(MigrationError, match=r"^dev/1/v: "):
        save_full(registry)
    with pytest.raises(MigrationError) as caught:
        start_section(entry_of(setup=fail(migration_error("closed", "gone"))), Profile())
    assert caught.value.kind == "closed"

    for error, kind, path, offset in (
        (ValueError("no"), "device-state", "bad/2", 50),
        (stream_error("truncated", "no", offset=51), "truncated", "bad/2", 51),
        (stream_error("device-state", "no", path="chip"), "device-state", "bad/2/chip", 50),
        (StreamError("no"), "device-state", "bad/2", 50),
    ):
        with pytest.raises(StreamError) as refused:
            load_section(entry_of(load=fail(error)), Reader(b"", 50), 1)
        assert (refused.value.kind, refused.value.path, refused.value.offset) == (kind, path, offset)
        assert refused.value.message == "no"
    with pytest.raises(MigrationError) as caught:
        load_section(entry_of(load=fail(migration_error("cancelled", "gone"))), Reader(b""), 1)
    assert caught.value.kind == "cancelled"
    with pytest.raises(StreamError) as refused:
        load_section(Registry().register_description(DEVICE, {"v": 0}), Reader(b"", 50), 1)
    assert (refused.value.path, refused.value.offset) == ("dev/0/v", 50)


# -- configuration


def test_head_and_configuration() -> None:
    profile = Profile()
    assert stream_head(Configuration("none"), profile)[0].hex() == "5145564d000000030700000004" + b"none".hex()
    assert stream_head(Configuration("none"), Profile(configuration=False)) == (bytes.fromhex("5145564d00000003"), None)
    uuid = bytes.fromhex("00112233445566778899aabbccddeeff")
    config = Configuration("isapc", ["x-ignore-shared", "auto-converge"], uuid=uuid, send_uuid=True, page_bits=13)
    raw, made = stream_head(config, profile)
    assert raw[8:] == (
        b"\7\0\0\0\5isapc"
        + b"\5\x1eonfiguration/target-page-bits"[:2]
        + b"configuration/target-page-bits\0\0\0\1\0\0\0\x0d"
        + b"\5\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\x0fx-ignore-shared"
        + b"\5\x12configuration/uuid\0\0\0\1"
        + uuid
    )
    assert isinstance(made, dict)
    assert [sub["vmsd_name"] for sub in made["subsections"]] == [
        "configuration/target-page-bits",
        "configuration/capabilities",
        "configuration/uuid",
    ]
    assert len(made["subsections"][1]["fields"]) == 2


def test_configuration_checks(caplog: pytest.LogCaptureFixture) -> None:
    ours = Configuration("e2k-1.0", ["x-ignore-shared"], uuid=bytes(16))
    same: dict[str, Any] = {"machine": "e2k-1.0", "capabilities": ["x-ignore-shared"]}
    check_configuration(ours, **same)
    check_configuration(ours, **same, uuid=bytes(16), page_bits=12)
    for change, text in (
        ({"machine": "e2k"}, "machine e2k, expected e2k-1.0"),
        ({"machine": ""}, "expected e2k-1.0"),
        ({"machine": "e2k-1.01"}, "expected e2k-1.0"),
        ({"capabilities": []}, "x-ignore-shared is off at the source"),
        ({"capabilities": ["x-ignore-shared", "mapped-ram"]}, "mapped-ram is on at the source"),
        ({"capabilities": ["other"]}, "unknown capability other"),
        ({"uuid": b"x" * 16}, "UUID 7878"),
        ({"page_bits": 13}, "pages of 2^13"),
    ):
        with pytest.raises(StreamError) as caught:
            check_configuration(ours, **(same | change), offset=8)
        assert text in caught.value.message
        assert (caught.value.kind, caught.value.offset, caught.value.path) == ("bad-configuration", 8, "configuration")
    assert not caplog.text
    check_configuration(Configuration("none"), "none", uuid=bytes(16))
    assert "this one has none" in caplog.text


# -- globalstate and clock


def payload(state: GlobalState, profile: Profile) -> bytes:
    registry = Registry(profile)
    registry.register_description(state.description, state)
    data = save_full(registry).data
    return data[25:-5] if data else b""


@pytest.mark.parametrize("format_", ["2.9", "7.2", "10.0"])
def test_globalstate(format_: Any) -> None:
    profile = Profile(format_)
    state = GlobalState(profile)
    state.store("paused")
    raw = payload(state, profile)
    assert raw == b"\0\0\0\7paused" + bytes(26) + (b"\1" if format_ == "10.0" else b"\0") + bytes(67)
    assert len(raw) == 104
    for other in ("2.9", "7.2", "10.0"):
        target = GlobalState(Profile(other))
        assert target.received is None
        entry = Registry().register_description(target.description, target)
        load_section(entry, Reader(raw), 1)
        assert target.received == "paused"
        assert not target.was_suspended
    state.store_running()
    assert payload(state, profile)[4:11] == b"running"
    with pytest.raises(ValueError, match="none of"):
        state.store("flying")


def test_suspended_travels_between_layouts() -> None:
    state = GlobalState(Profile("10.0"))
    state.was_suspended = True
    raw = payload(state, Profile("10.0"))
    for other in ("7.2", "10.0"):
        target = GlobalState(Profile(other))
        load_section(Registry().register_description(target.description, target), Reader(raw), 1)
        assert target.was_suspended


@pytest.mark.parametrize(
    "raw", [b"\0\0\0\7flying" + bytes(94), b"\0\0\0\x64" + b"x" * 100, bytes(104), b"\0\0\0\x64" + b"\xff" * 100]
)
@pytest.mark.parametrize("format_", ["7.2", "10.0"])
def test_globalstate_of_unknown_name(raw: bytes, format_: Any) -> None:
    target = GlobalState(Profile(format_))
    entry = Registry().register_description(target.description, target)
    with pytest.raises(StreamError, match="unknown run state"):
        load_section(entry, Reader(raw), 1)
    assert target.received is None


@pytest.mark.parametrize(
    ("format_", "stored", "sent"),
    [
        ("2.9", "running", False),
        ("2.9", "paused", False),
        ("2.9", "shutdown", True),
        ("7.2", "running", False),
        ("7.2", "prelaunch", True),
        ("10.0", "prelaunch", False),
    ],
)
def test_optional_globalstate(format_: Any, stored: str, sent: bool) -> None:
    profile = Profile(format_, global_state=False)
    state = GlobalState(profile)
    state.store(stored)
    assert bool(payload(state, profile)) is sent


def test_clock_goes_on_where_it_stopped() -> None:
    host = SimpleNamespace(now=1000)
    clock = VirtualClock(lambda: host.now)
    assert clock.now() == 0
    clock.start()
    host.now += 5
    clock.start()
    assert clock.now() == 5
    clock.stop()
    host.now += 100
    clock.stop()
    assert (clock.now(), clock.cpu_ticks_offset) == (5, 5)
    registry = Registry()
    registry.register("timer", VmStateHandler(timer_description(registry.profile), clock))
    saved = save_full(registry)
    there = SimpleNamespace(now=77)
    target = VirtualClock(lambda: there.now)
    entry = Registry().register_description(timer_description(Profile("2.9")), target)
    reader = Reader(saved.data[19:])
    load_section(entry, reader, 2)
    assert reader.offset == 24
    target.start()
    there.now += 1
    assert target.now() == 6
    target.reset()
    assert target.now() == 0
    load_section(entry, Reader(bytes(16)), 1)


# -- description text


def test_text_styles() -> None:
    document = {"a": [1, {"b": "c"}], "e": [], "o": {}, "t": True, "m": Members([("x", 1), ("x", 2)])}
    tight = b'{"a": [1, {"b": "c"}], "e": [], "o": {}, "t": true, "m": {"x": 1, "x": 2}}'
    assert description_text(document, loose=False) == tight
    loose = b'{ "a" : [ 1, { "b" : "c" } ], "e" : [  ], "o" : {  }, "t" : true, "m" : { "x" : 1, "x" : 2 } }'
    assert description_text(document, loose=True) == loose
    with pytest.raises(TypeError, match="float"):
        description_text(1.5, loose=False)


def test_text_escapes() -> None:
    text = 'q"\\\b\f\n\r\t\x01\x7fé\U0001f600\udcff'
    assert description_text(text, loose=False) == (rb'"q\"\\\b\f\n\r\t\u0001\u007F\u00E9\uD83D\uDE00\uFFFD"')
    assert description_text('q"é', loose=True) == b'"q"\xc3\xa9"'


def test_tail() -> None:
    assert stream_tail(Profile(description=False), [], None) == b"\0"
    text = b'{"page_size": 4096, "devices": []}'
    assert stream_tail(Profile(), [], {"x": 1}) == b"\0\6" + len(text).to_bytes(4, "big") + text
    assert (
        stream_tail(Profile("10.0"), [], {"x": 1})[6:]
        == b'{"configuration": {"x": 1}, "page_size": 4096, "devices": []}'
    )
