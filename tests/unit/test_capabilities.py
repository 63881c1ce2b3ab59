import pytest

from qmig_e2k import MigrationError
from qmig_e2k.migration import capabilities
from qmig_e2k.migration.capabilities import CAPABILITIES, EXCLUDES, Capabilities

QEMU_7_2 = [
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "compress",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "block",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
]


def test_the_list_begins_as_qemu_7_2_lists_it():
    assert list(CAPABILITIES)[: len(QEMU_7_2)] == QEMU_7_2
    assert list(CAPABILITIES)[len(QEMU_7_2) :] == ["switchover-ack", "dirty-limit", "mapped-ram"]


def test_all_are_off_at_first_and_later_entries_win():
    caps = Capabilities()
    assert caps.enabled == []
    caps.update([("events", True), ("return-path", True), ("events", False)])
    assert caps.enabled == ["return-path"]
    assert dict(caps.items())["return-path"]
    caps.update([])
    assert caps["return-path"]
    with pytest.raises(MigrationError, match="'events' is True or False, not 'yes'"):
        caps.update([("events", "yes")])


@pytest.mark.parametrize("name", [name for name, reason in CAPABILITIES.items() if reason])
def test_what_cannot_be_had_is_refused_by_name_with_the_reason(name):
    caps = Capabilities()
    with pytest.raises(MigrationError) as caught:
        caps.update([("events", True), (name, True)])
    assert caught.value.kind == "unsupported"
    assert name in str(caught.value)
    assert CAPABILITIES[name] in str(caught.value)
    assert caps.enabled == [], "nothing of a refused list is applied"
    caps.update([(name, False)])


def test_old_spellings_and_unknown_names():
    caps = Capabilities()
    caps.update([("x-postcopy-ram", True)])
    assert caps.enabled == ["postcopy-ram"]
    with pytest.raises(MigrationError) as caught:
        caps.update([("events", True), ("teleport", True)])
    assert caught.value.kind == "invalid-argument"
    assert not caps["events"]


def test_a_capability_that_needs_another():
    caps = Capabilities()
    with pytest.raises(MigrationError, match="'postcopy-preempt' needs 'postcopy-ram'") as caught:
        caps.update([("events", True), ("postcopy-preempt", True)])
    assert (caught.value.kind, caps.enabled) == ("invalid-argument", [])
    caps.update([("postcopy-preempt", True), ("postcopy-ram", True)])  # whatever the order
    with pytest.raises(MigrationError, match="needs"):
        caps.update([("postcopy-ram", False)])
    assert caps.enabled == ["postcopy-ram", "postcopy-preempt"]
    caps.update([("postcopy-ram", False), ("postcopy-preempt", False)])


@pytest.mark.parametrize("pair", EXCLUDES)
def test_capabilities_that_exclude_each_other(monkeypatch, pair):
    """Whether they are built or not: once they are, this is what holds."""
    monkeypatch.setattr(capabilities, "CAPABILITIES", dict.fromkeys(CAPABILITIES))
    needed = [(capabilities.NEEDS[name], True) for name in pair if name in capabilities.NEEDS]
    caps = Capabilities()
    caps.update([*needed, (pair[1], True)])
    before = caps.enabled
    for changes in ([(pair[0], True)], [(pair[1], True), (pair[0], True)]):
        with pytest.raises(MigrationError, match="cannot be on together") as caught:
            caps.update([*needed, *changes])
        assert caught.value.kind == "invalid-argument"
        assert caps.enabled == before
    caps.update([*needed, (pair[1], False), (pair[0], True)])
    assert pair[0] in caps.enabled


def test_what_means_nothing_here_is_accepted():
    caps = Capabilities()
    caps.update([("zero-blocks", True), ("xbzrle", True)])
    assert caps.enabled == ["xbzrle", "zero-blocks"]
