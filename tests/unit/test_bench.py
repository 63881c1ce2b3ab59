"""`bench vmstate` and `bench faults`: all is measured, and the record has the shape that the contract fixes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from qmig_e2k import bench, cli
from qmig_e2k.bench import faults, host, vmstate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        "faults": {"p50_ns": 1000, "p99_ns": 2000, "mean_ns": 1500},
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
        assert found["runs"]["note"] == f"{found['runs']['requests'][0]} requests", "16 MiB cannot have more"
    assert results["all memory, preempt"]["reference"] == 1 / 64 / 0.5
    assert results["local floor p50"]["ratio"] == 1.5
    assert results["record of a fault"]["ratio"] == pytest.approx(0.05)
    printed = capsys.readouterr()
    assert "skipped: p50 at 4 GiB" in printed.err
    (line,) = (line for line in printed.out.splitlines() if line.startswith("fault p99, preempt"))
    assert line.endswith(" requests")


def test_too_few_requests_are_marked() -> None:
    row = {"name": "row", "unit": "us", "ours": 1.0, "reference": None, "ratio": None, "runs": {"ours": [1.0, 1.0]}}
    seen = [faults.Seen(1.0, requests) for requests in (12_000, 9_999)]
    few = faults._asked(row, seen, 1 << 30)
    assert few["runs"] == {
        "ours": [1, 1],
        "requests": [12_000, 9_999],
        "note": "9999 requests, TOO FEW: 10000 are wanted",
    }
    assert bench.table([few]).endswith("  9999 requests, TOO FEW: 10000 are wanted")
    assert faults._asked(row, seen[:1], 1 << 30)["runs"]["note"] == "12000 requests"


@pytest.mark.parametrize(("measure", "beside"), [(faults.whole, ["precopy"]), (faults.switch, ["limit"])])
def test_postcopy_beside_other_things(
    measure: Callable[..., list[dict[str, Any]]], beside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "warm", lambda gib: None)
    said: list[str] = []
    results = measure(1, 16 << 20, said.append)
    assert all(result["ours"] > 0 for result in results)
    assert [result["reference_name"] for result in results] == beside
    assert len(said) == len(beside)


def test_faults_without_its_bare_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "faults"]) == 1
    assert "make bench BENCH=faults" in capsys.readouterr().err
