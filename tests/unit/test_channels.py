"""`channels` of QEMU 10.0: the URIs that addresses stand for, and what is refused."""

import pytest

from qmig_e2k import Vm
from qmig_e2k.monitor.channels import CHANNELS, uri
from qmig_e2k.monitor.client import QmpClient, QmpError
from qmig_e2k.monitor.schema import CommandError
from support import wait_until


def channel(kind="main", **address):
    return {"channel-type": kind, "addr": {name.replace("_", "-"): value for name, value in address.items()}}


def inet(host="there", port="4444", **more):
    return channel(transport="socket", type="inet", host=host, port=port, **more)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (inet(), "tcp:there:4444"),
        (inet("::1", to=4460, ipv6=True), "tcp:[::1]:4444,to=4460,ipv6=on"),
        (inet("", "0", ipv4=True, ipv6=False, keep_alive=True), "tcp::0,ipv4=on,ipv6=off,keep-alive=on"),
        (inet(numeric=False, mptcp=False), "tcp:there:4444"),
        (channel(transport="socket", type="unix", path="/a,b", abstract=False, tight=True), "unix:/a,b"),
        (channel(transport="socket", type="fd", str="wire"), "fd:wire"),
        (channel(transport="exec", args=["/bin/sh", "-c", "cat > 'a b'"]), "exec:cat > 'a b'"),
        (channel(transport="exec", args=["dd", "of=a b"]), "exec:exec dd 'of=a b'"),
        (channel(transport="file", filename="/a,offset=7", offset=0), "file:/a,offset=7,offset=0"),
    ],
)
def test_an_address_is_a_uri(given, wanted):
    CHANNELS.check([given], "channels")
    assert uri({"channels": [given]}) == wanted


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ([], "exactly one"),
        ([inet(), inet()], "exactly one"),
        ([inet(), channel("cpr", transport="socket", type="unix", path="x")], "'cpr' is not supported"),
        ([channel(transport="rdma", host="h", port="1")], "'rdma' is not supported"),
        ([channel(transport="socket", type="vsock", cid="2", port="1")], "'vsock' is not supported"),
        ([channel(transport="socket")], "addr.type' is missing"),
        ([channel(transport="socket", type="inet", host="h")], "addr.port' is missing"),
        ([channel(transport="file", filename="x")], "addr.offset' is missing"),
        ([channel(transport="exec", args=[])], "is empty"),
        ([channel(transport="exec", args=["cat"], path="x")], "addr.path' is unexpected with 'exec'"),
        ([inet("h:1,to=5")], "no host name and no IPv6 address"),
        ([inet("h,to=5")], "without options"),
        ([inet(port="1,ipv4=off")], "without options"),
        ([inet(numeric=True)], "'numeric' is not supported"),
        ([channel(transport="socket", type="unix", path="x", abstract=True)], "'abstract' is not supported"),
    ],
)
def test_addresses_that_are_refused(channels, text):
    CHANNELS.check(channels, "channels")
    with pytest.raises(CommandError, match=text):
        uri({"channels": channels})


@pytest.mark.parametrize("arguments", [{}, {"uri": "tcp:a:1", "channels": [inet()]}])
def test_one_of_both(arguments):
    with pytest.raises(CommandError, match="either 'uri' or 'channels'"):
        uri(arguments)


def test_two_machines_that_are_told_so(tmp_path):
    """Over QMP, by the words of QEMU 10.0 alone."""
    where = [channel(transport="socket", type="unix", path=f"{tmp_path}/wire")]
    clients = []
    with Vm("none") as source, Vm("none") as destination:
        for name, vm in (("source", source), ("destination", destination)):
            vm.add_ram("ram", 1 << 20)
            vm.serve_qmp(f"unix:{tmp_path}/{name}")
            clients.append(QmpClient(f"unix:{tmp_path}/{name}"))
        here, there = clients
        destination.incoming("defer")
        with pytest.raises(QmpError, match="'exit-on-error' cannot be true"):
            there.execute("migrate-incoming", {"channels": where, "exit-on-error": True})
        there.execute("migrate-incoming", {"channels": where, "exit-on-error": False})
        with pytest.raises(QmpError, match=r"channels\[0\].addr.wheels' is unexpected"):
            here.execute("migrate", {"channels": [channel(transport="exec", args=["cat"], wheels=4)]})
        here.execute("migrate-set-parameters", {"mode": "normal"})
        with pytest.raises(QmpError, match="'mode' cannot be set: RAM is always sent"):
            here.execute("migrate-set-parameters", {"mode": "cpr-reboot"})
        here.execute("migrate", {"channels": where, "detach": True})
        for client in clients:
            wait_until(lambda client=client: client.execute("query-migrate")["status"] == "completed")
            client.close()
