"""HMP commands on a real machine, by `human-monitor-command`."""

import pytest

from qmig_e2k import Vm
from qmig_e2k.e2k import build
from qmig_e2k.monitor import hmp
from qmig_e2k.monitor.client import QmpClient
from qmig_e2k.monitor.hmp_line import Leave

MIB = 1 << 20


@pytest.fixture
def vm():
    with Vm("none", name="here") as made:
        made.add_ram("ram", 4 * MIB)
        yield made


def lines(vm, line):
    text = hmp.execute(vm.machine, line)
    assert text == "" or text.endswith("\r\n")
    return text.split("\r\n")[:-1]


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("max-bandwidth", "10", 10 * MIB),
        ("max-bandwidth", "10k", 10240),
        ("max-bandwidth", "1.5M", 3 * MIB // 2),
        ("avail-switchover-bandwidth", "2", 2 * MIB),
        ("max-postcopy-bandwidth", "10", 10),
        ("xbzrle-cache-size", "64K", 65536),
        ("downtime-limit", "0x10", 16),
        ("announce-initial", "10k", 10240),
        ("tls-hostname", '"a b"', "a b"),
        ("tls-hostname", r'"a\"b\\\n"', 'a"b\\\n'),
        ("tls-hostname", '""', ""),
        ("multifd-compression", "zlib", "zlib"),
        ("x-multifd-channels", "4", 4),
        ("cpu-throttle-tailslow", "yes", True),
        ("compress-wait-thread", "off", False),
    ],
)
def test_parameters_are_set(vm, name, word, value):
    assert lines(vm, f"migrate_set_parameter {name} {word}") == []
    assert vm.machine.settings.parameters[name] == value


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("max-bandwidth", "-1"),
        ("max-bandwidth", "10x"),
        ("downtime-limit", "10.5"),
        ("downtime-limit", "1k"),
        ("downtime-limit", "2000001"),
        ("compress-wait-thread", "maybe"),
        ("multifd-compression", "lz4"),
        ("block-bitmap-mapping", "x"),
        ("bogus", "1"),
    ],
)
def test_parameters_are_refused_by_name(vm, name, word):
    before = vm.machine.settings.parameters.values()
    (line,) = lines(vm, f"migrate_set_parameter {name} {word}")
    assert line.startswith("Error: ")
    assert name in line
    assert vm.machine.settings.parameters.values() == before


def test_capabilities(vm):
    assert lines(vm, "migrate_set_capability x-postcopy-ram on") == []
    assert "postcopy-ram: on" in lines(vm, "info migrate_capabilities")
    assert lines(vm, "migrate_set_capability postcopy-ram off") == []
    assert lines(vm, "migrate_set_capability postcopy-ram maybe")[0] == "Expected 'on' or 'off'"
    (line,) = lines(vm, "migrate_set_capability x-colo on")
    assert line.startswith("Error: capability 'x-colo'")


def test_setters_of_2_9(vm):
    assert lines(vm, "migrate_set_speed 3") == []
    assert lines(vm, "migrate_set_downtime 1.5") == []
    assert lines(vm, "migrate_set_cache_size 3") == []
    values = vm.machine.settings.parameters
    assert (values["max-bandwidth"], values["downtime-limit"], values["xbzrle-cache-size"]) == (3 * MIB, 1500, 2 * MIB)
    assert lines(vm, "info migrate_cache_size") == ["xbzrel cache size: 2048 kbytes"]
    assert lines(vm, "migrate_set_downtime 20ms") == []
    assert values["downtime-limit"] == 20
    times = ("soon", "2001", "-1", "1e30000000", "1/3")
    for wrong in ("speed x", *(f"downtime {time}" for time in times), "cache_size 5", "cache_size 1k"):
        (line,) = lines(vm, f"migrate_set_{wrong}")
        assert line.startswith("Error: ")


def test_the_same_over_qmp(vm, tmp_path):
    vm.serve_qmp(f"unix:{tmp_path}/qmp")
    with QmpClient(f"unix:{tmp_path}/qmp") as client:
        client.execute("migrate_set_speed", value=12345)
        client.execute("migrate_set_downtime", value=0.25)
        client.execute("migrate-set-cache-size", value=8191)
        parameters = client.execute("query-migrate-parameters")
        assert (parameters["max-bandwidth"], parameters["downtime-limit"]) == (12345, 250)
        assert client.execute("query-migrate-cache-size") == parameters["xbzrle-cache-size"] == 4096
        client.execute("migrate_set_speed", value=-1)
        assert client.execute("query-migrate-parameters")["max-bandwidth"] == 0


def test_migrate_and_its_options(vm, tmp_path):
    assert lines(vm, f"migrate -d file:{tmp_path}/there") == []
    vm.machine.departure.wait(20)
    assert (tmp_path / "there").stat().st_size
    assert lines(vm, "info status") == ["VM status: paused (postmigrate)"]
    assert lines(vm, "c") == []
    assert lines(vm, "info status") == ["VM status: running"]
    assert lines(vm, f'migrate "file:{tmp_path}/with space"')[0].startswith("terminal does not allow synchronous")
    vm.machine.departure.wait(20)
    assert (tmp_path / "with space").stat().st_size
    for wrong in ("-b x", "-i x", "-r tcp:127.0.0.1:1", "bogus:1"):
        (line,) = lines(vm, f"migrate {wrong}")
        assert line.startswith("Error: ")
    assert lines(vm, "migrate_cancel") == []
    assert lines(vm, "migrate_continue pre-switchover")[0].startswith("Error: ")


def test_incoming(vm, tmp_path):
    assert "was not started with --incoming" in lines(vm, "migrate_incoming tcp:127.0.0.1:0")[0]
    vm.incoming("defer")
    assert "bogus" in lines(vm, "migrate_incoming bogus:1")[0]
    assert lines(vm, f"migrate_incoming unix:{tmp_path}/socket") == []
    assert lines(vm, "info migrate")[-2:] == [f"\tunix:{tmp_path}/socket", "]"]
    with Vm("none") as source:
        source.add_ram("ram", 4 * MIB)
        source.start()
        assert lines(source, f"migrate -d unix:{tmp_path}/socket") == []
        source.machine.departure.wait(20)
        vm.machine.arrival.wait(20)
    assert lines(vm, "info status") == ["VM status: running"]


def test_running(vm):
    assert lines(vm, "cont") == []
    assert lines(vm, "s") == []
    assert lines(vm, "info status") == ["VM status: paused"]
    assert lines(vm, "system_reset") == []
    assert lines(vm, "system_powerdown") == []
    assert lines(vm, "info status") == ["VM status: paused (prelaunch)"]
    with pytest.raises(Leave):
        lines(vm, "q")


def test_quit_over_qmp_ends_the_service(vm, tmp_path):
    vm.serve_qmp(f"unix:{tmp_path}/qmp")
    with QmpClient(f"unix:{tmp_path}/qmp") as client:
        assert client.execute("human-monitor-command", command_line="quit") == ""
        assert client.wait_event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"


def test_who_it_is(vm):
    assert lines(vm, "info name") == ["here"]
    assert lines(vm, "info uuid") == ["00000000-0000-0000-0000-000000000000"]
    assert lines(vm, "info version")[0].startswith("7.2.0qmig_e2k ")
    assert lines(vm, "info registers") == ["No CPU available"]


def test_registers():
    with Vm(build("e2k", 4 * MIB, cpus=2), cpus=2) as vm:
        first = lines(vm, "info registers")
        assert first[:2] == ["", "CPU#0"]
        assert lines(vm, "info registers 1")[1] == "CPU#1"
        assert lines(vm, "info registers 2") == ["CPU#2 not available"]
        assert [line for line in lines(vm, "info registers -a") if line.startswith("CPU#")] == ["CPU#0", "CPU#1"]
        assert any("wd=0000004000800000" in line for line in first), "a register by its name"
        cpu = next(e.handler.obj for e in vm.machine.registry if e.path == "cpu/0")
        cpu.regs_lo[5] = 0x1234
        changed = lines(vm, "info registers")
        assert "regs_lo[  4]= 0000000000000000 0000000000001234 0000000000000000 0000000000000000" in changed
        assert "qp_hi" not in "".join(changed), "registers of later CPUs"


def test_the_map_of_memory_in_parts():
    with Vm("e2k") as vm:
        vm.add_ram("e2k.firmware", 16 * MIB)
        vm.add_ram("e2k.ram", 3 << 30)
        low, high = "0000000000000000-000000007fffffff", "0000000400000000-000000043fffffff"
        assert lines(vm, "info mtree")[1:6] == [
            "  0000000000000000-ffffffffffffffff (prio 0, i/o): system",
            f"    {low} (prio 0, ram): alias e2k.ram.0 @e2k.ram {low}",
            "    0000000100000000-0000000100ffffff (prio 0, ram): e2k.firmware",
            f"    {high} (prio 0, ram): alias e2k.ram.80000000 @e2k.ram 0000000080000000-00000000bfffffff",
            "",
        ]
        assert f"  {high} (prio 0, ram): e2k.ram @0000000080000000" in lines(vm, "info mtree -f")
