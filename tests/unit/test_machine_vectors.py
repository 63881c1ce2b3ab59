"""Golden vectors in whole machines: state in, exact bytes out, into a fresh machine, equal, saved again equal.

Those of a single CPU are put into a machine as well. Vectors 10 and 35 are whole streams with RAM, 36 are orders.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from cpu_vectors import VECTORS as CPU_VECTORS
from devices import change, machine_state, told
from elements import take_apart
from machine_vectors import (
    CELLAR,
    CPU,
    DEVICE,
    MACHINES,
    ORDERED,
    ORDERS,
    PAGE,
    REFUSED_ORDER,
    SIZES,
    Whole,
    files,
    joined,
    order_path,
)
from qmig_e2k import StreamError, Vm
from qmig_e2k._core import Reader
from qmig_e2k.e2k import build
from qmig_e2k.e2k.machines import FIRMWARE_BASE
from qmig_e2k.migration.stream import Loading
from qmig_e2k.savevm import GlobalState, Profile, Registry, VirtualClock, save_full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qmig_e2k.e2k import Machine

OTHER = {"e8c": "e8c2", "e8c2": "e16c", "e16c": "e8c"}
_IN_A_MACHINE = {name for whole in MACHINES for name in whole.cpu.values() if whole.devices}
SINGLE = [
    Whole(vector.name, vector.model, vector.index + 1, {vector.index: vector.name}, tags=True)
    for vector in CPU_VECTORS
    if vector.name not in _IN_A_MACHINE
]
"""Each vector of a CPU in a machine that is at reset otherwise."""
ALL = [*SINGLE, *MACHINES, ORDERED]
NAMES = [whole.name for whole in ALL]


def fresh(whole: Whole, model: str | None = None) -> Machine:
    """A machine of that kind at reset."""
    return build(
        "e2k",
        whole.ram,
        cpus=whole.cpus,
        model=model or whole.model,
        kernel_size=whole.kernel or None,
        entry=FIRMWARE_BASE,
        tags=whole.tags,
        options=whole.options,
    )


def in_state(whole: Whole, *, ignored: bool = False) -> Machine:
    """A machine in the vector's state, put there register by register; `ignored`: with what the CPU does not have."""
    made = fresh(whole)
    for index, name in whole.cpu.items():
        cpu: Any = made.cpus[index]
        cpu.interrupt_request = CPU[name].request
        for register, value in (CPU[name].state | (CPU[name].ignored if ignored else {})).items():
            attribute = "reg_tags" if register == "tags" else register
            change(cpu, {attribute: dict(enumerate(value)) if isinstance(value, list) else value})
    for path, name in whole.devices.items():
        idstr, _, instance = path.rpartition("/")
        vector, bus_path = DEVICE[name], idstr.rpartition("/")[0] or None
        like = [d.obj for d in made.devices if d.description.name == vector.description.name and d.bus_path == bus_path]
        change(like[int(instance)], vector.state)
    return made


def registry_of(machine: Machine) -> Registry:
    registry = Registry()
    machine.register(registry, VirtualClock(), GlobalState(Profile()))
    return registry


def receive(machine: Machine, sections: bytes) -> None:
    """Device sections arrive in a machine, which is complete then."""
    loading, reader = Loading(registry_of(machine)), Reader(sections)
    while reader.offset < len(sections):
        offset = reader.offset
        assert reader.u8() == 4
        number, idstr = reader.u32(), reader.cstr8().decode()
        event: Any = SimpleNamespace(
            type="full",
            offset=offset,
            section_id=number,
            idstr=idstr,
            instance_id=reader.u32(),
            version_id=reader.u32(),
        )
        loading.load(event, reader)
        assert (reader.u8(), reader.u32()) == (0x7E, number)
    loading.check_complete()


def test_files_are_what_the_tables_say() -> None:
    for path, raw in files().items():
        assert path.read_bytes() == raw, f"{path.name}: run tests/machine_vectors.py"


@pytest.mark.parametrize("whole", ALL, ids=NAMES)
def test_state_to_bytes_and_back(whole: Whole) -> None:
    golden = joined(whole.sections())
    source, target = in_state(whole), fresh(whole)
    for state in (source, in_state(whole, ignored=True)):
        assert save_full(registry_of(state)).data == golden
    receive(target, golden)
    assert machine_state(target) == machine_state(source)
    assert save_full(registry_of(target)).data == golden


@pytest.mark.parametrize("whole", [*ALL, CELLAR, *SIZES], ids=[*NAMES, CELLAR.name, *(size.name for size in SIZES)])
def test_a_machine_of_another_isa_refuses_it_before_any_state(whole: Whole) -> None:
    target = fresh(whole, OTHER[whole.model])
    before = machine_state(target)
    with pytest.raises(StreamError) as caught:
        receive(target, joined(whole.sections()))
    assert caught.value.path == "e2k-machine/0/isa"
    assert "both sides need the same CPU model (-cpu)" in caught.value.message
    assert machine_state(target) == before


# -- 36: order


@pytest.mark.parametrize("name", ORDERS)
def test_vector_36_loads_in_every_order_and_is_saved_in_ours(name: str) -> None:
    target = fresh(ORDERED)
    receive(target, order_path(name).read_bytes())
    assert machine_state(target) == machine_state(in_state(ORDERED))
    assert save_full(registry_of(target)).data == order_path("creation").read_bytes()


def test_vector_36_orders_differ_and_are_of_the_same_sections() -> None:
    paths = [tuple(section.path for section in sections) for sections in [*ORDERS.values(), REFUSED_ORDER]]
    assert len(set(paths)) == len(paths)
    assert len({frozenset(each) for each in paths}) == 1


def test_vector_36_an_iommu_behind_a_pci_device_is_refused() -> None:
    with pytest.raises(StreamError) as caught:
        receive(fresh(ORDERED), order_path("iommu-late").read_bytes())
    assert told(caught.value) == ("R7", "iommu: section after PCI devices", "e2k-iommu/0")


def test_vector_36_no_section_may_be_missing() -> None:
    sections = [section for section in ORDERED.sections() if section.idstr != "lmscon"]
    with pytest.raises(StreamError, match="the stream has no state of lmscon/0; the machines differ"):
        receive(fresh(ORDERED), joined(sections))


# -- 10 and 35: streams with RAM


@contextmanager
def vm_of(machine: Machine) -> Iterator[Vm]:
    with Vm(machine, cpus=len(machine.cpus)) as vm:
        for block in machine.blocks:
            vm.add_ram(block.name, block.size)
        yield vm


def in_ram(vm: Vm, whole: Whole) -> dict[tuple[str, int], bytes]:
    """What is now where the vector has something, and one page beside."""
    blocks = {block.name: block for block in vm.machine.blocks}
    return {
        (name, at): bytes(blocks[name].read(at, PAGE))
        for place in whole.pages
        for name, at in (place, (place[0], place[1] ^ PAGE))
        if at < blocks[name].size
    }


def expected(whole: Whole) -> dict[tuple[str, int], bytes]:
    sizes = dict(whole.blocks())
    beside = {(name, at ^ PAGE): bytes(PAGE) for name, at in whole.pages if at ^ PAGE < sizes[name]}
    return beside | whole.pages


def written(vm: Vm, whole: Whole, folder: Path) -> None:
    """What `vm` sends begins and ends as the vector says."""
    vm.migrate(f"file:{folder}/out").wait(40)
    head, tail = whole.head(), whole.tail()
    with (folder / "out").open("rb") as stream:
        assert stream.read(len(head)) == head
        stream.seek(0, 2)
        size = stream.tell()
        stream.seek(max(0, size - (64 << 10)))
        end = stream.read()
    assert tail in end, "all sections up to the end marker; behind it is the description"


@pytest.mark.parametrize("whole", [CELLAR, *SIZES], ids=[CELLAR.name, *(size.name for size in SIZES)])
def test_vectors_10_and_35_streams_with_ram(whole: Whole, tmp_path: Path) -> None:
    with vm_of(in_state(whole)) as source:
        blocks = {block.name: block for block in source.machine.blocks}
        for (name, at), page in whole.pages.items():
            blocks[name].write(at, page)
        written(source, whole, tmp_path)
    again = fresh(whole)
    with vm_of(again) as target:
        # the file of the repository, which has no page that is zero
        target.incoming(f"file:{whole.path}").wait(40)
        assert in_ram(target, whole) == expected(whole)
        assert machine_state(again) == machine_state(in_state(whole))
        target.reset()
        assert machine_state(again) == machine_state(fresh(whole))
    with vm_of(fresh(whole)) as other:
        # what our source has written, and what it writes after that
        other.incoming(f"file:{tmp_path}/out").wait(40)
        assert in_ram(other, whole) == expected(whole)
        written(other, whole, tmp_path)


def test_vector_10_nothing_but_the_cellar_and_its_page(tmp_path: Path) -> None:
    with vm_of(fresh(CELLAR)) as vm:
        vm.incoming(f"file:{CELLAR.path}").wait(40)
        vm.migrate(f"file:{tmp_path}/out").wait(40)
    parts = take_apart((tmp_path / "out").read_bytes())
    (((_, at), page),) = CELLAR.pages.items()
    memory = parts.memory(b"e2k.ram")
    assert memory == bytes(at) + page + bytes(CELLAR.ram - at - PAGE)
    point, count = CPU["10-page-fault"].state["trap_point"], CPU["10-page-fault"].state["trap_count"]
    assert isinstance(point, int)
    assert isinstance(count, int)
    assert memory[point : point + 8 * count] != bytes(8 * count)
    assert memory[point + 512 : point + 512 + 8 * count] != bytes(8 * count)


@pytest.mark.parametrize("whole", SIZES, ids=[size.name for size in SIZES])
def test_vector_35_another_size_is_refused(whole: Whole) -> None:
    smaller = build(
        "e2k", whole.ram // 2 & ~0xFFFF, model=whole.model, kernel_size=whole.kernel or None, tags=whole.tags
    )
    with vm_of(smaller) as vm, pytest.raises(StreamError) as caught:
        vm.incoming(f"file:{whole.path}").wait(40)
    assert "e2k.ram" in str(caught.value)
    assert f"0x{whole.ram:x}" in str(caught.value)


def test_vector_35_blocks_of_another_kind_are_refused() -> None:
    firmware, kernel = (next(s for s in SIZES if s.name == name) for name in ("35-128m", "35-128m-kernel"))
    with vm_of(fresh(firmware)) as vm, pytest.raises(StreamError, match=r"e2k\.kernel"):
        vm.incoming(f"file:{kernel.path}").wait(40)
