"""`qmig-e2k analyze`: text, JSON, RAM files, comparison, exit status; two golden texts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import pty
import re
import struct
import subprocess
import sys

import pytest

from analyzed import described, facts, full, our_stream, recorded, stream
from qmig_e2k.analyze import analyze, values
from qmig_e2k.analyze.diff import diff
from qmig_e2k.analyze.ram import file_names
from qmig_e2k.analyze.tree import show, tree
from qmig_e2k.cli import main
from support import PAGE, REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden"
TIMER = struct.pack(">qqq", 5, 0, 7)


@pytest.fixture
def put(tmp_path):
    """Writes a stream's files; gives the argument that names them."""

    def write(name, *files):
        paths = []
        for index, data in enumerate(files):
            paths.append(tmp_path / f"{name}{index}")
            paths[-1].write_bytes(data)
        return ",".join(map(str, paths))

    return write


def text_of(analysis):
    out = io.StringIO()
    show(tree(analysis), out)
    return out.getvalue()


# ---- text


@pytest.mark.parametrize("name", ["e2k-plain", "qemu7-pc-xbzrle"])
def test_golden_text(put, capsys, name):
    """QMIG_UPDATE_GOLDEN=1 writes the texts anew; look at the difference before you commit it."""
    assert main(["analyze", put(name, *recorded(name))]) == 0
    found = capsys.readouterr().out
    path = GOLDEN / f"analyze-{name}.txt"
    if os.environ.get("QMIG_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_what_is_changed_is_marked(put, capsys):
    assert main(["analyze", "--tree", put("ours", our_stream("e16c", fill=False))]) == 0
    assert "*" not in capsys.readouterr().out
    assert main(["analyze", put("ours", our_stream("e16c"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "* not at its value after power-on" in lines
    assert any(re.fullmatch(r" +psr +0x[0-9a-f]+ \*", line) for line in lines)
    assert any(re.fullmatch(r" +regs_lo +256 elements \*", line) for line in lines)
    assert any(re.fullmatch(r" +isa +6", line) for line in lines)


def test_texts_of_everything_else():
    blob = b"\x08\0\4\0\0\x08\0\5\0\0"
    advise = b"\x08\0\3\0\x10" + struct.pack(">QQ", PAGE, PAGE)
    discard = b"\x08\0\6\0\x16\0\3ram\0" + struct.pack(">QQ", 0, PAGE)
    fields = [{"name": "halted", "type": "int32", "size": 4}, {"name": "x\x1b[31m", "type": "buffer", "size": 4}]
    listed = {"name": "cpu_common", "instance_id": 0, "vmsd_name": "cpu_common", "version": 1, "fields": fields}
    devices = [
        advise,
        discard,
        b"\x08\0\7\0\4" + struct.pack(">I", len(blob)) + blob,
        full(b"cpu_common", bytes(8), section_id=4),
        full(b"toaster\x1b[2J", b"brown"),
    ]
    text = text_of(analyze(stream(devices, described(listed))))
    assert re.search(r"POSTCOPY_ADVISE +page_sizes 0x1000, target_page 0x1000\n", text)
    assert re.search(r"POSTCOPY_RAM_DISCARD +block ram, ranges 0x0\+0x1000\n", text)
    assert "! disagreement  halted: type: stream int32, ours uint32" in text
    assert "! no layout is known; shown as it is, up to its footer" in text
    assert "\x1b" not in text
    assert r"x\x1b[31m" in text
    cut = text_of(analyze(stream(devices)[:-3]))
    assert ", damaged\n" in cut
    assert re.search(r"error  unknown-section at 0x[0-9a-f]+: toaster\\x1b\[2J/0: its layout", cut)
    multifd = text_of(analyze(recorded("qemu10-none-multifd")))
    assert re.search(r"channel 0  32 packets  256 pages  3456 zero\n", multifd)
    assert "note  pages of ram did not come; are there multifd channels?" in text_of(
        analyze(recorded("qemu10-none-multifd")[0])
    )
    assert "capabilities  mapped-ram" in text_of(analyze(recorded("qemu10-none-mapped-ram")))
    assert text_of(analyze(b"")).startswith("stream  no version, 0 bytes, damaged\n")


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1 << 24, "16 MiB"), (1700000, "1.6 MiB")]
)
def test_sizes(count, shown):
    assert values.size(count) == shown


@pytest.mark.parametrize(
    ("found", "kind", "rows"),
    [
        ([0] * 256, "uint64", ["256 × 0"]),
        ([], "uint64", ["none"]),
        ([1, 10, 10, -3], "int32", ["1, 2 × 10, -3"]),
        ([10], "uint8", ["0xa"]),
        ([-1, 5], "timer", ["not armed, 5 ns"]),
        ([True, False, False], "bool", ["true, 2 × false"]),
        ([None, 1], "uint64", ["null, 1"]),
        (["00ff", "00ff"], "buffer", ["2 × 00ff"]),
        (
            [*range(10), *[7] * 12],
            "uint8",
            ["[0x00] 0 1 2 3", "[0x04] 4 5 6 7", "[0x08] 8 9 7 7", "[0x0c] 7 7 7 7", "       the same up to 0x15"],
        ),
    ],
)
def test_arrays(found, kind, rows):
    if found[:3] == [0, 1, 2]:
        rows = [*rows[:4], *values.array(found, kind)[4:]]
    assert values.array(found, kind) == rows


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        ("", ["no bytes"]),
        ("00" * 16, ["16 × 00"]),
        ("0102", ["0102"]),
        (b"running".hex() + "00" * 93, ['"running", 100 bytes']),
        ("no hex", ["no hex"]),
        ("01" * 32 + "02" * 64, ["[0x00] " + "01" * 32, "[0x20] " + "02" * 32, "       the same up to 0x5f"]),
    ],
)
def test_buffers(raw, rows):
    assert values.buffer(raw) == rows


def test_colour_is_for_terminals(put):
    """Only there, and only unless NO_COLOR is set."""
    argument = put("e2k", *recorded("e2k-plain"))

    def run(**environment):
        master, terminal = pty.openpty()
        variables = {"TERM": "xterm-256color", "PATH": os.environ["PATH"], "COLUMNS": "200", **environment}
        command = [sys.executable, "-m", "qmig_e2k", "analyze", argument]
        with subprocess.Popen(command, stdout=terminal, env=variables) as process:
            os.close(terminal)
            made = b""
            while True:
                try:
                    made += os.read(master, 1 << 16)
                except OSError:
                    break
            assert process.wait() == 0
        os.close(master)
        return made.decode().replace("\r\n", "\n")

    golden = (GOLDEN / "analyze-e2k-plain.txt").read_text()
    pytest.importorskip("rich")
    coloured = run()
    assert "\x1b[" in coloured
    assert [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()] == golden.splitlines()
    assert run(NO_COLOR="1") == golden


def test_a_terminal_without_the_sign():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(tree(analyze(recorded("e2k-plain"))), out)
    out.flush()
    assert b"4 ? 0" in out.buffer.getvalue()


# ---- JSON


def test_json(put, capsys):
    assert main(["analyze", "--json", put("multifd", *recorded("qemu7-none-multifd-zlib"))]) == 0
    record = json.loads(capsys.readouterr().out)
    said = facts("qemu7-none-multifd-zlib")
    assert record["ram"]["blocks"] == [
        {"name": "ram", "size": 16 << 20, "page_size": PAGE, "sha256": said["ram_sha256"], "complete": True}
    ]
    assert record["ram"]["pages"] == {"normal": 0, "zero": 3712, "xbzrle": 0, "compressed": 0, "multifd": 384}
    assert len(record["ram"]["channels"]) == 2
    assert record["configuration"]["machine"] == record["machine"] == "none"
    assert record["devices"][0] == {
        "name": "timer",
        "instance_id": 0,
        "version": 2,
        "offset": record["devices"][0]["offset"],
        "size": 24,
        "fields": {"cpu_ticks_offset": 0, "unused": "0" * 16, "cpu_clock_offset": 0},
        "subsections": {},
    }


def test_damage(put, capsys):
    data = recorded("e2k-plain")[0]
    cut = data.index(b"\4escc") + 40
    argument = put("cut", data[:cut])
    assert main(["analyze", "--json", argument]) == 1
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["complete"] is False
    assert record["error"]["kind"] == "truncated"
    assert record["error"]["path"] == "escc/0/chn[0].wregs"
    assert record["error"]["offset"] <= cut
    assert [device["name"] for device in record["devices"]] == [
        "timer",
        "cpu_common",
        "PCIHost",
        "PCIBUS",
        "PCIBUS",
        "escc",
    ]
    assert record["devices"][-1]["partial"] is True
    assert record["ram"]["blocks"][0]["sha256"] == facts("e2k-plain")["ram_sha256"]
    assert err.count("\n") == 1
    assert "escc/0/chn[0].wregs" in err
    assert main(["analyze", argument]) == 1
    assert " cut off\n" in capsys.readouterr().out


def test_a_reader_that_leaves(put):
    argument = put("pc", *recorded("qemu7-pc-xbzrle"))
    command = [sys.executable, "-m", "qmig_e2k", "analyze", "--json", argument]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_pipe(put):
    data = recorded("qemu29-none-plain")[0]
    command = [sys.executable, "-m", "qmig_e2k", "analyze", "/dev/stdin"]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    assert done.stdout.startswith(b"stream  version 3, machine none, 36.8 KiB, complete\n")


def test_a_name_with_a_comma(tmp_path, capsys):
    path = tmp_path / "a,b"
    path.write_bytes(stream([]))
    assert main(["analyze", str(path)]) == 0


def test_files_that_are_none(put, tmp_path, capsys):
    good = put("e2k", *recorded("qemu29-none-plain"))
    missing, folder = tmp_path / "none", tmp_path / "folder"
    folder.mkdir()
    for wrong, why in [(missing, "No such file or directory"), (folder, "Is a directory")]:
        for arguments in (
            [str(wrong)],
            [f"{good},{wrong}"],
            ["--diff", good, str(wrong)],
            ["--diff", str(wrong), good],
        ):
            assert main(["analyze", *arguments]) == 1
            out, err = capsys.readouterr()
            assert (out, err) == ("", f"qmig-e2k analyze: {wrong}: {why}\n")


def test_names_that_are_wrong(put, tmp_path, capsys):
    good = put("e2k", *recorded("qemu29-none-plain"))
    for wrong, why in [
        ("", "an empty file name in ''"),
        (f"{good},", "an empty file name"),
        (f"{good},{tmp_path}/./{good.rpartition('/')[2]}", "is named twice"),
    ]:
        assert main(["analyze", wrong]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (lzma.compress(b"QEVM"), "xz -dc FILE | qmig-e2k analyze /dev/stdin"),
        (gzip.compress(b"QEVM"), "gzip -dc FILE"),
        (b"\x28\xb5\x2f\xfd", "zstd -dc FILE"),
        (b"\x11\x22\x33\x44" + bytes(60), "name the main channel's file before it"),
    ],
    ids=["empty", "xz", "gzip", "zstd", "channel"],
)
def test_what_is_no_stream(put, capsys, data, what):
    assert main(["analyze", put("wrong", data)]) == 1
    assert what in capsys.readouterr().err


def test_channels_that_are_missing(put, capsys):
    main_file, channel, _ = recorded("qemu10-none-multifd")
    assert main(["analyze", put("some", main_file, channel)]) == 0
    assert "pages of ram did not come; are there more multifd channels than the 1 named?" in capsys.readouterr().out
    assert main(["analyze", put("twice", main_file, channel, channel)]) == 0
    assert "2 files say that they are multifd channel 0: is one of them a copy?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--json"],
        ["a", "--json", "--tree"],
        ["a", "b"],
        ["--diff", "a"],
        ["--diff", "a", "b", "c"],
        ["--diff", "a", "b", "--extract-ram", "c"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["analyze", *arguments])
    assert caught.value.code == 2
    assert "usage: qmig-e2k" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    out = capsys.readouterr().out
    for word in ("--json", "--tree", "--extract-ram", "--diff", "exit status", "main,channel,channel"):
        assert word in out


# ---- RAM files


@pytest.mark.parametrize(
    ("names", "files"),
    [
        ([b"pc.ram"], ["pc.ram"]),
        ([b"/rom@etc/acpi/tables"], ["_rom_etc_acpi_tables"]),
        ([b"", b".", b".."], ["-1", ".-1", "..-1"]),
        ([b"a/b", b"a_b", b"a b"], ["a_b", "a_b-1", "a_b-2"]),
        ([b"a_b-1", b"a/b", b"a_b"], ["a_b-1", "a_b", "a_b-2"]),
        (["ü".encode(), b"\xff\0"], ["__", "__-1"]),
        ([b"x" * 255, b"x" * 254 + b"/"], ["x" * 255, "x" * 254 + "_"]),
        ([b"x" * 254 + b"/", b"x" * 254 + b" "], ["x" * 254 + "_", "x" * 253 + "-1"]),
        ([b"...", b"-1"], ["...", "-1"]),
    ],
)
def test_file_names(names, files):
    assert file_names(names) == files


def test_extract(put, tmp_path, capsys):
    argument = put("e2k", *recorded("e2k-plain"))
    folder = tmp_path / "deep" / "ram"
    for _ in range(2):
        assert main(["analyze", argument, "--extract-ram", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["e2k.firmware", "e2k.ram"]
    assert hashlib.sha256((folder / "e2k.ram").read_bytes()).hexdigest() == facts("e2k-plain")["ram_sha256"]
    assert (folder / "e2k.firmware").stat().st_size == 16 << 20
    assert (folder / "e2k.firmware").stat().st_blocks == 0


def test_extract_what_came(put, tmp_path, capsys):
    data = recorded("qemu7-none-plain")[0]
    assert main(["analyze", put("cut", data[: len(data) // 2]), "--extract-ram", str(tmp_path / "ram")]) == 1
    assert (tmp_path / "ram" / "ram").stat().st_size == 16 << 20
    assert set((tmp_path / "ram" / "ram").read_bytes()) != {0}


def test_extract_follows_no_link(put, tmp_path, capsys):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "ram").mkdir()
    (tmp_path / "ram" / "ram").symlink_to(tmp_path / "target")
    assert main(["analyze", put("s", stream([])), "--extract-ram", str(tmp_path / "ram")]) == 1
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_extract_never_writes_the_stream_itself(tmp_path, capsys):
    data = recorded("e2k-plain")[0]
    (tmp_path / "e2k.firmware").write_bytes(data)
    (tmp_path / "stream").symlink_to(tmp_path / "e2k.firmware")
    assert main(["analyze", str(tmp_path / "stream"), "--extract-ram", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("stream  version 3")
    assert f"{tmp_path}/e2k.firmware: this is the stream itself" in err
    assert (tmp_path / "e2k.firmware").read_bytes() == data


def test_extract_to_what_is_no_directory(put, tmp_path, capsys):
    argument = put("e2k", *recorded("e2k-plain"))
    (tmp_path / "file").write_bytes(b"mine")
    assert main(["analyze", argument, "--extract-ram", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"qmig-e2k analyze: {tmp_path}/file: Not a directory\n"
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_extract_over_an_older_file(put, tmp_path):
    (tmp_path / "e2k.ram").write_bytes(b"x" * (40 << 20))
    assert main(["analyze", put("e2k", *recorded("e2k-plain")), "--extract-ram", str(tmp_path)]) == 0
    assert hashlib.sha256((tmp_path / "e2k.ram").read_bytes()).hexdigest() == facts("e2k-plain")["ram_sha256"]


# ---- comparison


def test_no_difference(put, capsys):
    """The same machine, whatever way its RAM went."""
    plain, compressed = (put(name, *recorded(name)) for name in ("qemu7-none-plain", "qemu7-none-compress"))
    assert main(["analyze", "--diff", plain, plain]) == 0
    assert capsys.readouterr() == ("", f"qmig-e2k analyze: {plain} is compared with itself\n")
    assert main(["analyze", "--diff", plain, compressed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": "qmig_e2k/analyze-diff/1",
        "equal": True,
        "differences": [],
    }


def test_differences(put, capsys):
    a = put("a", our_stream("e16c", fill=False))
    b = put("b", our_stream("e16c"))
    assert main(["analyze", "--diff", a, b, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["equal"] is False
    found = {item["path"]: (item["a"], item["b"]) for item in record["differences"]}
    assert found["cpu/0/psr"][0] == 1
    assert {"cpu/0/regs_lo[0]", "cpu/1/regs_lo[255]", "cpu/0/cpu/fp.fpcr"} <= found.keys()
    assert found["cpu/0/cpu/fp.fpcr"][0] is None
    assert not any(path.startswith(("ram/", "configuration/", "order")) for path in found)
    assert main(["analyze", "--diff", a, b]) == 1
    out = capsys.readouterr().out
    assert re.search(r"cpu/0/psr\n  a  1\n  b  0x[0-9a-f]+\n", out)


def test_a_text_that_differs_can_be_read(put, capsys):
    a, b = (put(name, *recorded(name)) for name in ("qemu7-none-plain", "qemu10-none-plain"))
    assert main(["analyze", "--diff", a, b]) == 1
    assert (
        'globalstate/0/runstate\n  a  "prelaunch", 100 bytes\n  b  "prelaunch", 32 bytes\n' in capsys.readouterr().out
    )


def test_differences_of_everything(put, capsys):
    one = stream(
        [
            b"\x08\0\2\0\4\0\0\0\7",
            full(b"timer", TIMER, section_id=0, version=2),
            full(b"a", b"x"),
            full(b"b", b"x", section_id=8),
        ]
    )
    other = stream(
        [
            b"\x08\0\2\0\4\0\0\0\x08",
            b"\x08\0\x0b\0\0",
            full(b"b", b"x", section_id=10),
            full(b"timer", TIMER[:-1] + b"\x09", section_id=0, version=2),
            full(b"c", b"x"),
            full(b"a", b"y", section_id=11, version=3),
        ],
        head=b"QEVM\0\0\0\3\7\0\0\0\4nobe",
    )
    pages = other.index(b"\3ram\0\0\0\0\0\0\0\0\x10") - 8
    other = other[:pages] + struct.pack(">Q", 8) + b"\3ram" + bytes(4095) + b"\1" + other[pages + 13 :]
    found = diff(analyze(one), analyze(other))
    assert [(item.path, item.a, item.b) for item in found if item.path != "ram/ram"] == [
        ("configuration/machine", "none", "nobe"),
        ("commands[0]", {"name": "PING", "number": 2, "token": 7}, {"name": "PING", "number": 2, "token": 8}),
        ("commands[1]", None, {"name": "SWITCHOVER_START", "number": 11}),
        ("timer/0/cpu_clock_offset", 7, 9),
        ("a/0/version", 1, 3),
        ("a/0/data", "78", "79"),
        ("c/0", None, "section"),
        ("order of sections", "timer/0", "b/0"),
    ]
    (ram,) = (item for item in found if item.path == "ram/ram")
    assert ram.detail == {"pages": 1, "ranges": [[0, PAGE]]}
    assert main(["analyze", "--diff", put("a", one), put("b", other)]) == 1
    out = capsys.readouterr().out
    assert "1 pages differ: 0x0+0x1000" in out
    assert "commands[1]\n  a  -\n" in out


def test_ram_differences():
    a, b = (analyze(recorded(name)) for name in ("qemu29-none-plain", "qemu7-none-plain"))
    (ram,) = (item for item in diff(a, b) if item.path == "ram/ram")
    assert ram.detail["pages"] == 384
    assert sum(length for _, length in ram.detail["ranges"]) == 384 * PAGE
    assert ram.detail["ranges"] == [list(run) for run in b.ram_runs(0)]
    sizes = analyze(recorded("e2k-plain"))
    found = {item.path: (item.a, item.b) for item in diff(a, sizes)}
    assert found["ram/ram"] == ("block", None)
    assert found["ram/e2k.ram"] == (None, "block")


def test_damage_in_one_of_two(put, capsys):
    whole = stream([full(b"timer", TIMER, version=2)])
    assert main(["analyze", "--diff", put("a", whole), put("b", whole[:-8])]) == 1
    out, err = capsys.readouterr()
    assert "error\n  a  -\n  b  truncated at" in out
    assert err.count("\n") == 1


def test_sections_that_come_twice():
    one, other = (stream([full(b"ide", b"x"), full(b"ide", last, section_id=8)]) for last in (b"y", b"z"))
    assert not diff(analyze(one), analyze(one))
    (found,) = diff(analyze(one), analyze(other))
    assert (found.path, found.a, found.b) == ("ide/0#1/data", "79", "7a")
