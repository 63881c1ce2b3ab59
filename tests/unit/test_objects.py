"""`object-add`, `-object` and `Vm.add_object`: properties as QEMU has them, one clear error for whatever is wrong."""

import json
import re
import shutil

import pytest

from qmig_e2k import MigrationError, Vm
from qmig_e2k.migration.objects import make, parse

RULES = [{"match": "O=qmig,CN=evil", "policy": "deny"}, {"match": "O=qmig,CN=*", "policy": "allow", "format": "glob"}]


@pytest.fixture
def vm():
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20)
        yield vm


def refused(kind, words, call, *arguments, **properties):
    with pytest.raises(MigrationError) as caught:
        call(*arguments, **properties)
    assert caught.value.kind == kind
    assert re.search(words, str(caught.value)), str(caught.value)


def test_credentials_have_qemus_defaults(certificates):
    creds = make("tls-creds-x509", {"dir": str(certificates / "good")})
    assert (creds.endpoint, creds.verify_peer) == ("client", True)
    name, creds = parse(f"tls-creds-x509,id=a,dir={certificates}/good,endpoint=server,verify-peer=off,sanity-check=on")
    assert (name, creds.endpoint, creds.verify_peer) == ("a", "server", False)


def test_who_may_come_in():
    simple = make("authz-simple", {"identity": "O=qmig,CN=good"})
    assert simple.allows("O=qmig,CN=good")
    assert not simple.allows("CN=good")
    listed = make("authz-list", {"rules": RULES})
    assert [listed.allows(f"O=qmig,CN={name}") for name in ("evil", "good", "")] == [False, True, True]
    assert not listed.allows("O=other,CN=good")
    assert make("authz-list", {"policy": "allow", "rules": RULES}).allows("O=other,CN=good")
    assert not make("authz-list", {}).allows("O=qmig,CN=good")


def test_the_command_line_says_the_same_in_two_ways():
    rules = (
        "rules.0.match=O=qmig,,CN=evil,rules.0.policy=deny,"
        "rules.1.match=O=qmig,,CN=*,rules.1.policy=allow,rules.1.format=glob"
    )
    words = {"qom-type": "authz-list", "id": "who", "rules": RULES}
    for text in (f"authz-list,id=who,{rules}", json.dumps(words)):
        name, listed = parse(text)
        assert name == "who"
        assert [listed.allows(f"O=qmig,CN={name}") for name in ("evil", "good")] == [False, True]


@pytest.mark.parametrize(
    ("kind", "properties", "words"),
    [
        ("tls-creds-x509", {}, "'dir' is missing"),
        ("tls-creds-x509", {"dir": 3}, "'dir' expects a string"),
        ("tls-creds-x509", {"dir": "/", "endpoint": "both"}, "'endpoint' does not accept value 'both'"),
        ("tls-creds-x509", {"dir": "/", "verify-peer": "on"}, "'verify-peer' expects a boolean"),
        ("tls-creds-x509", {"dir": "/", "foo": 1}, "'foo' is unexpected"),
        ("authz-simple", {}, "'identity' is missing"),
        ("authz-list", {"policy": "maybe"}, "'policy' does not accept value 'maybe'"),
        ("authz-list", {"rules": {}}, "'rules' expects a list"),
        ("authz-list", {"rules": [3]}, r"'rules\[0\]' expects an object"),
        ("authz-list", {"rules": [{"match": "a"}]}, r"rules\[0\]: parameter 'policy' is missing"),
        ("authz-list", {"rules": [{"policy": "deny"}]}, r"rules\[0\]: parameter 'match' is missing"),
        ("authz-list", {"rules": [{"match": "a", "policy": "perhaps"}]}, "perhaps"),
        (
            "authz-list",
            {"rules": [{"match": "a", "policy": "deny", "format": "regex"}]},
            "does not accept value 'regex'",
        ),
        ("authz-list", {"rules": [{"match": "a", "policy": "deny", "foo": 1}]}, r"rules\[0\]: parameter 'foo'"),
    ],
)
def test_wrong_properties(kind, properties, words):
    refused("invalid-argument", words, make, kind, properties)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"priority": "NORMAL"}, "'priority' is not supported: .*GnuTLS"),
        ({"passwordid": "s"}, "key without a password"),
    ],
)
def test_properties_that_cannot_be_had(properties, words):
    refused("unsupported", words, make, "tls-creds-x509", {"dir": "/", **properties})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tls-creds-x509", "'id' is missing"),
        ("id=a", "'qom-type' is missing"),
        ("authz-simple,id=a,identity", "expected NAME=VALUE"),
        ("{", "-object {"),
        ('{"qom-type": "authz-simple", "id": 3}', "'id' is missing"),
        ("tls-creds-x509,id=a,dir=/,verify-peer=maybe", "-object a: .*'verify-peer' does not accept value 'maybe'"),
    ],
)
def test_wrong_options(text, words):
    refused("invalid-argument", words, parse, text)


def spoil(folder, name):
    (folder / name).write_text("nothing of use")


def swap(folder, name):
    shutil.copy(folder / "client-key.pem", folder / name)


def unreadable(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()  # root may read a file whatever its mode


@pytest.mark.parametrize("name", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
@pytest.mark.parametrize("harm", [spoil, unreadable, lambda folder, name: (folder / name).unlink()])
def test_files_of_no_use_are_named(certificates, tmp_path, name, harm):
    folder = shutil.copytree(certificates / "good", tmp_path / "pki")
    harm(folder, name)
    refused("tls", f"pki/{name}", make, "tls-creds-x509", {"dir": str(folder), "endpoint": "server"})


def test_a_key_of_another_certificate(certificates, tmp_path):
    folder = shutil.copytree(certificates / "good", tmp_path / "pki")
    swap(folder, "server-key.pem")
    refused("tls", "server-key.pem.*not the key of", make, "tls-creds-x509", {"dir": str(folder), "endpoint": "server"})


def test_what_the_other_side_would_refuse_is_said_at_once(certificates, tmp_path):
    expired = {"dir": str(certificates / "expired"), "endpoint": "server"}
    refused("tls", "server-cert.pem.*expired", make, "tls-creds-x509", expired)
    assert make("tls-creds-x509", {**expired, "sanity-check": False})
    folder = shutil.copytree(certificates / "stranger", tmp_path / "pki")
    shutil.copy(certificates / "good/ca-cert.pem", folder)
    mixed = {"dir": str(folder), "endpoint": "client"}
    refused("tls", "client-cert.pem.*not signed by the authority", make, "tls-creds-x509", mixed)


def test_a_source_needs_no_certificate_of_its_own(certificates):
    assert make("tls-creds-x509", {"dir": str(certificates / "bare")})


def test_ids(vm):
    vm.add_object("authz-simple", "who", identity="CN=x")
    refused("invalid-argument", "an object 'who' already", vm.add_object, "authz-simple", "who", identity="CN=x")
    refused("invalid-argument", "'0who' is no id", vm.add_object, "authz-simple", "0who", identity="CN=x")
    vm.del_object("who")
    refused("invalid-argument", "'who' not found", vm.del_object, "who")
    vm.add_object("authz-simple", "who", identity="CN=x")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tls_creds": "nobody"}, "there is no object 'nobody'"),
        ({"tls_creds": "who"}, "object 'who' is no TLS credentials"),
        ({"tls_creds": "server"}, "object 'server' has endpoint server; a source needs one with client"),
    ],
)
def test_a_source_with_the_wrong_object_stays_as_it_is(vm, certificates, parameters, words):
    vm.add_object("authz-simple", "who", identity="CN=x")
    vm.add_object("tls-creds-x509", "server", dir=str(certificates / "good"), endpoint="server")
    vm.set_parameters(**parameters)
    vm.start()
    refused("invalid-argument", words, vm.migrate, "tcp:127.0.0.1:1")
    assert any(re.search(words, text) for text in vm.check())
    assert vm.run_state == "running"
    vm.set_parameters(tls_creds=None)
    assert vm.check() == []


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tls_creds": "nobody"}, "there is no object 'nobody'"),
        ({"tls_creds": "client"}, "object 'client' has endpoint client; a destination needs one with server"),
        ({"tls_creds": "server", "tls_authz": "nobody"}, "tls-authz: there is no object 'nobody'"),
        ({"tls_creds": "server", "tls_authz": "client"}, "object 'client' is no authorization"),
        ({"tls_creds": "anybody", "tls_authz": "who"}, "verify-peer=on"),
    ],
)
def test_a_destination_with_the_wrong_object_does_not_listen(vm, certificates, parameters, words):
    folder = str(certificates / "good")
    vm.add_object("authz-simple", "who", identity="CN=x")
    vm.add_object("tls-creds-x509", "client", dir=folder)
    vm.add_object("tls-creds-x509", "server", dir=folder, endpoint="server")
    vm.add_object("tls-creds-x509", "anybody", dir=folder, endpoint="server", verify_peer=False)
    vm.incoming("defer")
    vm.set_parameters(**parameters)
    refused("invalid-argument", words, vm.incoming, "tcp:127.0.0.1:0")
    vm.set_parameters(tls_creds="server", tls_authz="who")
    vm.incoming("tcp:127.0.0.1:0")


def test_what_a_destination_listens_with_stays(vm, certificates):
    vm.add_object("tls-creds-x509", "tls0", dir=str(certificates / "good"), endpoint="server")
    vm.set_parameters(tls_creds="tls0")
    arrival = vm.incoming("tcp:127.0.0.1:0")
    refused("invalid-state", "'tls-creds' can only be set before", vm.set_parameters, tls_creds=None)
    refused("invalid-state", "'tls0' is in use", vm.del_object, "tls0")
    vm.set_parameters(tls_creds="tls0", downtime_limit=7)
    arrival.cancel()
    arrival.ended()
    vm.del_object("tls0")
    vm.set_parameters(tls_creds=None)


@pytest.mark.parametrize(
    ("uri", "hostname", "kind", "words"),
    [
        ("file:{}/stream", "", "invalid-argument", "a file cannot answer"),
        ("exec:true", "", "invalid-argument", "set tls-hostname"),
        ("exec:true", "localhost", "tls", "ended the connection in the TLS handshake"),
    ],
)
def test_what_cannot_answer_a_handshake(vm, certificates, tmp_path, uri, hostname, kind, words):
    vm.add_object("tls-creds-x509", "tls0", dir=str(certificates / "good"))
    vm.set_parameters(tls_creds="tls0", tls_hostname=hostname)
    refused(kind, words, lambda: vm.migrate(uri.format(tmp_path)).wait(20))
    assert vm.run_state == "prelaunch"


def test_a_snapshot_file_takes_no_tls(vm, certificates, tmp_path):
    vm.add_object("tls-creds-x509", "tls0", dir=str(certificates / "good"))
    vm.set_parameters(tls_creds="tls0")
    vm.set_capabilities(mapped_ram=True)
    refused("invalid-argument", "takes no TLS: unset", vm.migrate, f"file:{tmp_path}/mapped")
