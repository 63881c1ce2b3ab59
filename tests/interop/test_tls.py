"""TLS with a real QEMU 7.2 (GnuTLS) as the other end, in both roles."""

import re

import pytest

from peer import Peer
from qmig_e2k.testing import Proxy
from support import PAGE, assert_same_memory, mixed_ram, wait_until

SIZE = 16 << 20
SLOW = 1 << 20
BOTH_WAYS = pytest.mark.parametrize(("here", "there"), [("qemu", "ours"), ("ours", "qemu")])


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


def trust(peer: Peer, folder, endpoint, **properties):
    peer.command("object-add", qom_type="tls-creds-x509", id="tls0", dir=str(folder), endpoint=endpoint, **properties)
    peer.command("migrate-set-parameters", tls_creds="tls0")


@pytest.fixture
def sides(qemu, serve, image, certificates):
    """`sides("qemu", "ours", client="good", server="good", **capabilities)`: a running source, and a destination."""

    def sides(here, there, *, client="good", server="good", **capabilities):
        start = {"qemu": qemu, "ours": serve}
        source, destination = start[here]("-m", "16M", ram=image), start[there]("-m", "16M", incoming="defer")
        sane = {"sanity_check": (client, server) == ("good", "good")}
        trust(source, certificates / client, "client", **sane)
        trust(destination, certificates / server, "server", **sane)
        for side in (source, destination):
            side.set_capabilities(events=True, return_path=True, **capabilities)
            side.command("cont")
        source.command("migrate-set-parameters", max_bandwidth=0)
        return source, destination

    return sides


def arrived(source, destination, content):
    source.wait_migration("completed")
    destination.wait_arrived()
    assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")
    assert_same_memory(destination.memory(SIZE), content)


@pytest.mark.parametrize("method", [None, "zstd"], ids=["main", "multifd"])
@BOTH_WAYS
def test_a_machine_arrives(sides, content, here, there, method):
    source, destination = sides(here, there, multifd=method is not None)
    for side in (source, destination):
        side.command("migrate-set-parameters", multifd_channels=3, multifd_compression=method or "none")
    source.command("migrate", uri=destination.listen())
    arrived(source, destination, content)


@pytest.mark.parametrize("hostname", ["", "localhost"])
@BOTH_WAYS
def test_a_socket_without_a_host_needs_its_name(sides, content, tmp_path, here, there, hostname):
    source, destination = sides(here, there)
    source.command("migrate-set-parameters", tls_hostname=hostname)
    source.command("migrate", uri=destination.listen(f"unix:{tmp_path}/channel"))
    if hostname:
        arrived(source, destination, content)
        return
    source.wait_migration("failed")
    assert source.run_state() == "running"


@pytest.mark.parametrize("preempt", [False, True], ids=["main", "preempt"])
@BOTH_WAYS
def test_postcopy_and_its_recovery(sides, content, here, there, preempt):
    source, destination = sides(here, there, postcopy_ram=True, postcopy_preempt=preempt)
    source.command("migrate-set-parameters", max_bandwidth=SLOW, max_postcopy_bandwidth=SLOW)
    with Proxy(int(destination.listen().rpartition(":")[2])) as proxy:
        source.command("migrate", uri=proxy.uri)
        source.command("migrate-start-postcopy")
        for side in (source, destination):
            side.wait_migration("postcopy-active")
        destination.wait_arrived()
        assert destination.memory(PAGE, SIZE - PAGE) == content[-PAGE:]
        assert source.migration()["ram"]["postcopy-requests"] > 0
        source.command("migrate-pause")
        for side in (source, destination):
            side.wait_migration("postcopy-paused")
    destination.command("migrate-recover", uri="tcp:127.0.0.1:0")
    port = destination.migration()["socket-address"][0]["port"]
    source.command("migrate", uri=f"tcp:127.0.0.1:{port}", resume=True)
    for side in (source, destination):
        side.wait_migration("postcopy-active", "completed")
    source.command("migrate-set-parameters", max_postcopy_bandwidth=0)
    assert destination.memory(PAGE, SIZE - 2 * PAGE) == content[-2 * PAGE : -PAGE]
    arrived(source, destination, content)


BAD = [
    ("ours", "qemu", {"server": "expired"}, "expired on"),
    ("ours", "qemu", {"server": "elsewhere"}, r"elsewhere\.example"),
    ("ours", "qemu", {"server": "stranger"}, "not signed by the authority"),
    ("qemu", "ours", {"server": "stranger"}, "known issuer"),
    ("ours", "qemu", {"client": "bare"}, "No certificate was found"),
    ("qemu", "ours", {"client": "bare"}, "the source shows no certificate"),
    ("qemu", "ours", {"client": "expired"}, "the source's certificate expired on"),
]


@pytest.mark.parametrize(("here", "there", "folders", "words"), BAD)
def test_bad_certificates(sides, here, there, folders, words):
    """The machine runs on at the source, the destination is still there, and one of them says why."""
    source, destination = sides(here, there, **folders)
    source.command("migrate", uri=destination.listen())
    error = source.wait_migration("failed")["error-desc"]
    assert (source.run_state(), destination.run_state()) == ("running", "inmigrate")
    wait_until(lambda: re.search(words, error + source.words() + destination.words()), what=f"a log with {words!r}")


@pytest.mark.parametrize(("name", "good"), [("good", True), ("somebody else", False)])
@BOTH_WAYS
def test_who_may_come_in(sides, content, here, there, name, good):
    """Both write the name in the certificate in the same way."""
    source, destination = sides(here, there)
    rule = {"match": f"O=qmig,CN={name}", "policy": "allow"}
    destination.command("object-add", qom_type="authz-list", id="who", rules=[rule])
    destination.command("migrate-set-parameters", tls_authz="who")
    source.command("migrate", uri=destination.listen())
    if good:
        arrived(source, destination, content)
        return
    source.wait_migration("failed")
    assert (source.run_state(), destination.run_state()) == ("running", "inmigrate")
