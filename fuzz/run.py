#!/usr/bin/env python3
"""Builds the fuzz targets and runs them: one for long, or all of them for a moment.

Coverage comes from LLVM's pass, which stable rustc has; only the address sanitizer's flag is unstable and takes
RUSTC_BOOTSTRAP=1. Neither cargo-fuzz nor a nightly toolchain is needed: libFuzzer is compiled from the crate, by a C++
compiler. Needs Python 3.11.

    fuzz/run.py --seconds 20                       every target
    fuzz/run.py stream memory --seconds 3600       two of them
    fuzz/run.py null --sanitizer none              as fast as it goes

Findings are left in fuzz/artifacts/TARGET and end with status 1; what is worth keeping grows in fuzz/corpus/TARGET.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRIPLE = "x86_64-unknown-linux-gnu"
COVERAGE = ["-Cpasses=sancov-module", "-Ccodegen-units=1"] + [
    f"-Cllvm-args=-sanitizer-coverage-{flag}"
    for flag in ("level=4", "inline-8bit-counters", "pc-table", "trace-compares")
]
LENGTH_MAX = {"stream": 16384, "null": 16384, "memory": 65536, "structured": 4096, "discards": 1024, "mapped_ram": 1024}


@dataclass
class Outcome:
    """What a run of one target came to."""

    target: str
    executions: int
    per_second: int
    """Executions in one second of processor time, its own and the kernel's: others on the same cores do not count."""
    edges: int
    inputs: int
    median: int
    """Bytes of the median input of the corpus."""
    found: str | None
    """The last words of a run that found something."""


def targets() -> list[str]:
    """The names of all targets, from the manifest."""
    return [entry["name"] for entry in tomllib.loads((HERE / "Cargo.toml").read_text())["bin"]]


def build(names: list[str], sanitizer: str) -> Path:
    """Compiles targets with coverage.

    Args:
        names: which.
        sanitizer: `address` or `none`.

    Returns:
        The directory of the binaries.
    """
    flags, environment = list(COVERAGE), dict(os.environ)
    if sanitizer != "none":
        flags.append(f"-Zsanitizer={sanitizer}")
        environment["RUSTC_BOOTSTRAP"] = "1"
    directory = HERE / "target" / sanitizer
    environment["RUSTFLAGS"] = " ".join(flags)
    # With a target named, build scripts and macros are spared the flags.
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--target", TRIPLE, "--target-dir", str(directory)]
    for name in names:
        command += ["--bin", name]
    subprocess.run(command, cwd=HERE, env=environment, check=True)
    return directory / TRIPLE / "release"


def run(binary: Path, seconds: int, more: list[str]) -> Outcome:
    """Runs one target.

    Args:
        binary: the program, named like its target.
        seconds: for how long.
        more: further options of libFuzzer.
    """
    name = binary.name
    corpus, artifacts, kept = (HERE / where / name for where in ("corpus", "artifacts", "regressions"))
    for directory in (corpus, artifacts):
        directory.mkdir(parents=True, exist_ok=True)
    command = [str(binary), f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={artifacts}/"]
    command += [f"-max_len={LENGTH_MAX.get(name, 8192)}", "-timeout=20", "-rss_limit_mb=1024", *more]
    dictionary = HERE / f"{name}.dict"
    if not dictionary.exists() and name in ("null", "memory", "ram", "commands"):
        dictionary = HERE / "stream.dict"
    if dictionary.exists():
        command.append(f"-dict={dictionary}")
    command += [str(path) for path in (corpus, kept) if path.exists()]
    process = subprocess.Popen(
        command, cwd=HERE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace"
    )
    with process.stderr as words:
        said = words.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    stat = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", said)}
    runs = stat.get("number_of_executed_units", 0)
    edges = re.findall(r"cov: (\d+)", said)
    sizes = [path.stat().st_size for path in corpus.iterdir()]
    return Outcome(
        target=name,
        executions=runs,
        per_second=round(runs / max(usage.ru_utime + usage.ru_stime, 0.01)),
        edges=int(edges[-1]) if edges else 0,
        inputs=len(sizes),
        median=round(statistics.median(sizes)) if sizes else 0,
        found="\n".join(said.splitlines()[-60:]) if process.returncode else None,
    )


def main() -> int:
    """Build, run, print a table; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them if none is named")
    parser.add_argument("--seconds", type=int, default=20, help="for each target (20)")
    parser.add_argument("--sanitizer", choices=("address", "none"), default="address")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--build", action="store_true", help="only build")
    arguments, more = parser.parse_known_args()
    unknown = [word for word in more if not word.startswith("-")] + [n for n in arguments.targets if n not in targets()]
    if unknown:
        parser.error(f"no target {unknown[0]}; there are {', '.join(targets())}")
    names = arguments.targets or targets()
    subprocess.run([sys.executable, HERE / "make_seeds.py"], check=True)
    directory = build(names, arguments.sanitizer)
    if arguments.build:
        return 0
    print(f"{'target':12} {'runs':>10} {'a second':>9} {'edges':>6} {'inputs':>6} {'median':>6}")
    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(lambda name: run(directory / name, arguments.seconds, more), names):
            outcomes.append(outcome)
            one = outcome
            figures = f"{one.executions:10} {one.per_second:9} {one.edges:6} {one.inputs:6} {one.median:6}"
            print(f"{one.target:12} {figures}{'  FOUND SOMETHING' if one.found else ''}", flush=True)
    for outcome in outcomes:
        if outcome.found:
            print(f"\n== {outcome.target}: see fuzz/artifacts/{outcome.target}\n{outcome.found}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return int(any(outcome.found for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
