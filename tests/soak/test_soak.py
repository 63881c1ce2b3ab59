"""The soak itself: its judge can fail, and a short one is flat and whole. The long ones are `make soak`."""

import random
from pathlib import Path

import pytest

from soak.__main__ import Soak, soak, table
from soak.counters import ENOUGH, MEMORY_MAY_GROW, WARM, Held, Series
from soak.trips import WAYS, SoakError, precopy

STEADY = Held(descriptors=11, threads=5, mappings=300, memory=40 << 20)


def series(grow):
    """Samples that waver, as those of different ways do; `grow(i)` gives what is held more in sample `i`."""
    made, noise = Series(), random.Random(3)
    for i in range(WARM):
        more = {"descriptors": noise.randrange(4), "threads": noise.randrange(2), "memory": noise.randrange(1 << 20)}
        for name, value in grow(i).items():
            more[name] += value
        made.samples.append(Held(**{name: getattr(STEADY, name) + more.get(name, 0) for name in Held.__slots__}))
    return made


@pytest.mark.parametrize(
    ("grow", "words"),
    [
        (lambda i: {}, []),
        # caches that fill
        (lambda i: {"memory": min(i, ENOUGH) << 20, "descriptors": i > 20}, []),
        (lambda i: {"descriptors": i // 100}, ["descriptors"]),
        (lambda i: {"threads": i // 100}, ["threads"]),
        (lambda i: {"memory": 4 * i * MEMORY_MAY_GROW // WARM}, ["memory"]),
        (lambda i: {"descriptors": i, "threads": i}, ["descriptors", "threads"]),
    ],
    ids=["steady", "warm-up", "descriptors", "threads", "memory", "both"],
)
def test_what_grows_is_seen(grow, words):
    assert [each.split()[0] for each in series(grow).growth()] == words


def test_few_samples_say_nothing():
    few = series(lambda i: {"threads": i, "memory": i << 20})
    del few.samples[WARM - 1 :]
    assert [each.split()[0] for each in few.growth()] == ["threads"]
    del few.samples[ENOUGH - 1 :]
    assert few.growth() == []


def test_each_way_once(certificates):
    """In text and record: as many trips as ways, each of them, and the machine whole at the end."""
    record = soak(0, 5, certificates)
    assert (record["error"], record["grew"]) == (None, []), record
    assert record["trips"] == dict.fromkeys(sorted(way.__name__ for way in WAYS), 1)
    text = table(record)
    assert f"{len(WAYS)} trips" in text
    assert "RAM equal" in text
    assert "GREW" not in text
    assert "FAILED" not in text


@pytest.fixture
def travelling(tmp_path: Path):
    made = Soak(tmp_path, 1)
    yield made
    made.close()


def test_wrong_memory_is_seen(travelling):
    """One bit of the machine that has arrived, behind its back."""
    precopy(travelling.sides)
    travelling.sides.exchange()
    travelling.sides.source.execute("stop")
    folder = Path("/proc") / str(travelling.second.process.pid) / "fd"
    (ram,) = (link for link in folder.iterdir() if "guest-ram" in str(link.readlink()))
    with ram.open("r+b") as memory:
        byte = memory.read(1)
        memory.seek(0)
        memory.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SoakError, match=r"RAM is wrong after \d+ steps, first at 0$"):
        travelling.verify()
