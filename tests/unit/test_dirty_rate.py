"""calc-dirty-rate and query-dirty-rate: what they measure, when, and what they refuse."""

import threading

import pytest

from qmig_e2k import MigrationError, Vm
from qmig_e2k.monitor import hmp
from qmig_e2k.monitor.client import QmpClient, QmpError
from support import PAGE, wait_until

SIZE = 4 << 20


@pytest.fixture
def vm():
    with Vm("none") as made:
        made.add_ram("ram", SIZE)
        yield made


@pytest.fixture
def qmp(vm, tmp_path):
    vm.serve_qmp(f"unix:{tmp_path}/qmp")
    with QmpClient(f"unix:{tmp_path}/qmp") as client:
        yield client


def rate(vm, **options):
    vm.machine.dirty_rates.start(60_000, **options)
    return vm.machine.dirty_rates


def measured(qmp, **arguments):
    def over():
        answer = qmp.execute("query-dirty-rate", **arguments)
        return answer if answer["status"] == "measured" else None

    return wait_until(over, what="the measurement")


@pytest.mark.parametrize("mode", ["page-sampling", "dirty-bitmap"])
def test_a_machine_that_writes_has_a_rate(vm, qmp, mode):
    words = vm.machine.blocks[0].numpy().view("u8")[:: PAGE // 8]
    qmp.execute("calc-dirty-rate", calc_time=1, mode=mode)
    begun = qmp.execute("query-dirty-rate")
    assert (begun["status"], begun["mode"], "dirty-rate" in begun) == ("measuring", mode, False)
    done = threading.Event()

    def write():
        value = 0
        while not done.is_set():
            value += 1
            words[:] = value

    writer = threading.Thread(target=write)
    writer.start()
    try:
        answer = measured(qmp, calc_time_unit="millisecond")
    finally:
        done.set()
        writer.join()
    assert answer["calc-time"] >= 1000
    # every page was written, once counts
    wanted = (SIZE >> 20) * 1000 // answer["calc-time"]
    assert wanted - 1 <= answer["dirty-rate"] <= wanted + 1
    assert (answer["calc-time-unit"], answer["sample-pages"]) == ("millisecond", 512 if mode == "page-sampling" else 0)
    qmp.execute("calc-dirty-rate", calc_time=50, calc_time_unit="millisecond", mode=mode)
    assert measured(qmp)["dirty-rate"] == 0, "nobody writes any more"


def test_before_the_first_one(qmp):
    wanted = {"status": "unstarted", "sample-pages": 0, "mode": "page-sampling", "start-time": 0, "calc-time": 0}
    assert qmp.execute("query-dirty-rate") == wanted


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"calc_time": 0}, "from 50 to 60000, not 0"),
        ({"calc_time": 61}, "from 50 to 60000, not 61000"),
        ({"calc_time": -1}, "from 50 to 60000"),
        ({"calc_time": 49, "calc_time_unit": "millisecond"}, "from 50 to 60000"),
        ({"calc_time": 2**63 - 1}, "from 50 to 60000"),
        ({"calc_time": 1, "sample_pages": 127}, "from 128 to 16384, not 127"),
        ({"calc_time": 1, "sample_pages": 16385}, "from 128 to 16384"),
        ({"calc_time": 1, "sample_pages": 512, "mode": "dirty-bitmap"}, "'page-sampling' only"),
        ({"calc_time": 1, "mode": "dirty-ring"}, "hardware dirty ring"),
        ({"calc_time": 1, "mode": "guess"}, "guess"),
        ({"calc_time": 1, "calc_time_unit": "minute"}, "minute"),
        ({"calc_time": 1.5}, "calc-time"),
        ({}, "calc-time"),
    ],
)
def test_refused(qmp, arguments, reason):
    with pytest.raises(QmpError, match=reason):
        qmp.execute("calc-dirty-rate", **arguments)
    assert qmp.execute("query-dirty-rate")["status"] == "unstarted"


def test_a_mode_that_is_none(vm):
    with pytest.raises(MigrationError, match="'guess' is not known"):
        vm.calc_dirty_rate(60, mode="guess")


def test_one_at_a_time(vm):
    rates = rate(vm)
    with pytest.raises(MigrationError, match="measured already"):
        rates.start(1000)
    rates.cut()
    rates.start(1000)


@pytest.mark.parametrize("mode", ["page-sampling", "dirty-bitmap"])
def test_a_migration_has_precedence(vm, mode):
    rates = rate(vm, mode=mode)
    migration = vm.migrate("exec:cat > /dev/null")
    answer = rates.query("millisecond")
    assert answer["status"] == "measured"
    assert answer["calc-time"] < 60_000
    assert answer["dirty-rate"] == 0
    migration.wait(20)
    assert migration.status == "completed"


def test_during_a_migration_pages_are_compared(vm):
    vm.set_parameters(max_bandwidth=4096)
    vm.machine.blocks[0].numpy()[:] = 1
    migration = vm.migrate("exec:cat > /dev/null")
    rates = rate(vm)
    rates.cut()
    with pytest.raises(MigrationError, match="dirty-pages-rate of query-migrate"):
        rates.start(1000, mode="dirty-bitmap")
    assert migration.cancel()
    with pytest.raises(MigrationError, match="cancelled"):
        migration.wait(20)


def test_memory_that_is_not_here_is_not_read():
    with Vm("none") as vm:
        vm.add_ram("ram", SIZE)
        vm.incoming("defer")
        with pytest.raises(MigrationError, match="not here yet"):
            rate(vm)


def test_a_machine_that_waits_for_another_measures_no_more(vm):
    rates = rate(vm, mode="dirty-bitmap")
    vm.incoming("tcp:127.0.0.1:0")
    assert rates.query()["status"] == "measured"


def test_by_hand(vm):
    def lines(text):
        return hmp.execute(vm.machine, text).split("\r\n")[:-1]

    assert lines("info dirty_rate")[-1] == "Dirty rate: (not ready)"
    assert lines("calc_dirty_rate -r 1")[0].startswith("Error: mode 'dirty-ring' is not supported")
    assert lines("calc_dirty_rate -b 1 512")[0].startswith("Error: sample-pages goes with")
    assert lines("calc_dirty_rate -b 60") == [
        "Starting dirty rate measurement with period 60 seconds",
        "[Please use 'info dirty_rate' to check results]",
    ]
    assert lines("info dirty_rate")[3:] == ["Period: 60 (sec)", "Mode: dirty-bitmap", "Dirty rate: (not ready)"]
    vm.machine.dirty_rates.cut()
    assert lines("info dirty_rate")[3:] == ["Period: 0 (sec)", "Mode: dirty-bitmap", "Dirty rate: 0 (MB/s)"]


def test_what_is_refused_ends_no_measurement(tmp_path):
    """A migration whose settings do not fit, and a snapshot that is not there."""
    with Vm("none", snapshot_dir=tmp_path) as vm:
        vm.add_ram("ram", SIZE)
        rates = rate(vm)
        vm.set_capabilities(mapped_ram=True)
        vm.set_parameters(multifd_compression="zlib")
        for action in (lambda: vm.migrate(f"file:{tmp_path}/x"), lambda: vm.loadvm("nothing")):
            with pytest.raises(MigrationError):
                action()
            assert rates.query()["status"] == "measuring"
        vm.savevm("x")
        assert rates.query()["status"] == "measured"
