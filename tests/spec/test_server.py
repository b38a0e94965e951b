"""A server optimizer between the updates' mean and the next model, its state beside the model."""

import numpy as np
import pytest

from fleetfold import layout
from fleetfold.coordinator.policy import optimizer
from fleetfold.fold import fold as module
from fleetfold.fold.server_opt import OPTIMIZERS, first_state, step
from fleetfold.fold.tensors import Tensors, read
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.settings import Settings
from tests.world import Walk, World

WORDS = sorted(OPTIMIZERS)


class Mixed(Walk):
    """A model of several dtypes, of which integers lie between the floats."""

    def init(self, seed: int) -> Tensors:
        chance = np.random.default_rng(seed)
        return {
            "w": chance.normal(size=self.shape).astype(np.float32),
            "steps": np.array(0, np.int64),
            "none": np.zeros((0, 3), np.float32),
            "half": chance.normal(size=5).astype(np.float16),
        }

    def train(self, model, work):  # type: ignore[no-untyped-def]
        trained = super().train(model, work)
        half = (model["half"] * np.float16(0.5)).astype(np.float16)
        return type(trained)(tensors={**trained.tensors, "half": half}, examples=trained.examples)


def ran(rounds: int, **settings: object) -> World:
    world = World(trainer=Mixed(), rounds=rounds, **settings)  # type: ignore[arg-type]
    world.live()
    assert world.run().state is RunState.DONE
    return world


def model(world: World, version: int) -> Tensors:
    return read(fetch(world.objects, layout.model("r", version)))[0]


@pytest.mark.parametrize("word", WORDS)
def test_the_first_model_is_one_step_from_the_mean(word: str) -> None:
    plain, stepped = ran(1), ran(1, server=word)
    kind = optimizer(Settings(server=word))
    for name in ("w", "half"):
        before, mean = model(plain, 0)[name], model(plain, 1)[name]
        expected, _ = step(kind, before, mean, first_state(kind, before), 1)
        assert model(stepped, 1)[name].tobytes() == expected.tobytes()
    assert model(stepped, 1)["steps"] == 1, "integers are not optimized"


@pytest.mark.parametrize("word", WORDS)
def test_the_second_step_remembers_the_first(word: str) -> None:
    whole = ran(2, server=word)
    kind = optimizer(Settings(server=word))
    state = read(fetch(whole.objects, layout.state("r", 2)))[0]
    assert {name.split("/")[0] for name in state} == set(kind.state)
    forgetful = World(trainer=Mixed(), rounds=2, server=word)
    second = forgetful.live() // 2
    for at in range(second, 2 * second):  # somewhere in the second round, lose the state of the first
        world = World(trainer=Mixed(), rounds=2, server=word)
        world.live(at=at)
        if world.run().version == 1 and world.objects.size(layout.model("r", 2)) is None:
            world.objects.delete(layout.state("r", 1))
            world.live()
            assert world.model() != whole.model()
            return
    raise AssertionError("never between the two steps")


def test_the_states_of_the_last_two_versions_are_kept() -> None:
    objects = ran(4, server="adam").objects
    kept = [version for version in range(6) if objects.size(layout.state("r", version)) is not None]
    assert kept == [3, 4]


@pytest.mark.parametrize("word", WORDS)
def test_it_dies_anywhere_and_model_and_state_are_the_same_to_the_byte(word: str) -> None:
    whole = ran(3, server=word)
    steps = World(trainer=Mixed(), rounds=3, server=word).live()
    for at in range(1, steps + 1, 11):
        world = World(trainer=Mixed(), rounds=3, server=word)
        world.live(at=at)
        world.live()
        assert world.model() == whole.model()
        assert fetch(world.objects, layout.state("r", 3)) == fetch(whole.objects, layout.state("r", 3))


@pytest.mark.parametrize("word", WORDS)
def test_the_size_of_the_chunks_changes_no_byte_of_a_step(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ran(2, server=word)
    monkeypatch.setattr(module, "CHUNK", 2)
    assert ran(2, server=word).model() == whole.model()


def test_what_is_told_of_an_optimizer_is_given_to_it() -> None:
    told = optimizer(Settings(server="adam", server_rate=0.5, server_tau=0.01))
    assert (told.rate, told.tau) == (0.5, 0.01)  # type: ignore[union-attr]
    assert optimizer(Settings(server="momentum", server_tau=0.01)).rate == 1.0
