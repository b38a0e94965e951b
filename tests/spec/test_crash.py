"""A run may die at any write, before it or after it, and goes on as if nothing had been."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfold.errors import Unavailable
from fleetfold.round.run import RunState
from tests.world import Walk, World

SETTINGS = {"rounds": 3, "evaluate": "cohort", "lease": 5.0}


def undisturbed(**more: object) -> World:
    world = World(**SETTINGS, **more)  # type: ignore[arg-type]
    world.live()
    assert world.run().state is RunState.DONE
    return world


STEPS = World(**SETTINGS).live()  # type: ignore[arg-type]


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_everything_dies_at_this_step_and_the_model_is_the_same_to_the_byte(at: int) -> None:
    world = World(**SETTINGS)  # type: ignore[arg-type]
    world.live(at=at)
    world.live()
    assert world.run().state is RunState.DONE
    assert world.model() == undisturbed().model()
    assert {d.arrived for d in world.ledger.fleet()} == {SETTINGS["rounds"]}, (
        "each device counted once a round"
    )


@pytest.mark.parametrize("at", range(1, STEPS + 1, 7))
def test_it_dies_again_at_every_step_of_the_life_after(at: int) -> None:
    expected = undisturbed().model()
    again = 1
    while True:
        world = World(**SETTINGS)  # type: ignore[arg-type]
        world.live(at=at)
        died = world.live(at=again) == again
        world.live()
        assert world.model() == expected
        if not died:
            break
        again += 13


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_a_finished_update_is_never_trained_again(at: int) -> None:
    world = World(**SETTINGS)  # type: ignore[arg-type]
    world.live(at=at)
    finished = {key for key in world.objects.list("runs/r/rounds/") if "/updates/" in key}
    before = len(world.trainer.trained)  # type: ignore[attr-defined]
    world.live()
    walk = world.trainer
    assert isinstance(walk, Walk)
    for device, round in walk.trained[before:]:
        assert f"runs/r/rounds/{round:06}/updates/{device}.safetensors" not in finished


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(0, 2**32))
@settings(max_examples=60)
def test_deaths_duplicates_delays_and_reordering_together_change_nothing(lives: list[int], seed: int) -> None:
    world = World(**SETTINGS)  # type: ignore[arg-type]
    for at in lives:
        world.live(at=at, unruly=random.Random(seed))
    world.live(unruly=random.Random(seed))
    assert world.run().state is RunState.DONE
    assert world.model() == undisturbed().model()
    counts = {d.name: d.arrived for d in world.ledger.fleet()}
    assert counts == dict.fromkeys(counts, SETTINGS["rounds"]), "each device counted once a round"


def full() -> None:
    raise Unavailable("no space left on the disk")


@pytest.mark.parametrize("at", range(1, STEPS + 1, 3))
def test_a_disk_that_is_full_at_this_step_stops_the_run_and_nothing_is_lost(at: int) -> None:
    world = World(**SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        world.live(at=at, die=full)
    world.live()
    assert world.model() == undisturbed().model()


def test_a_round_that_failed_is_counted_once_against_its_devices_wherever_everything_dies() -> None:
    settings = {"devices": 1, "silent": 3, "rounds": 2, "deadline": 9.0, "patience": 9}
    steps = World(**settings).live()  # type: ignore[arg-type]
    for at in range(1, steps + 1):
        world = World(**settings)  # type: ignore[arg-type]
        world.live(at=at)
        world.live()
        assert [(d.chosen, d.failures) for d in world.ledger.fleet()] == [(2, 0), (2, 2), (2, 2), (2, 2)]
