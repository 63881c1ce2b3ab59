"""What the manual claims to list completely is complete."""

import re
from dataclasses import fields

from qmig_e2k.e2k import OPTIONS, build, cpu, devices
from qmig_e2k.limits import Limits
from qmig_e2k.migration.parameters import parse_size
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock
from support import REPOSITORY


def test_every_error_kind_has_a_row():
    source = (REPOSITORY / "rust/core/src/error.rs").read_text()
    kinds = re.findall(r'^    [A-Z]\w+ => "([a-z-]+)",$', source, re.MULTILINE)
    rows = re.findall(
        r"^\| `([a-z-]+)` \| .* \| .*\|$", (REPOSITORY / "docs/reference/errors.md").read_text(), re.MULTILINE
    )
    assert len(kinds) > 30
    assert sorted(set(rows) - {"kind", "message", "offset", "path"}) == sorted(kinds)


def test_every_limit_has_a_row():
    """Those that can be set with their defaults, those of the format with theirs."""
    page = (REPOSITORY / "docs/reference/limits.md").read_text()
    rows = dict(re.findall(r"^\| `([a-zA-Z_-]+)` \| (.*?) \| .*\|$", page, re.MULTILINE))
    own = {field.name.replace("_", "-"): field.default for field in fields(Limits)}
    assert {name: parse_size(text) for name, text in rows.items() if name.islower()} == own
    source = (REPOSITORY / "rust/core/src/wire/limits.rs").read_text()
    wire = dict(re.findall(r"^pub const (\w+): \w+ = (.*);$", source, re.MULTILINE))
    said = {name: parse_size(text.replace(" ", "").removesuffix("iB")) for name, text in rows.items() if name.isupper()}
    assert said == {name: eval(value.replace("_", "")) for name, value in wire.items()}
    assert Limits().core == (said["SECTIONS_MAX"], said["RAM_BLOCKS_MAX"], said["PACKAGE_MAX"])


def test_every_make_target_explains_itself():
    makefile = (REPOSITORY / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z-]+):.* ## \S", makefile, re.MULTILINE))
    wanted = "help venv build dev test test-long lint fmt demo bench docs fuzz fuzz-smoke coverage doctor clean".split()
    assert explained >= set(wanted)


def test_every_section_of_the_machine_e2k_has_a_row():
    page = (REPOSITORY / "docs/reference/e2k-machine.md").read_text()
    rows = [[re.findall("`(.*?)`", cell) for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    sections = {name: row[2] for row in rows if len(row) == 4 for name in row[0]}
    sent = {}
    for model in ("e8c", "e16c"):
        registry = Registry()
        hardware = build("e2k", 1 << 20, model=model, options=OPTIONS)
        hardware.register(registry, VirtualClock(), GlobalState(Profile()))
        order = list(dict.fromkeys(entry.idstr for entry in registry))
        assert [name for name in sections if name in order] == order
        sent |= {entry.idstr: entry.handler for entry in registry}
    assert set(sections) == set(sent)
    public = vars(cpu) | vars(devices)
    for name, exported in sections.items():
        if exported:
            assert sent[name].description is public[exported[0]]
            assert isinstance(sent[name].obj, public[exported[1]])
