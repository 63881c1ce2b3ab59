"""analyze: every recorded stream completely, our own machine with everything in it, and streams that lack something."""

from __future__ import annotations

import json
import struct

import pytest

from analyzed import RECORDED, described, facts, full, our_stream, recorded, start, stream
from qmig_e2k.analyze import analyze, ours
from qmig_e2k.analyze.model import leaves
from support import PAGE

GLOBALSTATE = struct.pack(">I", 8) + b"running".ljust(100, b"\0")
TIMER = struct.pack(">qqq", 5, 0, 7)


def values(analysis, path):
    (device,) = (device for device in analysis.devices if device.path == path)
    return device.body.plain()


# ---- streams of real QEMUs


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name):
    files, said = recorded(name), facts(name)
    made = analyze(files)
    assert (made.complete, made.error, made.notes) == (True, None, [])
    assert made.end_offset == made.length == len(files[0])
    assert made.blocks[0].size == said["ram_bytes"]
    if not said["ram_sha256_from"]:
        assert made.blocks[0].sha256 == said["ram_sha256"]
    assert all(block.sha256 for block in made.blocks)
    counters = said["ram_counters"]
    assert made.pages["zero"] in {counters["duplicate"], counters["duplicate"] - 4}  # QEMU counts a worker's test twice
    if not made.pages["compressed"]:
        assert made.pages["normal"] + made.pages["multifd"] == counters["normal"]
    # every device is there, in order, every field has a name, and nobody disagrees
    text = files[0][made.description["offset"] + 5 :]
    listed = json.loads(text)["devices"]
    assert [(d.name, d.instance_id) for d in made.devices] == [(d["name"], d["instance_id"]) for d in listed]
    for device, listing in zip(made.devices, listed, strict=True):
        assert device.source == "description"
        assert not device.disagreements
        assert not device.note
        assert {field.name for field in device.body.fields} == {field["name"] for field in listing["fields"]}
        assert [part.name for part in device.body.subsections] == [
            part["vmsd_name"] for part in listing.get("subsections", [])
        ]
        assert device.size == sum(field.size for field in device.body.fields) + sum(
            4 + 2 + len(part.name) + sum(field.size for field in part.fields) for part in device.body.subsections
        )


def test_values_of_a_recorded_machine():
    made = analyze(recorded("qemu7-pc-xbzrle"))
    assert made.machine == "pc-i440fx-7.2"
    assert made.pages["xbzrle"] > 116_000
    cpu = values(made, "cpu/0")
    assert len(cpu["env.regs"]) == 16
    assert cpu["env.segs"][0] == {"selector": 16, "base": 0, "limit": 0xFFFFFFFF, "flags": 0xCF9300}
    assert cpu["env.fpregs"][7] == {"tmp": {"tmp_mant": 0, "tmp_exp": 0}}
    assert cpu["subsections"]["cpu/poll_control_msr"] == {"version": 1, "fields": {"env.poll_control_msr": 0}}
    assert cpu["env.a20_mask"] == -1
    assert values(made, "0000:00:01.0/PIIX3/0")["dev"]["config[0]"].startswith("86800070")
    assert values(made, "hpet/0")["timer"][2]["tn"] == 2
    assert values(made, "globalstate/0")["runstate"].startswith(b"running".hex())
    # the JSON record says the same and is JSON
    record = json.loads(json.dumps(made.record()))
    assert record["schema"] == "qmig_e2k/analyze/1"
    assert record["version"] == 3
    assert record["complete"] is True
    assert record["ram"]["blocks"][0]["name"] == "pc.ram"
    assert record["devices"][2]["subsections"]["cpu/poll_control_msr"]["fields"] == {"env.poll_control_msr": 0}
    assert "error" not in record


@pytest.mark.parametrize("name", [name for name in RECORDED if "pc" not in name])
def test_known_devices_need_no_description(name):
    files = recorded(name)
    whole = analyze(files)
    cut = files[0][: whole.description["offset"]]
    made = analyze([cut, *files[1:]])
    assert made.complete
    assert {device.source for device in made.devices} == {"ours"}
    for mine, theirs in zip(made.devices, whole.devices, strict=True):
        wanted = [(path, value) for path, field, value in leaves(theirs.body)]
        # of an array without elements a description says nothing, and 2.9 has another name for the hole in the timer
        found = [(path, value) for path, _, value in leaves(mine.body)]
        if (name, mine.name) == ("qemu29-none-plain", "timer"):
            assert [path for path, _ in found] == ["cpu_ticks_offset", "unused", "cpu_clock_offset"]
            continue
        assert found == wanted, mine.path


def test_unknown_devices_without_a_description():
    """Their payloads are shown as they are, up to their footers, and nothing behind is lost."""
    (file,) = recorded("qemu7-pc-xbzrle")
    whole = analyze(file)
    made = analyze(file[: whole.description["offset"]])
    assert made.complete
    assert [(d.path, d.offset, d.size) for d in made.devices] == [(d.path, d.offset, d.size) for d in whole.devices]
    assert [d.path for d in made.devices if d.source == "ours"] == ["timer/0", "cpu_common/0", "globalstate/0"]
    cpu = made.devices[2]
    assert "footer" in cpu.note
    assert bytes.fromhex(cpu.body.plain()["data"]) == file[cpu.offset + 17 :][: cpu.size]


# ---- our own machine


@pytest.mark.parametrize("model", ["e2c+", "e8c", "e16c"])
@pytest.mark.parametrize("fill", [False, True])
def test_our_machine(model, fill):
    data = our_stream(model, fill=fill)
    made = analyze(data)
    assert made.complete
    assert not [device.path for device in made.devices if device.disagreements or device.note]
    assert {device.source for device in made.devices} == {"description"}
    bare = analyze(our_stream(model, fill=fill, description=False))
    assert {device.source for device in bare.devices} == {"ours"}
    by_path = {device.path: device for device in bare.devices}
    for device in made.devices:
        theirs = {path: value for path, _, value in leaves(by_path[device.path].body)}
        assert {path: value for path, _, value in leaves(device.body)}.items() <= theirs.items()


def test_what_is_not_at_its_reset_value():
    fresh = analyze(our_stream("e16c", fill=False))
    assert not [device.path for device in fresh.devices if device.changed]
    made = analyze(our_stream("e16c"))
    cpu = next(device for device in made.devices if device.path == "cpu/1")
    assert {"regs_lo", "upsr", "cpu/fp.fpcr", "cpu/aau.aaincr"} <= cpu.changed
    assert "isa" not in cpu.changed
    timer = next(device for device in made.devices if device.name == "timer")
    assert not timer.changed


def test_a_machine_describes_itself_once(monkeypatch):
    """However many sections and streams ask, and a second machine section says nothing new."""
    built = []
    described_by = []
    build, own_layout = ours.build, ours.own_layout
    monkeypatch.setattr(ours, "build", lambda *args, **named: built.append(named) or build(*args, **named))
    monkeypatch.setattr(ours, "own_layout", lambda *args: described_by.append(args[0].name) or own_layout(*args))
    data = our_stream("e8c", description=False)
    first = analyze(data, hashes=False)
    machine = next(device for device in first.devices if device.name == "e2k-machine")
    cpu = next(device for device in first.devices if device.name == "cpu")
    behind = first.devices[-1].offset
    for device in (machine, cpu):
        section = data[device.offset :][: 5 + 1 + len(device.name) + 8 + device.size + 5]
        data = data[:behind] + 20 * section + data[behind:]
    ours.machine_of.cache_clear()
    built.clear()
    described_by.clear()
    for _ in range(2):
        made = analyze(data, hashes=False)
        assert made.complete, made.error
        assert {device.source for device in made.devices} == {"ours"}
        assert len(made.devices) == len(first.devices) + 40
    assert len(built) <= 2
    assert described_by.count("cpu") <= 2 * 2


def test_disagreements_are_named():
    """A description that says something else than ours: both show, and the stream's is what counts if it fits."""
    fields = [
        {"name": "interrupt_request", "type": "uint32", "size": 4},
        {"name": "halted", "type": "int32", "size": 4},
    ]
    listed = {"name": "cpu_common", "instance_id": 0, "vmsd_name": "cpu_common", "version": 1, "fields": fields}
    made = analyze(stream([full(b"cpu_common", struct.pack(">Ii", 1, -2))], described(listed)))
    (device,) = made.devices
    assert made.complete
    assert device.source == "description"
    assert device.body.plain() == {"interrupt_request": 1, "halted": -2}
    assert [(d["path"], d["what"], d["stream"], d["ours"]) for d in device.disagreements] == [
        ("interrupt_request", "order", 0, 1),
        ("interrupt_request", "value", 1, 0xFFFFFFFE),
        ("halted", "type", "int32", "uint32"),
    ]
    assert made.record()["devices"][0]["disagreements"] == device.disagreements


def test_our_layout_counts_if_the_description_does_not_fit():
    fields = [{"name": "halted", "type": "uint64", "size": 8}, {"name": "more", "type": "uint8", "size": 1}]
    listed = {"name": "cpu_common", "instance_id": 0, "vmsd_name": "cpu_common", "version": 1, "fields": fields}
    made = analyze(stream([full(b"cpu_common", struct.pack(">II", 1, 2))], described(listed)))
    (device,) = made.devices
    assert made.complete
    assert device.source == "ours"
    assert device.body.plain() == {"halted": 1, "interrupt_request": 2}
    assert {(d["path"], d["what"]) for d in device.disagreements} == {
        ("interrupt_request", "missing"),
        ("more", "extra"),
        ("halted", "type"),
    }


def test_nothing_fits():
    listed = {"name": "toaster", "instance_id": 0, "vmsd_name": "toaster", "version": 1, "fields": []}
    made = analyze(
        stream([full(b"toaster", b"brown"), full(b"timer", TIMER, section_id=0, version=2)], described(listed))
    )
    assert made.complete
    toaster, timer = made.devices
    assert toaster.body.plain() == {"data": b"brown".hex()}
    assert "does not fit" in toaster.note
    assert timer.body.plain()["cpu_clock_offset"] == 7


def test_configuration_is_compared():
    (file,) = recorded("qemu10-none-plain")
    at = file.rindex(b'"name": "len"')
    made = analyze(file[:at] + b'"name": "lex"' + file[at + 13 :])
    assert made.complete
    assert {(d["path"], d["what"]) for d in made.configuration["disagreements"]} == {
        ("len", "missing"),
        ("lex", "extra"),
    }
    assert "disagreements" not in analyze(file).configuration


# ---- without footers, without a configuration, with commands


def test_without_footers():
    listed = [
        {"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": []},
        {"name": "old", "instance_id": 3, "size": 2, "fields": [{"name": "data", "size": 2, "type": "buffer"}]},
    ]
    bare = [full(b"timer", TIMER, section_id=0, version=2)[:-5], full(b"old", b"\1\2", instance=3)[:-5]]
    ram = start({b"ram": PAGE}).replace(b"\x7e\0\0\0\2", b"")
    made = analyze(b"QEVM\0\0\0\3" + ram + b"".join(bare) + described(*listed))
    assert made.complete
    assert (made.configuration, made.machine) == (None, None)
    assert values(made, "timer/0")["cpu_ticks_offset"] == 5
    assert values(made, "old/3") == {"data": "0102"}


def test_postcopy():
    """A package holds elements like the stream itself; commands have their arguments."""
    blob = b"\x08\0\4\0\0" + full(b"timer", TIMER, version=2) + b"\x08\0\2\0\4\0\0\0\3\x08\0\5\0\0"
    discard = b"\x08\0\6\0\x16\0\3ram\0" + struct.pack(">QQ", 0, PAGE)
    made = analyze(stream([discard, b"\x08\0\7\0\4" + struct.pack(">I", len(blob)) + blob]))
    assert made.complete
    assert [command["name"] for command in made.commands] == [
        "POSTCOPY_RAM_DISCARD",
        "PACKAGED",
        "POSTCOPY_LISTEN",
        "PING",
        "POSTCOPY_RUN",
    ]
    assert made.commands[0]["ranges"] == [[0, PAGE]]
    assert made.commands[3]["token"] == 3
    assert values(made, "timer/0")["cpu_clock_offset"] == 7
    assert not made.notes


def test_a_package_of_another_length():
    made = analyze(stream([b"\x08\0\7\0\4\0\0\0\x63\x08\0\5\0\0"]))
    assert made.complete
    assert "the package announced" in made.notes[0]
    made = analyze(stream([b"\x08\0\7\0\4\0\0\0\x63"]))
    assert (made.error["kind"], made.error["path"]) == ("unknown-element", "command/PACKAGED")


# ---- live handlers


def test_live_handlers_with_a_grammar():
    chunk = struct.pack(">QB", 2048 << 9 | 1, 2) + b"hd" + bytes(1 << 20)
    disk = chunk + struct.pack(">QB", 9, 2) + b"hd" + struct.pack(">QQ", 100 << 9 | 4, 2)
    bitmap = bytes.fromhex("1c026e30026230000100000101")
    rest = bytes.fromhex("420000000000000000000008002001")
    table = bytes(4) + struct.pack(">IHH", 1, 1, 2) + bytes(16) + bytes(8)
    made = analyze(
        stream(
            [
                b"\1" + full(b"block", disk)[1:],
                b"\1" + full(b"dirty-bitmap", bitmap, section_id=10)[1:],
                b"\3\0\0\0\x0a" + rest + b"\x7e\0\0\0\x0a",
                b"\1" + full(b"spapr/htab", struct.pack(">I", 24), section_id=11)[1:],
                b"\2\0\0\0\x0b" + table + b"\x7e\0\0\0\x0b",
            ]
        )
    )
    assert made.complete, made.error
    assert [(device.path, device.kind) for device in made.devices] == [
        ("block/0", "start"),
        ("dirty-bitmap/0", "start"),
        ("dirty-bitmap/0", "end"),
        ("spapr/htab/0", "start"),
        ("spapr/htab/0", "part"),
    ]
    plain = [device.body.plain() for device in made.devices]
    assert plain[0] == {"chunks": {"hd": 1}, "zero_chunks": {"hd": 1}, "progress": 100}
    assert plain[1] == {"records": [{"node": "n0", "bitmap": "b0", "granularity": 65536, "flags": 1}]}
    assert plain[2] == {"records": [{"sector": 0, "sectors": 2048}, {"complete": True}]}
    assert plain[3:] == [{"log2_size": 24}, {"valid": 1, "invalid": 2}]
    assert made.record()["devices"][2]["kind"] == "end"


def test_live_handlers_of_unknown_grammar():
    section = full(b"s390-skeys", b"what ever")[1:]
    made = analyze(stream([b"\1" + section, b"\2\0\0\0\x09more\x7e\0\0\0\x09", b"\3\0\0\0\x09\x7e\0\0\0\x09"]))
    assert made.complete
    assert [bytes.fromhex(device.body.plain()["data"]) for device in made.devices] == [b"what ever", b"more", b""]


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        (b"block", struct.pack(">Q", 0x10), "bad-flags"),
        (b"dirty-bitmap", b"\x80", "bad-flags"),
        (b"dirty-bitmap", b"\0", "bad-flags"),
        (b"dirty-bitmap", b"\x40" + bytes(12) + struct.pack(">Q", 10241), "limit-exceeded"),
        (b"spapr/htab", b"\0", "truncated"),
    ],
)
def test_live_refusals(name, body, kind):
    data = stream([b"\1" + full(name, body)[1:]])
    made = analyze(data if kind != "truncated" else data[:-6])
    assert made.error["kind"] == kind
    assert made.error["path"] == f"{name.decode()}/0"


# ---- the end of an unknown payload


def test_a_footer_inside_the_payload():
    """Five equal bytes inside are no end where no element follows them; and where one seems to, nobody can say."""
    inside = b"\x7e\0\0\0\x09"
    made = analyze(stream([full(b"toaster", b"a" + inside + b"\x55b")]))
    assert values(made, "toaster/0") == {"data": (b"a" + inside + b"\x55b").hex()}
    made = analyze(stream([full(b"toaster", b"a" + inside + b"\x08\0\2b")]))
    assert (made.error["kind"], made.error["path"]) == ("unknown-section", "toaster/0")
    assert made.error["offset"] == stream([]).index(b"\0", len(stream([])) - 1)
    assert not made.devices


def test_a_long_payload_is_shown_in_part():
    made = analyze(stream([full(b"toaster", bytes(3 << 20))]))
    (device,) = made.devices
    assert device.size == 3 << 20
    assert len(device.body.plain()["data"]) == 2 << 20
    assert "only the first" in device.note


# ---- descriptions


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b'{"devices": 3}',
        b'{"page_size": "x", "devices": []}',
        b'{"configuration": {}, "devices": []}',
        b'{"devices": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_description(text):
    tail = b"\0\6" + struct.pack(">I", len(text)) + text
    made = analyze(stream([full(b"timer", TIMER, version=2)], tail))
    assert made.complete
    assert "description" in made.notes[0]
    assert made.devices[0].source == "ours"


@pytest.mark.parametrize(
    "device",
    [
        3,
        {},
        {"name": "a"},
        {"name": "a", "instance_id": 0, "size": -1},
        {"name": "a", "instance_id": 0, "vmsd_name": 1},
    ],
)
def test_a_damaged_device(device):
    made = analyze(stream([full(b"timer", TIMER, version=2)], described(device)))
    assert made.complete
    assert "damaged device" in made.notes[0]


def test_other_target_pages_are_told():
    text = b'{"page_size": 8192, "devices": []}'
    made = analyze(stream([], b"\0\6" + struct.pack(">I", len(text)) + text))
    assert "8192" in made.notes[0]


def test_bytes_behind_the_end():
    made = analyze(stream([full(b"timer", TIMER, version=2)]) + b"more")
    assert made.complete
    assert made.notes == ["4 bytes behind the end of the stream"]
    assert made.end_offset == made.length - 4


def test_something_like_a_description_at_the_end():
    made = analyze(stream([], b"\0") + b"\xff\6\0\0\0\x0f" + b'{"devices": []}')
    assert made.complete
    assert len(made.notes) == 2


# ---- what did not come


def test_without_the_multifd_channels():
    main = recorded("qemu10-none-multifd")[0]
    made = analyze(main)
    assert made.complete
    assert made.blocks[0].sha256 is None
    assert "multifd" in made.notes[0]


def test_many_blocks_without_their_pages():
    blocks = {b"b%d" % i: PAGE for i in range(20)}
    head = b"QEVM\0\0\0\3\7\0\0\0\4none" + start(blocks)
    made = analyze(head[: head.index(b"\2\0\0\0\2")] + b"\0")
    assert made.notes[0].startswith(
        "pages of b0, b1, b2, b3, b4, b5, b6, b7 and 12 more blocks did not come; are there"
    )


def test_an_empty_file():
    for data in (b"", b"QEVM", b"MZ" + bytes(90)):
        made = analyze(data)
        assert made.version is None
        assert made.error["path"] == "header"
        assert made.record()["error"]["offset"] <= len(data)


def test_arguments(tmp_path):
    path = tmp_path / "a,b"
    path.write_bytes(stream([]))
    assert (
        analyze(path).record()
        == analyze(str(path)).record()
        == analyze([path]).record()
        == analyze(stream([])).record()
    )
    with pytest.raises(ValueError, match="no file"):
        analyze([])
    with pytest.raises(FileNotFoundError):
        analyze([path, tmp_path / "none"])
    with pytest.raises(IsADirectoryError):
        analyze(tmp_path)


def test_ram_can_be_read():
    made = analyze(recorded("qemu7-none-plain"), hashes=False)
    assert made.blocks[0].sha256 is None
    at, length = next(made.ram_runs(0))
    assert at
    assert length
    assert made.read_ram(0, at - PAGE, PAGE) == bytes(PAGE)
    assert len(set(made.read_ram(0, at, 2 * PAGE))) > 1
