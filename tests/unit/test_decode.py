"""decode: whole streams as dicts. Streams of real QEMUs, a cut at every byte, one stream for each kind of refusal."""

import hashlib
import json
import lzma
import struct

import pytest

from qmig_e2k._core import Reader, StreamError, Writer, decode
from support import STREAMS

GOLDEN = ["qemu29-none-plain", "qemu7-none-plain", "qemu10-none-plain", "e2k-plain"]

MEM_SIZE, ZERO, PAGE, EOS, CONTINUE = 0x04, 0x02, 0x08, 0x10, 0x20


def golden(name):
    return lzma.decompress((STREAMS / f"{name}.stream.xz").read_bytes())


def facts(name):
    return json.loads((STREAMS / f"{name}.json").read_text())


class Stream:
    """Writes elements; every method returns the stream itself."""

    def __init__(self, head=b"QEVM\0\0\0\3\7\0\0\0\4none"):
        self.bytes = bytearray(head)

    def raw(self, data):
        self.bytes += data
        return self

    def start(self, section_id=2, idstr=b"ram", instance=0, version=4, kind=1):
        return self.raw(
            struct.pack(">BIB", kind, section_id, len(idstr)) + idstr + struct.pack(">II", instance, version)
        )

    def full(self, section_id, idstr, payload, version=1, instance=0):
        return self.start(section_id, idstr, instance, version, kind=4).raw(payload).footer(section_id)

    def part(self, section_id=2):
        return self.raw(struct.pack(">BI", 2, section_id))

    def end(self, section_id=2):
        return self.raw(struct.pack(">BI", 3, section_id))

    def word(self, word):
        return self.raw(struct.pack(">Q", word))

    def block(self, name, size):
        return self.raw(bytes([len(name)]) + name).word(size)

    def footer(self, section_id=2):
        return self.raw(struct.pack(">BI", 0x7E, section_id))

    def command(self, number, payload=b"", length=None):
        return self.raw(struct.pack(">BHH", 8, number, len(payload) if length is None else length) + payload)

    def ram(self, pages=2, name=b"ram"):
        return self.start().word(pages * 4096 | MEM_SIZE).block(name, pages * 4096).word(EOS).footer()


def refused(data, **options):
    with pytest.raises(StreamError) as caught:
        decode(bytes(data.bytes if isinstance(data, Stream) else data), **options)
    return caught.value


# ---- streams of real QEMUs


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    data, said = golden(name), facts(name)
    elements = decode(data)
    e2k = name == "e2k-plain"
    devices = ["timer", "cpu_common", "PCIHost", "PCIBUS", "PCIBUS", "escc"] if e2k else ["timer"]
    switchover = ["command"] if "qemu10" in name else []
    types = ["configuration", "start", "part", *switchover, "end", *["full"] * (len(devices) + 1), "eof", "description"]
    assert [element["type"] for element in elements] == types
    assert [element["idstr"] for element in elements if element["type"] == "full"] == [*devices, "globalstate"]
    assert [element["offset"] for element in elements] == sorted({element["offset"] for element in elements})
    assert elements[0] == {
        "type": "configuration",
        "offset": 8,
        "machine": "e2k" if e2k else "none",
        "target_page_bits": None,
        "capabilities": [],
        "uuid": None,
    }
    (main, *others) = elements[1]["blocks"]
    assert main["name"] == ("e2k.ram" if e2k else "ram")
    assert (main["size"], main["sha256"]) == (said["ram_bytes"], said["ram_sha256"])
    assert [block["name"] for block in others] == (["e2k.firmware"] if e2k else [])
    pages = [element["pages"] for element in elements if "pages" in element]
    assert sum(page["normal"] for page in pages) == said["ram_counters"]["normal"]
    assert sum(page["zero"] for page in pages) == said["ram_counters"]["duplicate"]
    described = json.loads(elements[-1]["text"])
    assert [device["name"] for device in described["devices"]] == [*devices, "globalstate"]
    last = elements[-1]
    assert last["offset"] + 5 + last["length"] == len(data)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_with_a_resolver(name):
    sizes = {"timer": 24, "cpu_common": 8, "PCIHost": 4, "escc": 116, "globalstate": 104}
    seen = []

    def resolve(idstr, instance, version, reader):
        seen.append((idstr, instance, version))
        at = reader.offset
        if idstr == "PCIBUS":
            reader.skip(4 * reader.u32())
        elif idstr == "globalstate":
            length = reader.u32()
            assert len(reader.read(100).split(b"\0")[0]) + 1 == length
        else:
            assert len(reader.read(sizes[idstr])) == sizes[idstr]
        assert reader.offset > at

    data = golden(name)
    assert decode(data, resolve) == decode(data)
    assert seen[0] == ("timer", 0, 2)
    assert seen[-1] == ("globalstate", 0, 1)


def test_elements_in_full():
    data = (
        Stream()
        .command(1)
        .command(2, struct.pack(">I", 7))
        .command(3)
        .command(3, struct.pack(">QQ", 4096, 4096))
        .ram()
        .command(6, b"\0\3ram\0" + struct.pack(">QQ", 4096, 4096))
        .command(7, struct.pack(">I", 99))
        .command(10, b"\3ram")
        .part()
        .word(ZERO)
        .raw(b"\3ram\0")
        .word(4096 | PAGE | CONTINUE)
        .raw(bytes([5]) * 4096)
        .word(EOS)
        .footer()
        .raw(b"\0\6\0\0\0\2{}")
    )
    elements = decode(bytes(data.bytes))
    for element in elements:
        element.pop("offset")
    command = {"type": "command"}
    ram = {"section_id": 2, "idstr": "ram", "instance_id": 0, "version_id": 4}
    (sha,) = [block.pop("sha256") for block in elements[5]["blocks"]]
    assert sha == hashlib.sha256(bytes(4096) + bytes([5]) * 4096).hexdigest()
    assert elements[1:] == [
        command | {"name": "OPEN_RETURN_PATH", "number": 1},
        command | {"name": "PING", "number": 2, "token": 7},
        command | {"name": "POSTCOPY_ADVISE", "number": 3},
        command | {"name": "POSTCOPY_ADVISE", "number": 3, "page_sizes": 4096, "target_page": 4096},
        {"type": "start", "pages": {"normal": 0, "zero": 0}, "blocks": elements[5]["blocks"]} | ram,
        command | {"name": "POSTCOPY_RAM_DISCARD", "number": 6, "block": "ram", "ranges": [(4096, 4096)]},
        command | {"name": "PACKAGED", "number": 7, "size": 99},
        command | {"name": "RECV_BITMAP", "number": 10, "block": "ram"},
        {"type": "part", "pages": {"normal": 1, "zero": 1}} | ram,
        {"type": "eof"},
        {"type": "description", "length": 2, "text": b"{}"},
    ]


def test_any_buffer():
    data = golden("qemu29-none-plain")
    assert decode(bytearray(data)) == decode(memoryview(data)) == decode(data)


# ---- cuts


def test_cut_at_every_byte():
    """Every cut is `truncated`, but the one behind the end marker, where a description may be missing."""
    data = golden("qemu29-none-plain")
    # All but a few of the 4096 zero pages are the same nine bytes; leave out most of them.
    first = data.index(struct.pack(">Q", 0x3000 | ZERO | CONTINUE))
    last = data.index(struct.pack(">Q", 0xFFF000 | ZERO | CONTINUE))
    data = data[:first] + data[last:]
    whole = decode(data)
    (end,) = [element["offset"] for element in whole if element["type"] == "eof"]
    for cut in range(len(data)):
        if cut == end + 1:
            assert decode(data[:cut]) == strip_hash(whole[:-1])
            continue
        error = refused(data[:cut])
        assert error.kind == "truncated", (cut, error)
        assert cut - 1024 <= error.offset <= cut
        assert strip_hash(error.partial) == strip_hash(whole[: len(error.partial)])


def strip_hash(elements):
    """Without the block hashes, which a shortened stream does not have."""
    for element in elements:
        for block in element.get("blocks", []):
            block["sha256"] = None
    return elements


# ---- refusals


def ram_part(build):
    return build(Stream().ram().part()).word(EOS).footer()


REFUSALS = {
    "header": (b"MZ\0\0\0\0\0\0", "bad-magic", 0, "header"),
    "version 2": (b"QEVM\0\0\0\2", "obsolete-version", 4, "header"),
    "version 4": (b"QEVM\0\0\0\4", "bad-version", 4, "header"),
    "cut": (b"QEVM\0", "truncated", 4, "header"),
    "machine name": (b"QEVM\0\0\0\3\7\0\0\1\0", "limit-exceeded", 9, "configuration"),
    "target pages": (
        Stream().raw(b"\5\x1econfiguration/target-page-bits\0\0\0\1\0\0\0\x0d"),
        "bad-configuration",
        53,
        "configuration/target-page-bits",
    ),
    "subsection version": (
        Stream().raw(b"\5\x12configuration/uuid\0\0\0\2"),
        "bad-version",
        37,
        "configuration/uuid",
    ),
    "element": (Stream().raw(b"\x55"), "unknown-element", 17, ""),
    "unknown device": (Stream().full(1, b"toaster", b"", instance=3), "unknown-section", 17, "toaster/3"),
    "unannounced": (Stream().part(9), "unknown-section", 17, ""),
    "ram twice": (Stream().ram().start(3), "duplicate-section", 67, "ram"),
    "ram version": (Stream().start(version=3), "bad-version", 30, "ram"),
    "footer": (Stream().start(0, b"timer", version=2, kind=4).raw(bytes(24)).raw(b"\0"), "bad-footer", 60, "timer/0"),
    "left over": (Stream().full(0, b"timer", bytes(25), version=2), "bad-footer", 60, "timer/0"),
    "command": (Stream().command(12), "bad-command", 17, "command"),
    "command length": (Stream().command(2, b"\0"), "bad-command", 20, "command/PING"),
    "no list": (Stream().start().word(EOS), "bad-flags", 34, "ram"),
    "block length": (Stream().start().word(8192 | MEM_SIZE).block(b"ram", 100), "block-mismatch", 46, "ram/ram"),
    "overshoot": (Stream().start().word(8192 | MEM_SIZE).block(b"ram", 12288), "block-mismatch", 46, "ram/ram"),
    "block twice": (
        Stream().start().word(8192 | MEM_SIZE).block(b"ram", 4096).block(b"ram", 4096),
        "block-mismatch",
        54,
        "ram/ram",
    ),
    "unknown block": (ram_part(lambda s: s.word(ZERO).raw(b"\3rom\0")), "unknown-block", 80, "ram"),
    "outside": (ram_part(lambda s: s.word(8192 | ZERO).raw(b"\3ram\0")), "bad-address", 72, "ram/ram"),
    "nothing to continue": (ram_part(lambda s: s.word(ZERO | CONTINUE).raw(b"\0")), "bad-flags", 72, "ram"),
    "two flags": (ram_part(lambda s: s.word(ZERO | PAGE).raw(b"\3ram\0")), "bad-flags", 72, "ram"),
    "xbzrle": (ram_part(lambda s: s.word(0x40)), "unsupported", 72, "ram"),
    "device": (
        Stream().start(1, b"cpu_common", version=1, kind=4).raw(bytes(8)).raw(b"\5\x0fcpu_common/mood\0\0\0\1"),
        "device-state",
        49,
        "cpu_common/0",
    ),
    "trailing": (Stream().raw(b"\0\6\0\0\0\2{}more"), "trailing-data", 25, ""),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    data, kind, offset, path = REFUSALS[name]
    error = refused(data)
    assert (error.kind, error.offset, error.path) == (kind, offset, path), str(error)
    assert error.message
    assert [element["offset"] for element in error.partial] == sorted(element["offset"] for element in error.partial)


def test_obsolete_version_says_what_to_do():
    assert "newer QEMU" in refused(b"QEVM\0\0\0\2").message


def test_footers_are_the_callers_to_know():
    data = bytes(Stream().start(0, b"PCIHost", version=1, kind=4).raw(bytes(4)).raw(b"\0").bytes)
    assert [element["type"] for element in decode(data, footers=False)] == ["configuration", "full", "eof"]
    assert refused(data).kind == "bad-footer"
    assert refused(Stream().ram(), footers=False).kind == "unknown-element"


def test_no_configuration():
    assert [element["type"] for element in decode(b"QEVM\0\0\0\3\0")] == ["eof"]


def test_partial_holds_what_was_fine():
    error = refused(golden("e2k-plain")[:-2000])
    assert [element["type"] for element in error.partial][:4] == ["configuration", "start", "part", "end"]
    assert error.partial[1]["blocks"][0]["sha256"] == facts("e2k-plain")["ram_sha256"]


def test_a_made_up_length_is_not_hashed():
    elements = decode(bytes(Stream().ram(pages=1 << 40).raw(b"\0").bytes))
    assert elements[1]["blocks"] == [{"name": "ram", "size": 1 << 52, "offset": 42, "sha256": None}]


# ---- resolvers


def test_a_resolver_reads_too_little():
    error = refused(golden("qemu7-none-plain"), resolver=lambda _idstr, _instance, _version, reader: reader.skip(1))
    assert (error.kind, error.path) == ("bad-footer", "timer/0")


def test_a_resolver_reads_too_much():
    data = golden("qemu7-none-plain")
    error = refused(data, resolver=lambda _idstr, _instance, _version, reader: reader.skip(len(data)))
    assert error.kind == "truncated"
    assert error.partial[-1]["type"] == "end"


def test_a_resolver_raises():
    def resolve(idstr, _instance, _version, _reader):
        raise KeyError(idstr)

    with pytest.raises(KeyError, match="timer") as caught:
        decode(golden("qemu7-none-plain"), resolve)
    assert caught.value.partial[-1]["type"] == "end"


def test_a_reader_ends_with_its_section():
    kept = []
    decode(golden("qemu7-none-plain"), lambda _i, _n, _v, reader: (kept.append(reader), reader.skip(SIZES[_i])))
    with pytest.raises(Exception, match="over") as caught:
        kept[0].u8()
    assert caught.value.kind == "invalid-state"


SIZES = {"timer": 24, "globalstate": 104}


def test_a_writer_feeds_decode():
    writer = Writer()
    writer.write(b"QEVM")
    writer.u32(3)
    writer.u8(7)
    writer.u32(3)
    writer.write(b"e2k")
    writer.u8(0)
    assert decode(writer.getvalue())[0]["machine"] == "e2k"
    assert Reader(writer.getvalue()).read(4) == b"QEVM"
