"""What this version does not have is refused over QMP by name, with the reason, and changes nothing (contract 3)."""

import re

import pytest

from qmig_e2k import Vm
from qmig_e2k.monitor.client import QmpClient, QmpError

NO_STORAGE = "this machine has no block devices"
NOT_BUILT = "not built yet"
DIRTY_RING = "hardware dirty ring"


def capability(name):
    return "migrate-set-capabilities", {"capabilities": [{"capability": name, "state": True}]}


def parameter(name, value):
    return "migrate-set-parameters", {"downtime-limit": 7, name: value}


def credentials(kind):
    return "object-add", {"qom-type": f"tls-creds-{kind}", "id": "tls0", "endpoint": "server"}


REFUSALS = [
    (("migrate", {"uri": "rdma:host:1"}), "rdma", "not supported|not built"),
    (("migrate", {"uri": "tcp:127.0.0.1:1", "blk": True}), "blk", NO_STORAGE),
    (("migrate", {"uri": "tcp:127.0.0.1:1", "inc": True}), "inc", NO_STORAGE),
    (capability("x-colo"), "x-colo", NOT_BUILT),
    (capability("block"), "block", NO_STORAGE),
    (capability("dirty-bitmaps"), "dirty-bitmaps", NO_STORAGE),
    (capability("background-snapshot"), "background-snapshot", "migrate to a file instead"),
    (capability("zero-copy-send"), "zero-copy-send", "multifd channels only"),
    (capability("dirty-limit"), "dirty-limit", DIRTY_RING),
    (capability("x-ignore-shared"), "x-ignore-shared", "shared memory is always sent"),
    (capability("late-block-activate"), "late-block-activate", "storage is always activated last"),
    (parameter("block-bitmap-mapping", [{"node-name": "n", "alias": "a", "bitmaps": []}]), "block-bitmap", NO_STORAGE),
    (parameter("vcpu-dirty-limit", 10), "vcpu-dirty-limit", DIRTY_RING),
    (parameter("x-vcpu-dirty-limit-period", 10), "x-vcpu-dirty-limit-period", DIRTY_RING),
    (credentials("psk"), "tls-creds-psk", "pre-shared keys are not taken; use certificates"),
    (credentials("anon"), "tls-creds-anon", "prove nothing are not taken; use certificates"),
    (("object-add", {"qom-type": "authz-pam", "id": "a", "service": "s"}), "authz-pam", "to an authz-list"),
    (("object-add", {"qom-type": "authz-listfile", "id": "a", "filename": "f"}), "authz-listfile", "to an authz-list"),
    (("object-add", {"qom-type": "secret", "id": "a"}), "secret", "there are tls-creds-x509, authz-simple, authz-list"),
    (("set-vcpu-dirty-limit", {"dirty-rate": 1}), "set-vcpu-dirty-limit", DIRTY_RING),
    (("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100}), "announce-self", "no network device"),
]


@pytest.fixture(scope="module")
def qmp(tmp_path_factory):
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20)
        address = f"unix:{tmp_path_factory.mktemp('refusals')}/qmp"
        vm.serve_qmp(address)
        with QmpClient(address) as client:
            yield client


@pytest.mark.parametrize(
    ("request_", "name", "reason"), REFUSALS, ids=lambda part: part if isinstance(part, str) else ""
)
def test_refused_by_name_with_the_reason(qmp, request_, name, reason):
    command, arguments = request_
    before = qmp.execute("query-migrate-parameters"), qmp.execute("query-migrate-capabilities")
    with pytest.raises(QmpError) as caught:
        qmp.execute(command, arguments)
    assert caught.value.error_class == "GenericError"
    assert name in str(caught.value)
    assert re.search(reason, str(caught.value)), str(caught.value)
    assert before == (qmp.execute("query-migrate-parameters"), qmp.execute("query-migrate-capabilities"))


def test_an_rdma_address_is_refused_on_the_other_side_too(tmp_path):
    with Vm("none") as vm:
        vm.incoming("defer")
        vm.serve_qmp(f"unix:{tmp_path}/qmp")
        with QmpClient(f"unix:{tmp_path}/qmp") as client:
            with pytest.raises(QmpError, match="rdma"):
                client.execute("migrate-incoming", uri="rdma:host:1")
            assert client.execute("query-status")["status"] == "inmigrate"
