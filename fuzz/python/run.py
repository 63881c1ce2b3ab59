#!/usr/bin/env python3
"""Fuzzes what is written in Python: `python fuzz/python/run.py TARGET [--time SECONDS]`.

With atheris (`pip install atheris`) guided by coverage, which grows `fuzz/corpus/python-TARGET`. Without it the seeds,
the corpus and the regressions are replayed once, and the last line says so. More for libFuzzer stands behind `--`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parent / "corpus"
REGRESSIONS = HERE / "regressions"
TARGETS = ("vmstate", "description", "qmp", "hmp")
SLOW_S = 10
"""Seconds after which libFuzzer calls a run stuck."""


def recorded(target: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what an earlier run found worth keeping, and of what once failed."""
    for folder in (REGRESSIONS / target, CORPUS / f"python-{target}"):
        for path in sorted(folder.glob("*")):
            yield str(path.relative_to(HERE.parent)), path.read_bytes()


def replay(target: str, check: Callable[[bytes], None], seeds: Iterator[bytes]) -> int:
    """Run every input once; returns how many."""
    count = 0
    for name, data in [*((f"seed {number}", seed) for number, seed in enumerate(seeds)), *recorded(target)]:
        try:
            check(data)
        except BaseException:
            sys.stderr.write(f"fuzz/python: {target} fails on {name}: {data[:200]!r}\n")
            raise
        count += 1
    return count


def main() -> int:
    """Fuzz, or replay."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--time", type=int, default=60, help="seconds (60)")
    parser.add_argument("--replay", action="store_true", help="only replay, also with atheris")
    parser.add_argument("libfuzzer", nargs="*", help="further arguments for libFuzzer")
    arguments = parser.parse_args()
    quiet = logging.getLogger("qmig_e2k")  # what is logged there can still be looked at by a target
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    try:
        import atheris  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        atheris = None
    guided = atheris is not None and not arguments.replay
    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["qmig_e2k", "json"]) if guided else nullcontext():
        module = importlib.import_module(f"fuzz_{arguments.target}")
    count = replay(arguments.target, module.check, module.seeds())
    print(f"{arguments.target}: {count} inputs replayed, none fails")
    if not guided:
        module.close()
        if atheris is None:
            print("atheris is not installed, so nothing new was tried: pip install atheris (Python 3.11 to 3.13)")
        return 0
    folder = CORPUS / f"python-{arguments.target}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(module.seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    artifacts = HERE.parent / "artifacts" / f"python-{arguments.target}"
    artifacts.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={arguments.time}",
        f"-timeout={SLOW_S}",
        f"-artifact_prefix={artifacts}/",
        f"-dict={HERE / 'words.dict'}",
    ]
    alone = any(Path(argument).is_file() for argument in arguments.libfuzzer)  # what is to be run once more
    atheris.Setup([sys.argv[0], *options, *arguments.libfuzzer, *([] if alone else [str(folder)])], module.check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
