"""Migrations over TLS between machines of ours: every transport, and every kind of certificate that is refused."""

import contextlib
import socket

import pytest

from qmig_e2k import MigrationError
from qmig_e2k.testing import Proxy, pair
from support import wait_until

SLOW = 1 << 20


def trust(side, folder, endpoint, name="tls0", **properties):
    """Give a side what is in `folder`, whatever is wrong with it."""
    side.vm.add_object("tls-creds-x509", name, dir=str(folder), endpoint=endpoint, sanity_check=False, **properties)
    side.vm.set_parameters(tls_creds=name)


@pytest.fixture
def sides(certificates):
    """Source and destination with good certificates, the source running."""
    with pair() as (source, destination):
        trust(source, certificates / "good", "client")
        trust(destination, certificates / "good", "server")
        source.vm.start()
        yield source, destination


def arrives(source, destination, uri, arrival):
    source.vm.migrate(uri).wait(30)
    arrival.wait(30)
    assert (source.vm.run_state, destination.vm.run_state) == ("postmigrate", "running")
    destination.vm.stop()
    destination.emulator.check()


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_a_machine_arrives(sides, tmp_path, way, channels):
    source, destination = sides
    for side in sides:
        side.vm.set_capabilities(multifd=channels > 0)
        side.vm.set_parameters(multifd_channels=channels or 2)
    if way == "unix":
        source.vm.set_parameters(tls_hostname="localhost")
    arrives(source, destination, *destination.listen("tcp:127.0.0.1:0" if way == "tcp" else f"unix:{tmp_path}/socket"))


def test_a_passed_descriptor_and_nothing_readable_on_the_wire(sides):
    """What passes the wire has neither the machine's name nor its memory in it."""
    source, destination = sides
    source.vm.set_parameters(tls_hostname="localhost")
    (here, near), (far, there) = socket.socketpair(), socket.socketpair()
    seen = bytearray()
    arrival = destination.vm.incoming("fd:socket", fd=there.detach())
    migration = source.vm.migrate("fd:socket", fd=here.detach())
    with near, far:

        def relay():
            for one, other in ((near, far), (far, near)):
                with contextlib.suppress(OSError):  # nothing there now, or the end on either side
                    data = one.recv(1 << 20, socket.MSG_DONTWAIT)
                    seen.extend(data)
                    other.sendall(data) if data else other.shutdown(socket.SHUT_WR)
            return migration.done() and arrival.done()

        wait_until(relay, 30, "the end of the migration")
    migration.wait()
    arrival.wait()
    assert destination.vm.run_state == "running"
    assert len(seen) > 1 << 16
    assert b"e2k.ram" not in seen


@pytest.mark.parametrize("preempt", [False, True], ids=["main", "preempt"])
def test_postcopy_goes_on_with_other_certificates(sides, certificates, preempt):
    """A recovery may have another address, and other certificates, on both sides."""
    source, destination = sides
    for side in sides:
        side.vm.set_capabilities(postcopy_ram=True, postcopy_preempt=preempt)
    source.vm.set_parameters(max_bandwidth=SLOW // 4, max_postcopy_bandwidth=SLOW // 4)
    uri, arrival = destination.listen()
    destination.vm.stop()
    migration = source.vm.migrate(uri)
    migration.start_postcopy()
    wait_until(lambda: migration.status == arrival.status == "postcopy-active", what="postcopy")
    wait_until(lambda: destination.vm.run_state == "paused", what="the machine")
    destination.ram.prefault((1 << 20) - 4096, 4096)
    migration.pause()
    wait_until(lambda: migration.status == arrival.status == "postcopy-paused", what="the pause")

    # what cannot be, while a recovery may need it, is said before anything is changed
    with pytest.raises(MigrationError, match="no object 'nobody'"):
        destination.vm.set_parameters(tls_creds="nobody")
    with pytest.raises(MigrationError, match="in use"):
        source.vm.del_object("tls0")
    trust(destination, certificates / "stranger", "server", "tls1")
    arrival.recover("tcp:127.0.0.1:0")
    again = f"tcp:127.0.0.1:{arrival.addresses[0]['port']}"
    migration.recover(again)
    wait_until(lambda: "not signed by the authority" in migration.info().get("error-desc", ""), what="the refusal")
    assert migration.status == "postcopy-paused"
    trust(source, certificates / "stranger", "client", "tls1")
    source.vm.del_object("tls0")
    source.vm.set_parameters(max_postcopy_bandwidth=0)
    migration.recover(again)
    migration.wait(30)
    arrival.wait(30)
    destination.emulator.check()


BAD = {
    "the destination's has expired": ({"server": "expired"}, "the destination's certificate expired on"),
    "it is for another host": (
        {"server": "elsewhere"},
        'not for "127.0.0.1" but for .*elsewhere.example.*tls-hostname',
    ),
    "of another authority": ({"server": "stranger"}, "the destination's certificate is not signed by the authority"),
    "the source's has expired": ({"client": "expired"}, "expired"),
    "the source's is of another authority": ({"client": "stranger", "trusts": "good"}, "authority"),
    "the source has none": ({"client": "bare"}, "wants a certificate, and there is none"),
    "the source's is revoked": ({"client": "second", "server": "revoking"}, "revoked"),
    "the source is not let in": ({"client": "second", "authz": True}, "tls-authz does not let"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_certificates_stop_a_migration_and_nothing_else(certificates, tmp_path, case):
    """The source says why, its machine runs on, and the destination waits for one that is better."""
    folders, words = BAD[case]
    client = certificates / folders.get("client", "good")
    if "trusts" in folders:  # so that it is the destination who objects
        client = tmp_path / "client"
        client.mkdir()
        for file in ("client-cert.pem", "client-key.pem"):
            (client / file).write_bytes((certificates / folders["client"] / file).read_bytes())
        (client / "ca-cert.pem").write_bytes((certificates / folders["trusts"] / "ca-cert.pem").read_bytes())
    with pair() as (source, destination):
        trust(source, client, "client")
        trust(destination, certificates / folders.get("server", "good"), "server")
        if folders.get("authz"):
            destination.vm.add_object("authz-list", "who", rules=[{"match": "O=qmig,CN=good", "policy": "allow"}])
            destination.vm.set_parameters(tls_authz="who")
        source.vm.start()
        uri, arrival = destination.listen()
        migration = source.vm.migrate(uri)
        with pytest.raises(MigrationError, match=words) as caught:
            migration.wait(30)
        assert caught.value.kind == "tls", caught.value
        assert source.vm.run_state == "running"
        if "server" in folders:
            return
        assert (arrival.done(), destination.vm.run_state) == (False, "inmigrate")
        trust(source, certificates / "good", "client", "better")
        arrives(source, destination, uri, arrival)


def test_a_list_past_its_date_counts_and_is_told_of(certificates, caplog):
    """QEMU 7.2 accepts it, too, and says nothing."""
    with pair() as (source, destination):
        trust(destination, certificates / "stale", "server")
        wait_until(lambda: "ca-crl.pem: a newer list was to come by Jan  2" in caplog.text, what="a warning")
        trust(source, certificates / "second", "client")
        source.vm.start()
        uri, arrival = destination.listen()
        with pytest.raises(MigrationError, match="revoked"):
            source.vm.migrate(uri).wait(30)
        trust(source, certificates / "good", "client", "better")
        arrives(source, destination, uri, arrival)


def test_an_empty_list_lets_nobody_in(certificates):
    """As in QEMU; never set, it lets everybody in."""
    with pair() as (source, destination):
        trust(source, certificates / "good", "client")
        trust(destination, certificates / "good", "server")
        destination.vm.set_parameters(tls_authz="")
        source.vm.start()
        uri, _arrival = destination.listen()
        with pytest.raises(MigrationError, match="tls-authz does not let"):
            source.vm.migrate(uri).wait(30)
        assert source.vm.run_state == "running"


def test_a_source_without_tls_is_not_let_in(sides):
    source, destination = sides
    source.vm.set_parameters(tls_creds=None)
    uri, arrival = destination.listen()
    with pytest.raises(MigrationError):
        source.vm.migrate(uri).wait(40)
    assert (arrival.done(), source.vm.run_state) == (False, "running")
    source.vm.set_parameters(tls_creds="tls0")
    arrives(source, destination, uri, arrival)


def test_a_destination_without_tls_is_refused(sides):
    source, destination = sides
    destination.vm.set_parameters(tls_creds=None)
    uri, arrival = destination.listen()
    with pytest.raises(MigrationError, match=r"has no tls-creds|does not speak TLS") as caught:
        source.vm.migrate(uri).wait(40)
    assert caught.value.kind == "tls"
    assert source.vm.run_state == "running"
    with pytest.raises(MigrationError):
        arrival.wait(40)
    assert destination.vm.run_state == "inmigrate"


def test_nobody_has_to_prove_anything_where_nobody_asks(certificates):
    with pair() as (source, destination):
        trust(source, certificates / "bare", "client", verify_peer=False)
        trust(destination, certificates / "stranger", "server", verify_peer=False)
        source.vm.start()
        arrives(source, destination, *destination.listen())


def test_a_cancel_in_the_handshake(sides):
    """A destination that accepts and says nothing: the cancel is heard at once."""
    source, _ = sides
    with socket.create_server(("127.0.0.1", 0)) as listener:
        migration = source.vm.migrate(f"tcp:127.0.0.1:{listener.getsockname()[1]}")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1)
            assert migration.cancel()
            with pytest.raises(MigrationError) as caught:
                migration.wait(20)
    assert caught.value.kind == "cancelled"
    assert source.vm.run_state == "running"


def test_a_wire_that_is_cut_in_the_middle(sides):
    source, destination = sides
    uri, arrival = destination.listen()
    with Proxy(int(uri.rpartition(":")[2]), cut_forward=300_000) as proxy:
        with pytest.raises(MigrationError):
            source.vm.migrate(proxy.uri).wait(30)
        with pytest.raises(MigrationError):
            arrival.wait(30)
    assert (source.vm.run_state, destination.vm.run_state) == ("running", "inmigrate")


def test_serve_makes_objects_from_its_command_line(serve, certificates):
    options = [
        f"tls-creds-x509,id=tls0,dir={certificates}/good,endpoint=server",
        "authz-simple,id=who,identity=O=qmig,,CN=good",
    ]
    settings = ["migration.tls-creds=tls0", "migration.tls-authz=who"]
    words = [word for text in options for word in ("-object", text)]
    words += [word for text in settings for word in ("-global", text)]
    destination = serve("-m", "4M", *words, incoming="tcp:127.0.0.1:0")
    source = serve("-m", "4M", "--object", f'{{"qom-type": "tls-creds-x509", "id": "t", "dir": "{certificates}/good"}}')
    source.command("migrate-set-parameters", tls_creds="t")
    address = destination.migration()["socket-address"][0]
    source.command("migrate", uri=f"tcp:127.0.0.1:{address['port']}")
    source.wait_migration("completed")
    destination.wait_arrived()


def test_a_snapshot_is_no_matter_of_tls(certificates, tmp_path):
    """Neither while its parameters are set, nor after a migration that had it."""
    with pair(snapshot_dir=tmp_path / "snapshots") as (source, destination):
        trust(source, certificates / "good", "client")
        trust(destination, certificates / "stranger", "server")
        source.vm.start()
        uri, _ = destination.listen()
        with pytest.raises(MigrationError, match="authority"):
            source.vm.migrate(uri).wait(30)
        source.vm.savevm("one")
        source.vm.loadvm("one")
        assert source.vm.run_state == "running"
