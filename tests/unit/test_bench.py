"""`bench vmstate`: every section is measured, and the record has the shape that the contract fixes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qmig_e2k import bench
from qmig_e2k.bench import vmstate

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
