"""The targets of fuzz/python without atheris: their seeds, all that once failed, and some damage."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmig_e2k.testing.strategies import damaged
from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FOLDER = REPOSITORY / "fuzz" / "python"
TARGETS = ("vmstate", "description", "qmp", "hmp")
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    module = importlib.import_module(f"fuzz_{request.param}")
    yield module
    module.close()
    sys.path.remove(str(FOLDER))
    for name in (f"fuzz_{request.param}", "monitored", "run"):
        sys.modules.pop(name, None)


def test_what_was_found_before(target: ModuleType) -> None:
    run = importlib.import_module("run")
    name = target.__name__.removeprefix("fuzz_")
    assert run.TARGETS == TARGETS
    seeds = list(target.seeds())
    assert run.replay(name, target.check, iter(seeds)) >= len(seeds) > 5


@settings(SETTINGS, max_examples=60)
@given(data=st.data())
def test_damaged_seeds(target: ModuleType, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(seeds_of(target)))
    target.check(seed[:1] + data.draw(damaged(seed[1:])))


@pytest.mark.long
def test_many_damaged_seeds(target: ModuleType) -> None:
    @settings(SETTINGS, max_examples=3000)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        seed = data.draw(st.sampled_from(seeds_of(target)))
        once = data.draw(damaged(seed[1:]))
        target.check(seed[:1] + data.draw(damaged(once)))

    run()


def seeds_of(target: ModuleType) -> list[bytes]:
    if not hasattr(target, "_seeds"):
        target._seeds = list(target.seeds())  # type: ignore[attr-defined]
    return target._seeds
