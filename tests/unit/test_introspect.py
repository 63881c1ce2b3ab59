"""`query-qmp-schema`: whole, followed to its ends, and true to what is answered."""

import pytest

from qmig_e2k import Vm
from qmig_e2k.monitor.answers import CORE, EVENTS
from qmig_e2k.monitor.client import QmpClient, QmpError
from qmig_e2k.monitor.commands import COMMANDS
from schemas import SIMPLE, Schema


@pytest.fixture(scope="module")
def qmp(tmp_path_factory):
    with Vm("none") as vm:
        vm.add_ram("ram", 1 << 20)
        address = f"unix:{tmp_path_factory.mktemp('schema')}/qmp"
        vm.serve_qmp(address)
        with QmpClient(address, oob=True) as client:
            yield client


@pytest.fixture(scope="module")
def schema(qmp):
    return Schema(qmp.execute("query-qmp-schema"))


def test_it_names_every_command_and_event(qmp, schema):
    commands = {entry["name"] for entry in qmp.execute("query-commands")}
    assert schema.names("command") == commands == COMMANDS.keys() | CORE.keys()
    assert COMMANDS.keys().isdisjoint(CORE)
    assert schema.names("event") == {entry["name"] for entry in qmp.execute("query-events")} == EVENTS.keys()


def test_every_type_is_reached_and_there(schema):
    reached = set()

    def reach(name):
        if name in reached:
            return
        reached.add(name)
        entry = schema.entries[name]
        for key in ("arg-type", "ret-type", "element-type"):
            if key in entry:
                reach(entry[key])
        for member in entry.get("members", []):
            if "type" in member:
                reach(member["type"])

    for name in schema.names("command") | schema.names("event"):
        reach(name)
    assert reached | SIMPLE.keys() == set(schema.entries)


def test_what_libvirt_looks_for(schema):
    assert "mapped-ram" in schema.arguments("migrate-set-capabilities")["capabilities"][0]["capability"]
    assert schema.arguments("migrate-set-parameters")["downtime-limit?"] == "int"
    assert schema.arguments("migrate-set-parameters")["tls-creds?"] == {"str", "null"}
    assert schema.answer("query-migrate")["blocked-reasons?"] == ["str"]
    assert "postcopy-paused" in schema.arguments("MIGRATION")["status"]


def test_out_of_band_is_what_it_says(qmp, schema):
    for name in schema.names("command") - {"qmp_capabilities"}:
        try:
            qmp.execute_oob(name, surprise=1)
        except QmpError as error:
            overtakes = "out of band" not in str(error)
        assert overtakes == schema.entries[name].get("allow-oob", False), name


QUERIES = """query-commands query-events query-jobs query-kvm query-migrate query-migrate-cache-size
    query-migrate-capabilities query-migrate-parameters query-name query-qmp-schema query-status query-target
query-uuid query-version""".split()


@pytest.mark.parametrize("name", QUERIES)
def test_answers_have_the_shape_that_it_says(qmp, name):
    command = COMMANDS.get(name) or CORE[name]
    command.returns.check(qmp.execute(name), name)
