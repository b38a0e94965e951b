"""A round whose fold withstands some of its updates being anything at all."""

import numpy as np
import pytest

from fleetfold import Trained, Work
from fleetfold.coordinator.policy import method
from fleetfold.fold.tensors import Tensors, read
from fleetfold.round.run import RunState
from fleetfold.settings import Settings
from tests.world import Walk, World


class Liars(Walk):
    """`d0` … send what they trained, turned round and a thousand times as far."""

    def __init__(self, liars: int, shape: tuple[int, ...] = (7,)) -> None:
        super().__init__(shape)
        self.liars = {f"d{i}" for i in range(liars)}

    def train(self, model: Tensors, work: Work) -> Trained:
        honest = super().train(model, work)
        if work.device.name not in self.liars:
            return honest
        w = model["w"] - np.float32(1000) * (honest.tensors["w"] - model["w"])
        return Trained(tensors={**honest.tensors, "w": w}, examples=10_000)


def far(fold: str, liars: int = 2) -> float:
    """How far the model has been carried by the end."""
    world = World(devices=9, trainer=Liars(liars), rounds=2, fold=fold, byzantine=2)
    world.live()
    assert world.run().state is RunState.DONE
    return float(np.abs(read(world.model())[0]["w"]).max())


@pytest.mark.parametrize("fold", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_two_liars_of_nine_carry_off_the_mean_and_none_of_these(fold: str) -> None:
    assert far("mean") > 100
    assert far(fold) < 10


@pytest.mark.parametrize("fold", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_a_robust_round_dies_anywhere_and_the_model_is_the_same_to_the_byte(fold: str) -> None:
    settings = {"devices": 5, "rounds": 2, "fold": fold, "byzantine": 1}
    whole = World(**settings, trainer=Liars(1, (300,)))  # type: ignore[arg-type]
    steps = whole.live()
    for at in range(1, steps + 1, 17):
        world = World(**settings, trainer=Liars(1, (300,)))  # type: ignore[arg-type]
        world.live(at=at)
        world.live()
        assert world.model() == whole.model()


def test_what_is_withstood_is_a_count_or_a_share_and_never_half() -> None:
    assert method(Settings(fold="krum", byzantine=0.2), None, 10).byzantine == 2
    assert method(Settings(fold="krum", byzantine=3), None, 10).byzantine == 3
    assert method(Settings(fold="krum", byzantine=0.9), None, 10).byzantine == 4
    block = np.arange(10, dtype=np.float32).reshape(10, 1)
    for n in range(1, 11):
        chunk = method(Settings(fold="trimmed_mean", byzantine=0.49), None, n).chunk
        assert chunk is not None
        assert chunk(block[:n], np.full(n, 1 / n))[0] == pytest.approx((n - 1) / 2)
