"""The schema beside that of a real QEMU 7.2: what both have means the same on both."""

import pytest

from interop.qemu_peer import QemuPeer
from peer import ServePeer
from schemas import Schema

OWN_ARGUMENTS = {
    "migrate-set-parameters": {"avail-switchover-bandwidth?", "zero-page-detection?", "vcpu-dirty-limit?", "mode?"},
    "migrate": {"channels?", "uri?"},
    "migrate-incoming": {"channels?", "exit-on-error?", "uri?"},
    "calc-dirty-rate": {"calc-time-unit?"},
    "query-dirty-rate": {"calc-time-unit?"},
}
"""Arguments of later versions of QEMU, and members of answers that are named like them."""
LOOSE = {"block-bitmap-mapping?"}
"""Arguments that are refused whatever they are."""
MANDATORY_ONCE = {"migrate": {"uri"}, "migrate-incoming": {"uri"}}
"""Arguments that 10.0 does not need any more."""
FREE = {"announce-self", "object-add", "object-del", "client_migrate_info", "x-colo-lost-heartbeat"}
"""Commands that are refused whatever they say, or whose arguments depend on one of them."""


@pytest.fixture(scope="module")
def schemas(qemu_binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemas")
    with QemuPeer(qemu_binary, folder / "qemu", "-m", "4M") as theirs, ServePeer(folder / "ours", "-m", "4M") as ours:
        yield [Schema(peer.command("query-qmp-schema")) for peer in (theirs, ours)]


def shared(schemas, meta_type):
    theirs, ours = schemas
    return sorted(theirs.names(meta_type) & ours.names(meta_type))


def differences(theirs, ours, *, ours_may_lack, path=""):
    """Where two types differ; an enum and an object of ours may have more names where they begin with `x-`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        own = {name for name in ours.keys() - theirs.keys() if not name.startswith("x-")}
        missing = set() if ours_may_lack else theirs.keys() - ours.keys()
        found = [f"{path}: only one of both has {sorted(own | missing)}"] if own | missing else []
        for name in theirs.keys() & ours.keys():
            found += differences(theirs[name], ours[name], ours_may_lack=ours_may_lack, path=f"{path}.{name}")
        return found
    if isinstance(theirs, list) and isinstance(ours, list):
        return differences(theirs[0], ours[0], ours_may_lack=ours_may_lack, path=path + "[]")
    if isinstance(theirs, frozenset) and isinstance(ours, frozenset):
        # names of later versions are there too; a cause that never comes about is not
        return [] if theirs <= ours or (ours_may_lack and ours <= theirs) else [f"{path}: {sorted(theirs - ours)}"]
    return [] if ours in (theirs, "any") else [f"{path}: {theirs} there, {ours} here"]


def test_arguments(schemas):
    theirs, ours = schemas
    found = []
    for name in shared(schemas, "command"):
        if name in FREE or "dirty-limit" in name:
            continue
        here = {key: kind for key, kind in ours.arguments(name).items() if key not in OWN_ARGUMENTS.get(name, ())}
        gone = LOOSE | MANDATORY_ONCE.get(name, set())
        there = {key: kind for key, kind in theirs.arguments(name).items() if key not in gone}
        here = {key: kind for key, kind in here.items() if key not in LOOSE}
        found += differences(there, here, ours_may_lack=False, path=name)
    assert found == []


def test_answers(schemas):
    theirs, ours = schemas
    found = []
    for name in set(shared(schemas, "command")) - {"query-qmp-schema", "query-target"}:
        if "dirty-limit" in name:
            continue
        there, here = theirs.answer(name), ours.answer(name)
        later = OWN_ARGUMENTS.get("migrate-set-parameters" if name == "query-migrate-parameters" else name, ())
        if isinstance(here, dict):
            here = {key: kind for key, kind in here.items() if key not in later}
        found += differences(there, here, ours_may_lack=True, path=name)
    assert found == []


def test_events_and_out_of_band(schemas):
    theirs, ours = schemas
    found = []
    for name in shared(schemas, "event"):
        found += differences(theirs.arguments(name), ours.arguments(name), ours_may_lack=True, path=name)
    assert found == []
    overtaking = [name for name in shared(schemas, "command") if theirs.entries[name].get("allow-oob")]
    assert overtaking
    assert all(ours.entries[name].get("allow-oob") for name in overtaking)
