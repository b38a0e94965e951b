"""Rounds on a simulated platform: what comes of the functions, whatever the platform does to them."""

import random
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfold.round.run import RunState
from tests.aws.platform import FUNCTIONS, Platform
from tests.world import World

FIVE: dict[str, Any] = {"rounds": 5, "evaluate": "cohort", "evaluate_every": 2, "lease": 5.0}


TWO: dict[str, Any] = {"rounds": 2, "evaluate": "cohort", "evaluate_every": 2, "lease": 5.0}
"""Enough for every write that there is."""


@cache
def local(**settings: object) -> bytes:
    """The model of the same run on one machine."""
    world = World(**settings)  # type: ignore[arg-type]
    world.live()
    assert world.run().state is RunState.DONE
    return world.model()


def lived(platform: Platform, **input: int) -> Platform:
    execution = platform.start(**input)
    platform.live()
    assert execution.ended == "SUCCEEDED", execution.ended
    return platform


def as_if_nothing_had_been(platform: Platform, settings: dict[str, Any]) -> None:
    """The model is that of one machine, every round counted everybody, and no finished update was trained
    again."""
    rounds = settings["rounds"]
    assert platform.run().state is RunState.DONE, platform.run().reason
    assert platform.model() == local(**settings)
    assert all(len(round.arrived) == 4 for round in platform.ledger.rounds("r"))
    assert max(Counter(platform.trained()).values()) == 1
    assert len({(row.round, row.kind) for row in platform.rows}) == len(platform.rows)
    known = [(d.chosen, d.arrived, d.failures) for d in platform.ledger.fleet()]
    assert known == [(rounds, rounds, 0)] * 4, "each round is counted once"


@pytest.mark.parametrize("cut", [True, False])
def test_five_rounds_end_with_the_model_of_the_same_run_on_one_machine(cut: bool) -> None:
    platform = lived(Platform(cut=cut, **FIVE))
    as_if_nothing_had_been(platform, FIVE)
    assert len(platform.rows) == 7
    assert (platform.calls["fold_shard"] > 0) is cut
    assert platform.troubles == []
    assert platform.now == 1_000.0, "nobody waited for anything"


FULL = pytest.param(FIVE, 1, marks=pytest.mark.fleet, id="five")
"""The settings, and that a function dies at each write; of two devices it is at every third."""


def writes(name: str, settings: dict[str, Any]) -> int:
    platform = Platform(**settings)
    platform.victim = name
    return lived(platform).steps[name]


@pytest.mark.parametrize(("settings", "every"), [pytest.param(TWO, 3, id="two"), FULL])
@pytest.mark.parametrize("meets", [False, True], ids=["dies", "meets itself"])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "tick"])
def test_whatever_happens_to_a_function_at_each_of_its_writes_the_run_goes_on_as_if_nothing_had_been(
    name: str, meets: bool, settings: dict[str, Any], every: int
) -> None:
    steps = writes(name, settings)
    assert steps > 5
    for at in range(1, steps + 1, every):
        platform = Platform(**settings)
        platform.victim, platform.at, platform.meets = name, at, meets
        as_if_nothing_had_been(lived(platform), settings)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_always_called_twice_does_everything_once(name: str) -> None:
    platform = Platform(**FIVE)
    platform.doubled = name
    as_if_nothing_had_been(lived(platform), FIVE)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 32), victim=st.sampled_from(FUNCTIONS), at=st.integers(0, 120),
    meets=st.booleans(),
)  # fmt: skip
def test_in_any_order_however_often_and_whoever_dies_the_model_is_the_same(
    seed: int, victim: str, at: int, meets: bool
) -> None:
    platform = Platform(chance=random.Random(seed), **TWO)
    platform.victim, platform.at, platform.meets = victim, at, meets
    as_if_nothing_had_been(lived(platform), TWO)
