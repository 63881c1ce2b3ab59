"""A machine moves between this project and a real QEMU, in both directions, and every byte of its RAM with it."""

import asyncio

import pytest
from qemu.qmp import EventListener, QMPClient
from qemu.qmp.qmp_client import ExecuteError

from support import PAGE, assert_same_memory, mixed_ram, wait_until, written

SIZE = 64 << 20
DIRECTIONS = [("qemu", "serve"), ("serve", "qemu")]


@pytest.fixture(scope="module")
def content():
    return mixed_ram(SIZE)


@pytest.fixture
def start(qemu, serve):
    """`start("qemu", ...)` or `start("serve", ...)`: both are driven alike."""
    return lambda kind, *arguments, **options: {"qemu": qemu, "serve": serve}[kind](*arguments, **options)


def history(peer):
    """The events that tell of a migration, in order, up to the status `completed`."""
    found = []
    while found[-1:] != ["completed"]:
        event = peer.qmp.event(20)
        assert event is not None, f"no `completed` after {found}"
        if event["event"] == "MIGRATION":
            found.append(event["data"]["status"])
        elif event["event"] in ("STOP", "RESUME"):
            found.append(event["event"])
    return found


def move(source, destination, channel, folder):
    """Migrate and wait for both ends; a file is first written, then read (QEMU 7.2 has no `file:`)."""
    if channel in ("tcp", "unix"):
        uri = destination.listen("tcp:127.0.0.1:0" if channel == "tcp" else f"unix:{folder}/channel")
        source.command("migrate", uri=uri)
        source.wait_migration("completed")
    else:
        path = folder / "stream"

        def uri(side, command):
            return f"file:{path}" if channel == "file" and side.serves else f"exec:{command} {path}"

        source.command("migrate", uri=uri(source, "cat >"))
        source.wait_migration("completed")
        destination.command("migrate-incoming", uri=uri(destination, "cat"))
    destination.wait_arrived()


@pytest.mark.parametrize(
    ("channel", "return_path"),
    [("tcp", False), ("tcp", True), ("unix", False), ("unix", True), ("exec", False), ("file", False)],
)
@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_a_running_machine_moves(start, image, content, tmp_path, here, there, channel, return_path):
    source, destination = start(here, ram=image), start(there, incoming="defer")
    for side in (source, destination):
        side.set_capabilities(events=True, **({} if side.serves else {"return_path": return_path}))
        side.command("cont")  # the destination waits: there it says that the machine shall run on arrival

    move(source, destination, channel, tmp_path)

    assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")
    assert_same_memory(destination.memory(SIZE), content)
    assert_same_memory(source.memory(SIZE), content)
    assert history(source) == ["RESUME", "setup", "active", "STOP", "completed"]
    assert history(destination) == ["setup", "active", "RESUME", "completed"]
    ram = source.migration()["ram"]
    assert ram["total"] == SIZE
    assert ram["remaining"] == 0
    assert ram["normal"] + ram["duplicate"] >= SIZE // PAGE
    # whatever was not zero was sent
    assert ram["transferred"] > ram["normal"] * PAGE


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
@pytest.mark.parametrize(
    ("commands", "autostart", "arrived"),
    [
        pytest.param([], True, "prelaunch", id="never started"),
        pytest.param(["cont", "stop"], True, "paused", id="paused"),
        pytest.param(["cont"], False, "paused", id="destination -S"),
    ],
)
def test_run_states(start, tmp_path, here, there, commands, autostart, arrived):
    source, destination = start(here, "-m", "1M"), start(there, "-m", "1M", incoming=f"unix:{tmp_path}/channel")
    for command in commands:
        source.command(command)
    if autostart:
        destination.command("cont")

    source.command("migrate", uri=f"unix:{tmp_path}/channel")
    source.wait_migration("completed")
    destination.wait_arrived()

    assert (source.run_state(), destination.run_state()) == ("postmigrate", arrived)
    destination.command("cont")
    assert destination.run_state() == "running"


@pytest.mark.parametrize(
    "options", [("--format", "2.9"), ("--format", "10.0", "-global", "migration.send-switchover-start=off")]
)
def test_what_other_generations_write(qemu, serve, tmp_path, options):
    """QEMU 7.2 reads it, except for the one command that it cannot know."""
    content = mixed_ram(1 << 20)
    (tmp_path / "small").write_bytes(content)
    source, destination = serve("-m", "1M", *options, ram=tmp_path / "small"), qemu("-m", "1M", incoming="defer")
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("completed")
    destination.wait_arrived()
    assert_same_memory(destination.memory(1 << 20), content)


def test_there_and_back(qemu, serve, image, content):
    first, there, back = serve(ram=image), qemu(incoming="defer"), serve(incoming="defer")
    for side in (first, there, back):
        side.command("cont")

    first.command("migrate", uri=there.listen())
    first.wait_migration("completed")
    there.wait_arrived()
    assert there.run_state() == "running"
    there.command("migrate", uri=back.listen())
    there.wait_migration("completed")
    back.wait_arrived()

    assert [side.run_state() for side in (first, there, back)] == ["postmigrate", "postmigrate", "running"]
    assert_same_memory(back.memory(SIZE), content)


def test_while_the_guest_writes(qemu, serve):
    source = serve("--guest", "random,wss=16M,rate=1000000")
    destination = qemu(incoming="defer")  # stays paused: its RAM is what arrived
    source.command("cont")
    wait_until(lambda: written(source.memory(16 << 20)), what="a write to every page of the working set")
    # 16 MiB that are written faster than they can be sent
    source.command("migrate-set-parameters", max_bandwidth=48 << 20, downtime_limit=1)
    source.command("migrate", uri=destination.listen())
    wait_until(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) > 3, what="the third round")
    assert source.run_state() == "running"
    source.command("migrate-set-parameters", downtime_limit=2000)
    source.wait_migration("completed")
    destination.wait_arrived()

    assert (source.run_state(), destination.run_state()) == ("postmigrate", "paused")
    memory = source.memory(SIZE)
    assert any(memory)
    assert_same_memory(destination.memory(SIZE), memory)
    assert source.command("x-verify")["equal"]


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_cancelled_then_moved(start, image, content, here, there):
    source, destination = start(here, ram=image), start(there, incoming="defer")
    source.command("cont")
    source.command("migrate-set-parameters", max_bandwidth=4 << 20)
    source.command("migrate", uri=destination.listen())
    source.wait_migration("active")
    source.command("migrate_cancel")
    source.wait_migration("cancelled")
    assert source.run_state() == "running"

    if destination.serves:
        failed = destination.wait_migration("failed")
        assert "closed" in failed["error-desc"] or "ends" in failed["error-desc"]
        assert destination.run_state() == "inmigrate"
    else:
        assert destination.process.wait(20) == 1  # QEMU 7.2 does not survive a failed load
        destination = start(there, incoming="defer")
    source.command("migrate-set-parameters", max_bandwidth=0)
    source.wait_let_go()
    source.command("migrate", uri=destination.listen())
    source.wait_migration("completed")
    destination.wait_arrived()
    assert_same_memory(destination.memory(SIZE), content)


@pytest.mark.parametrize(("here", "there"), DIRECTIONS)
def test_machines_that_do_not_match(start, here, there):
    source, destination = start(here, "-m", "16M"), start(there, "-m", "32M", incoming="defer")
    if not source.serves:
        source.set_capabilities(return_path=True)
    source.command("cont")
    source.command("migrate", uri=destination.listen())
    source.wait_migration("failed")
    assert source.run_state() == "running"
    if destination.serves:
        failed = destination.wait_migration("failed")
        assert "ram/ram" in failed["error-desc"]
        assert "0x1000000" in failed["error-desc"]
        assert "0x2000000" in failed["error-desc"]
        assert destination.run_state() == "inmigrate"
    else:
        assert "closed the channel" in source.migration()["error-desc"]
        assert destination.process.wait(20) == 1


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ("compress", "compressed page; switch the capability compress on here, too, or off at the source"),
        ("x_ignore_shared", "x-ignore-shared"),
    ],
)
def test_a_feature_that_is_not_here(qemu, serve, tmp_path, capability, words):
    content = mixed_ram(1 << 20)
    (tmp_path / "small").write_bytes(content)
    source, destination = qemu("-m", "1M", ram=tmp_path / "small"), serve("-m", "1M", incoming="defer")
    source.command("cont")
    source.set_capabilities(return_path=True, **{capability: True})
    source.command("migrate", uri=destination.listen())
    source.wait_migration("failed")
    assert words in destination.wait_migration("failed")["error-desc"]
    assert (source.run_state(), destination.run_state()) == ("running", "inmigrate")

    source.set_capabilities(**{capability: False})
    source.wait_let_go()
    source.command("migrate", uri=destination.listen())
    source.wait_migration("completed")
    destination.wait_arrived()
    assert_same_memory(destination.memory(1 << 20), content)


def test_with_the_client_of_qemu(qemu, serve, image, content, tmp_path):
    """PyPI's `qemu.qmp` drives our side, once as source and once as destination."""
    first, there, back = serve(ram=image), qemu(incoming="defer"), serve(incoming="defer")
    there.command("cont")
    on = {"capabilities": [{"capability": "events", "state": True}]}

    async def statuses(listener):
        found = []
        async for event in listener:
            found.append(event["data"]["status"])
            if found[-1] in ("completed", "failed"):
                return found
        raise AssertionError(f"events end after {found}")

    async def migrate():
        source, destination = QMPClient("source"), QMPClient("destination")
        await source.connect(str(first.folder / "qmp"))
        await destination.connect(str(back.folder / "qmp"))
        assert source.greeting.QMP.version["qemu"]["major"] == 7
        await source.execute("migrate-set-capabilities", on)
        await destination.execute("migrate-set-capabilities", on)

        with pytest.raises(ExecuteError, match="no-such"):
            await source.execute("migrate", {"uri": "no-such:1"})
        await source.execute("cont")
        with source.listen(listener := EventListener("MIGRATION")):
            assert await source.execute("migrate", {"uri": there.listen()}) == {}
            assert await statuses(listener) == ["setup", "active", "completed"]
        assert (await source.execute("query-status"))["status"] == "postmigrate"
        there.wait_arrived()

        with destination.listen(listener := EventListener("MIGRATION")):
            await destination.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
            address = (await destination.execute("query-migrate"))["socket-address"][0]
            there.command("migrate", uri=f"tcp:{address['host']}:{address['port']}")
            assert await statuses(listener) == ["setup", "active", "completed"]
        dump = tmp_path / "dump"
        await destination.execute("pmemsave", {"val": 0, "size": SIZE, "filename": str(dump)})
        assert_same_memory(dump.read_bytes(), content)
        await source.disconnect()
        await destination.disconnect()

    asyncio.run(asyncio.wait_for(migrate(), 40))
