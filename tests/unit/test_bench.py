"""`bench vmstate` and `bench faults`: all is measured, and the record has the shape that the contract fixes."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qmig_e2k import bench, cli
from qmig_e2k.bench import faults, host, pages, postcopy, vmstate, xbzrle


def test_vmstate_record_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    assert bench.run("vmstate", runs=1, out=out) == 0
    record = json.loads(out.read_text())
    assert record["schema"] == "qmig_e2k/bench/1"
    assert set(record["results"][0]) == {"name", "unit", "ours", "reference", "reference_name", "ratio", "runs"}
    results = {result["name"]: result for result in record["results"]}
    for kind in ("saved", "loaded"):
        whole = results[f"{vmstate.WHOLE}, {kind}"]
        assert (whole["unit"], whole["reference"], whole["reference_name"]) == ("us", 5000, "limit")
        assert whole["ratio"] == whole["ours"] / 5000
        assert len(whole["runs"]["ours"]) == 20
        assert 0 < results[f"cpu, 8 sections, {kind}"]["ours"] < whole["ours"]
    assert results["cpu, 8 sections, size"]["ours"] == 88_168
    assert results["e2k-sic, size"]["ours"] == 2027, "with both optional parts"

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["bytes", "save", "us", "load", "us"]
    assert lines[-1].split() == ["limit", "5000", "5000"]
    assert lines[-2].startswith(vmstate.WHOLE)
    sections = len(record["results"]) // 3 - 1
    assert len(lines) == sections + 3
    assert any(line.startswith("0000:00:02.4/e2k-gpio") for line in lines)


BARE = {
    "bare_faults": {
        "faults": {"p50_ns": 1000, "p99_ns": 2000, "mean_ns": 1500, "buckets": [[990, 20, 98], [1990, 20, 2]]},
        "wrong": 0,
        "requests": 7,
        "seconds": 0.5,
    },
    "fault_floor": {
        "ours": {"p50_ns": 3000, "p99_ns": 4000},
        "bare": {"p50_ns": 2000, "p99_ns": 4000},
        "record": {"ns": 150},
    },
}
"""What the bare programs print; they themselves are run by `make bench`."""


def test_faults_record_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, printed in BARE.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{json.dumps(printed)}'\n")
        program.chmod(0o755)
    monkeypatch.setattr(host, "warm", lambda gib: None)
    monkeypatch.setattr(host, "qemu", lambda: None)
    monkeypatch.setattr(faults, "MODES", {"preempt": True})
    for part in ("whole", "switch"):  # measured below
        monkeypatch.setattr(faults, part, lambda *_: [])
    out = tmp_path / "record.json"
    words = ["bench", "faults", "--runs", "1", "--size", "16M", "--programs", str(tmp_path), "--json", str(out)]
    assert cli.main(words) == 0
    record = json.loads(out.read_text())
    assert record["args"] == {"what": "faults", "runs": 1, "size": 16 << 20}
    assert record["phases"]["touch, preempt"]["count"] > 0
    results = {result["name"]: result for result in record["results"]}
    for name, bare in (("p50", 1), ("p99", 2)):
        found = results[f"fault {name}, preempt"]
        assert (found["reference"], found["reference_name"]) == (bare, "bare loop")
        assert found["ratio"] == found["ours"] / bare
        assert found["runs"]["requests"] == results["requests, preempt"]["runs"]["ours"]
        assert found["runs"]["note"] == f"of all {found['runs']['requests'][0]} requests in 1 runs", (
            "16 MiB cannot have more"
        )
    assert results["all memory, preempt"]["reference"] == 1 / 64 / 0.5
    assert results["local floor p50"]["ratio"] == 1.5
    assert results["record of a fault"]["ratio"] == pytest.approx(0.05)
    printed = capsys.readouterr()
    assert "skipped: p50 at 4 GiB" in printed.err
    (line,) = (line for line in printed.out.splitlines() if line.startswith("fault p99, preempt"))
    assert line.endswith(" requests in 1 runs")


def test_too_few_requests_are_marked() -> None:
    row = {"name": "row", "unit": "us", "ours": 1.0, "reference": None, "ratio": None, "runs": {"ours": [1.0, 1.0]}}
    seen = [faults.Seen(1.0, requests) for requests in (6_000, 3_999)]
    few = faults._asked(row, seen, 1 << 30)
    assert few["runs"] == {
        "ours": [1, 1],
        "requests": [6_000, 3_999],
        "note": "of all 9999 requests in 2 runs, TOO FEW: 10000 are wanted",
    }
    assert bench.table([few]).endswith("  of all 9999 requests in 2 runs, TOO FEW: 10000 are wanted")
    enough = faults._asked(row, [*seen, faults.Seen(1.0, 1)], 1 << 30)
    assert enough["runs"]["note"] == "of all 10000 requests in 3 runs"


def test_percentiles_are_of_all_runs_together() -> None:
    """A run in which hardly anybody waited says hardly anything, and one bad run shows in the tail of all."""
    many = faults.Seen(0, 9_900, 10.0, 10.0, 1.0, [[10_000, 1, 9_900]])
    few = faults.Seen(0, 200, 500.0, 900.0, 1.0, [[900_000, 3, 100], [500_000, 1, 100]])
    bare = [faults.Seen(0, 1, 5.0, 5.0, 1.0, [[5_000, 1, 1]])]
    rows = {row["name"]: row for row in faults._rows("preempt", 16 << 20, [few, few, many], bare * 2, [])}
    p50, p99 = rows["fault p50, preempt"], rows["fault p99, preempt"]
    assert (p50["ours"], p50["reference"], p50["ratio"]) == (10.0, 5.0, 2.0)
    assert p50["runs"]["ours"] == [500.0, 500.0, 10.0]
    assert p99["ours"] == pytest.approx(900.001)


@pytest.mark.parametrize(("each", "wanted"), [(10_000, 2), (4_000, 3), (10, 6)])
def test_runs_are_added_until_enough_was_asked_for(each: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two were asked for; the first of all is dropped."""
    measured: list[str] = []

    def ours(*_: object) -> dict[str, Any]:
        measured.append("ours")
        figures = {"mean_ns": 1, "p50_ns": 1, "p99_ns": 1, "buckets": [[1, 1, each]]}
        return {"phases": {"touch": figures}, "result": {"wrong": 0, "requests": each, "gib_per_second": 1.0}}

    monkeypatch.setattr(host, "warm", lambda gib: None)
    monkeypatch.setattr(faults, "MODES", {"preempt": True})
    monkeypatch.setattr(faults, "experiment", ours)
    monkeypatch.setattr(faults, "_bare", lambda *_: faults.Seen(1.0, each, buckets=[[1, 1, each]]))
    monkeypatch.setattr(faults, "_qemu", lambda *_: measured.append("qemu") or faults.Seen(9.0, each))
    for part in ("_floor", "_flat", "whole", "switch", "random_file"):
        monkeypatch.setattr(faults, part, lambda *_: [])
    results, _ = faults.run(2, 1 << 30, Path(), qemu="qemu")
    assert measured.count("ours") == 1 + wanted
    assert measured.count("qemu") == faults.FEW
    row = next(row for row in results if row["name"] == "fault p50, preempt")
    assert row["runs"]["requests"] == [each] * wanted
    assert ("TOO FEW" in row["runs"]["note"]) == (each == 10)
    assert next(row for row in results if row["name"] == "fault mean, preempt")["reference"] == 9.0


def test_postcopy_beside_precopy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "warm", lambda gib: None)
    postcopy.random_file(tmp_path / "content", 16 << 20)
    said: list[str] = []
    (row,) = postcopy.whole(1, tmp_path / "content", said.append)
    assert row["ours"] > 0
    assert row["reference_name"] == "precopy"
    assert len(said) == 1


@pytest.mark.parametrize(("where", "limit"), [("in runs of 256 KiB", 30.0), ("in single pages", None)])
def test_the_switch_with_a_tenth_dirty(where: str, limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of single pages it is reported, without a limit."""
    pages = postcopy.DIRTY[where](1 << 30)
    begins = [page for before, page in pairwise([-1, *pages]) if page != before + 4096]
    assert len(begins) == (26_215 if limit is None else 410)
    assert len(pages) == pytest.approx((1 << 30) / 10 / 4096, rel=0.01)
    assert pages[-1] > 0.99 * (1 << 30)
    monkeypatch.setattr(postcopy, "DIRTY", {where: postcopy.DIRTY[where]})
    said: list[str] = []
    (row,) = postcopy.switch(1, 16 << 20, said.append)
    assert row["ours"] > 0
    assert row["reference"] == limit
    assert len(said) == 1


def test_faults_without_its_bare_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "faults"]) == 1
    assert "make bench BENCH=faults" in capsys.readouterr().err


def test_xbzrle_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1 << 20
    moved = {
        True: xbzrle.Moved([64 * mib, 64 * mib, 4 * mib, mib, mib], 40.0),
        False: xbzrle.Moved([64 * mib] * 9, None),
    }
    monkeypatch.setattr(xbzrle, "_move", lambda *, xbzrle: moved[xbzrle])
    said: list[str] = []
    rows = {row["name"].rpartition(": ")[2]: row for row in xbzrle.run(said.append)}
    assert (rows["a later round"]["ours"], rows["a later round"]["reference"]) == (1.0, 64.0)
    assert rows["a later round"]["runs"]["ours"] == [4.0, 1.0, 1.0]
    assert rows["downtime, xbzrle on"]["ours"] == 40.0
    assert "downtime, xbzrle off" not in rows
    assert "not" not in rows["rounds, xbzrle on"]["runs"]["note"]
    assert "not" in rows["rounds, xbzrle off"]["runs"]["note"]
    assert len(said) == 2


def test_ways_of_pages_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In little memory; one that this or that program refuses is left out, and said so."""
    monkeypatch.setattr(host, "warm", lambda gib: None)
    monkeypatch.setattr(host, "qemu", lambda: None)
    small = tuple(dataclasses.replace(case, mib=2) for case in pages.CASES[:1])
    refused = dataclasses.replace(small[0], name="refused", capability="dirty-bitmaps")
    monkeypatch.setattr(pages, "CASES", (*small, refused))
    out = tmp_path / "record.json"
    assert cli.main(["bench", "ram", "--runs", "1", "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    names = [case.name for case in small]
    assert [row["name"] for row in results] == [text for name in names for text in (name, f"CPU of both: {name}")]
    assert {row["unit"] for row in results} == {"GiB/s", "s/GiB"}
    assert all(row["ours"] >= 0 and len(row["runs"]["ours"]) == 1 for row in results)
    assert "refused: left out: " in capsys.readouterr().err
