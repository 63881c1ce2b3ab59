"""The model: its properties hold in every state, and none of its guards is there for nothing."""

from functools import cache
from pathlib import Path

import pytest

from campaign.cut import OWNERS
from model.explore import ViolationError, explore
from model.mapping import DESTINATION, GUARD, OWNER, SOURCE
from model.protocol import GUARDS, Protocol

CORE = Path(__file__).parents[2] / "rust/core/src"
BOTH = "never both: "
STUCK = "no good end can be reached"
BREAKS = {
    "cancel-asks-the-word": ("precopy", BOTH),
    "commit-asks-the-word": ("precopy", BOTH),
    "fence": ("precopy", "the source has committed while"),
    "run-is-withheld": ("postcopy", BOTH),
    "stays-stopped": ("precopy", BOTH),
    "settle": ("precopy", STUCK),
    "run-asks": ("postcopy", BOTH),
    "settled": ("postcopy", BOTH),
    "pause": ("postcopy", STUCK),
    "bitmap": ("postcopy", STUCK),
    "quiet": ("preempt", "a page arrived twice"),
    "whole": ("preempt", STUCK),
    "witness": ("postcopy", STUCK),
}
"""What each guard is there for: the kind of migration that breaks without it, and how."""


@cache
def everything(kind):
    return explore(protocol(kind))


def protocol(kind, pages=1, without=()):
    sort = "postcopy" if kind == "preempt" else kind
    return Protocol(sort, pages, preempt=kind == "preempt", without=frozenset(without))


@pytest.mark.parametrize("kind", ["one-way", "precopy", "postcopy", "preempt"])
def test_everything_that_can_happen(kind):
    found = everything(kind)
    assert len(found.reached) > 100
    assert {"runs here", "runs there", "stopped on both sides: ownership unknown"} <= found.ends.keys()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "pages"), [("postcopy", 2), ("preempt", 2), ("preempt", 3)])
@pytest.mark.timeout(1200)
def test_more_pages(kind, pages):
    found = explore(protocol(kind, pages))
    print(f"{kind}, {pages} pages: {len(found.reached)} states, {found.steps} steps")
    assert found.ends.keys() == everything(kind).ends.keys()


def test_every_guard_is_tried():
    assert BREAKS.keys() == GUARDS.keys()


@pytest.mark.parametrize("guard", BREAKS)
def test_no_guard_is_there_for_nothing(guard):
    kind, how = BREAKS[guard]
    with pytest.raises(ViolationError) as caught:
        explore(protocol(kind, without={guard}))
    assert str(caught.value).startswith(how)


@pytest.mark.parametrize("kind", ["one-way", "precopy", "postcopy", "preempt"])
def test_every_state_has_its_place_in_the_code(kind):
    found = everything(kind)
    assert {state.source for state in found.reached} <= SOURCE.keys()
    assert {state.destination for state in found.reached} <= DESTINATION.keys()


def test_the_places_are_there():
    places = [place[1:] for place in (*SOURCE.values(), *DESTINATION.values()) if place[1]]
    for path, words in {*places, *GUARD.values()}:
        folder = CORE / path.removesuffix(".rs")  # a part of it may have a file of its own
        text = "".join(one.read_text() for one in (CORE / path, *folder.glob("*.rs")))
        assert words in text, f"{path} has no {words!r} any more: bring the model and the code together again"
    assert GUARD.keys() == GUARDS.keys()
    assert OWNER.keys() == set(OWNERS)
