"""`qmig-e2k lab`: two processes, memory that is missing, and a record of each touch."""

import json
import re
import sys

import pytest

from qmig_e2k import MigrationError, cli
from qmig_e2k.lab import plot
from qmig_e2k.lab.faults import Experiment, LabError
from qmig_e2k.lab.sweep import load, table
from support import REPOSITORY

PHASES = ["read", "request", "first-byte", "place", "total", "touch"]
FIGURES = {"count", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns", "mean_ns", "buckets"}


@pytest.fixture
def faults(tmp_path, capsys):
    """Runs `lab faults`; returns the record and what was printed on standard output."""

    def faults(*words):
        out = tmp_path / "record.json"
        assert cli.main(["lab", "faults", "--ram", "16M", *words, "--json", str(out)]) == 0, capsys.readouterr().err
        return json.loads(out.read_text()), capsys.readouterr().out

    return faults


def test_a_record_of_faults(faults):
    """Nobody brings a page unasked, so what was touched was asked for; each phase has what the contract says."""
    record, text = faults("--faults", "300", "--seed", "7")
    assert record["schema"] == "qmig_e2k/lab-faults/1"
    assert set(record["host"]) == {"cpu", "cores", "kernel", "thp", "versions"}
    assert record["args"]["seed"] == 7
    assert list(record["phases"]) == PHASES
    for name, seen in record["phases"].items():
        assert set(seen) == FIGURES, name
        assert sum(count for _, _, count in seen["buckets"]) == seen["count"]
    requests = record["result"]["requests"]
    assert 250 <= requests <= 300, "one page or the other may have come in the moment before the switch"
    assert record["phases"]["total"]["count"] == requests
    assert record["phases"]["touch"]["count"] == 300
    assert record["result"]["wrong"] == 0
    assert record["result"]["gib_per_second"] is None
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == PHASES
    assert lines[-1].startswith(f"{requests} requests, ")


def test_the_seed_makes_the_order(faults):
    """Also where the rest comes in the background, by other channels and another way of touching."""
    plain, _ = faults("--faults", "20", "--seed", "1")
    other, _ = faults("--faults", "20", "--seed", "1", "--preempt", "--background", "--access", "write")
    assert plain["result"]["order_sha256"] == other["result"]["order_sha256"]


def test_everything_is_touched_beside_the_background(faults):
    """A link of 200 Mbit/s leaves two thirds of a second for it."""
    record, text = faults("--faults", "0", "--preempt", "--background", "--mbit", "200", "--order", "seq")
    assert record["result"]["touches"] == (16 << 20) // 4096
    assert record["result"]["wrong"] == 0
    assert 0 < record["result"]["gib_per_second"] < 0.025
    assert "all memory in" in text


def test_a_far_source(faults):
    """No page can be there before its request has gone one way and it the other."""
    record, _ = faults("--faults", "10", "--delay-us", "5000")
    assert record["phases"]["first-byte"]["count"] >= 5
    assert record["phases"]["first-byte"]["p50_ns"] >= 10_000_000 * 0.99, "its bucket is 1.6 % wide"


def test_the_picture(faults, tmp_path):
    out = tmp_path / "out.png"
    record, _ = faults("--faults", "20", "--plot", str(out))
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LabError, match=r"[Ff]ormat"):
        plot.histograms(record, tmp_path / "out.nothing")


def test_a_picture_without_matplotlib(monkeypatch, capsys):
    """Said before anything is measured, with what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["lab", "faults", "--plot", "out.png"]) == 1
    err = capsys.readouterr().err
    assert err == "qmig-e2k lab faults: plots need matplotlib: pip install 'qmig_e2k[lab]'\n"
    with pytest.raises(LabError, match="pip install"):
        plot.points([], None)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written(capsys, tmp_path, option):
    """Said before anything starts, or the record would be lost; asking leaves nothing behind."""
    for out, why in ((tmp_path / "missing" / "x.png", "No such file"), (tmp_path, "Is a directory")):
        assert cli.main(["lab", "faults", option, str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"qmig-e2k lab faults: {out} cannot be written: {why}")
    assert not list(tmp_path.iterdir())


def test_a_picture_of_no_format(capsys, tmp_path):
    assert cli.main(["lab", "faults", "--plot", str(tmp_path / "x.foo")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "'foo' is no format of a picture; there are " in line
    assert " png" in line
    assert not list(tmp_path.iterdir())


def test_a_side_that_cannot_start(capsys):
    """More memory than any host has; the reason is the side's own, in one line."""
    assert cli.main(["lab", "faults", "--ram", "1E"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("qmig-e2k lab faults: the source did not start: ")
    assert "ram" in lines[-1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--ram", "5K"], "not a number of pages"),
        (["--page", "2M", "--ram", "3M"], "not a number of pages"),
        (["--faults", "-1"], "faults -1 is impossible"),
        (["--seed", str(1 << 63)], "is impossible"),
    ],
)
def test_conditions_that_cannot_be(capsys, words, why):
    assert cli.main(["lab", "faults", *words]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--page", "8K"], ["--order", "walk"], ["--access", "look"], ["--ram", "much"]])
def test_words_that_are_none(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["lab", "faults", *words])
    assert caught.value.code == 2
    assert words[1] in capsys.readouterr().err


@pytest.mark.parametrize("words", [["lab", "--help"], ["lab", "faults", "--help"], ["lab", "sweep", "--help"]])
def test_help(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0
    assert "faults" in capsys.readouterr().out


# sweep


@pytest.fixture
def grid(tmp_path):
    def grid(text):
        path = tmp_path / "grid.toml"
        path.write_text(text)
        return path

    return grid


def test_one_axis_in_two_spellings(grid):
    with pytest.raises(MigrationError, match="delay-us is there twice"):
        load(grid("delay-us = 0\ndelay_us = 100\n"))


def test_a_grid_and_what_it_finds(grid, tmp_path, capsys):
    path = grid('ram = "4M"\nfaults = 20\npreempt = [false, true]\n')
    assert cli.main(["lab", "sweep", str(path)]) == 0
    records = [json.loads((tmp_path / "grid" / f"{number:03}.json").read_text()) for number in range(2)]
    assert [record["args"]["preempt"] for record in records] == [False, True]
    assert (tmp_path / "grid" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["000", "preempt=false"], ["001", "preempt=true"]]
    assert printed.out == table(list(zip(["preempt=false", "preempt=true"], records, strict=True))) + "\n"
    assert "2 of 2: preempt=true" in printed.err


def test_the_last_axis_turns_fastest(grid):
    runs = load(grid('seed = [1, 2]\ndelay-us = [0, 10]\nram = 64\npage = "2M"\n'))
    assert [label for label, _ in runs] == [f"seed={seed} delay_us={delay}" for seed in (1, 2) for delay in (0, 10)]
    assert runs[-1][1] == Experiment(seed=2, delay_us=10, ram=64 << 20, page=2 << 20)
    assert load(grid("")) == [("run", Experiment())]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ram = ", "Invalid value"),
        ("speed = 3", "'speed' is no option; there are .*delay_us"),
        ("faults = 1.5", "faults = 1.5 is no int"),
        ("preempt = 1", "preempt = 1 is no bool"),
        ("faults = true", "faults = true is no int"),
        ('ram = "much"', "no size"),
        ("ram = [1, true]", "ram"),
        ('order = "walk"', "walk"),
        ("seed = []", "no runs"),
        (f"seed = {list(range(101))}\nfaults = {list(range(101))}", "more than 10000 runs"),
    ],
)
def test_a_grid_that_cannot_be(grid, text, why):
    with pytest.raises(MigrationError, match=why) as caught:
        load(grid(text))
    assert caught.value.kind == "invalid-argument"


def test_a_run_that_comes_to_nothing_leaves_those_before_it(grid, tmp_path, capsys):
    path = grid('ram = ["4M", "1E"]\nfaults = 1\n')
    assert cli.main(["lab", "sweep", str(path), "--out", str(tmp_path / "out")]) == 1
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["000.json"]
    assert 'run 1 (ram="1E"): the source did not start' in capsys.readouterr().err


def test_memory_with_huge_pages_that_are_not_there(capsys):
    assert cli.main(["lab", "faults", "--page", "2M", "--ram", "1P"]) == 1
    assert "hugepages" in capsys.readouterr().err


# the how-to

HOW_TO = (REPOSITORY / "docs/how-to/measure-faults.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's reader is; the grid has less to do than the page's."""
    folder = tmp_path_factory.mktemp("how-to")
    (grid,) = re.findall(r"^```toml\n(.*?)^```$", HOW_TO, re.MULTILINE | re.DOTALL)
    (folder / "page.toml").write_text(grid)
    small = grid.replace("64M", "4M").replace("2000", "5").replace("[0, 100, 1000]", "[0, 10]")
    (folder / "grid.toml").write_text(small)
    return folder


@pytest.mark.parametrize(
    "example", re.findall(r"^```console\n\$ qmig-e2k (.*?)^```$", HOW_TO, re.MULTILINE | re.DOTALL)
)
def test_commands_of_the_how_to(folder, monkeypatch, capsys, example):
    command, said = example.split("\n", 1)
    monkeypatch.chdir(folder)
    assert cli.main(command.replace("256M", "4M").replace("10000", "5").split()) == 0
    for line, wanted in zip(capsys.readouterr().out.splitlines(), said.partition("...")[0].splitlines(), strict=False):
        assert line.split()[: len(wanted.split())] == wanted.split()


def test_the_how_to_reads_records(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert len(load(folder / "page.toml")) == 6
    (folder / "grid").mkdir(exist_ok=True)
    phases = {"touch": {"p50_ns": 7}}
    record = {"args": {"delay_us": 3}, "phases": phases, "host": {"kernel": "6.1"}}
    (folder / "grid/999.json").write_text(json.dumps(record))
    (program,) = re.findall(r"^```python\n(.*?)^```$", HOW_TO, re.MULTILINE | re.DOTALL)
    exec(program)
    assert capsys.readouterr().out.splitlines()[-1] == "3 7 6.1"
