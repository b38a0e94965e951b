"""The long-lived coordinator beside the functions, on the simulated platform."""

from typing import Any

import pytest

from fleetfold.adapters.faults import Died, Faults, simulated_death
from fleetfold.aws.coordinator import drive
from fleetfold.errors import BadConfig
from fleetfold.round.run import RunState
from tests.aws.platform import Platform
from tests.aws.test_rounds import FIVE, TWO, as_if_nothing_had_been, lived


def driven(platform: Platform, faults: Faults | None = None) -> Any:
    def sleep(seconds: float) -> None:
        if not platform._happens():
            platform.now += seconds

    return drive(platform.cloud(faults or Faults(None, simulated_death)), "r", sleep)


@pytest.mark.parametrize("cut", [True, False])
def test_it_drives_a_run_to_the_model_of_the_same_run_on_one_machine(cut: bool) -> None:
    platform = Platform(cut=cut, **FIVE)
    standing = driven(platform)
    assert standing.phase == "ended"
    as_if_nothing_had_been(platform, FIVE)


def test_wherever_it_dies_the_workflow_goes_on_without_it() -> None:
    counted = Platform(**TWO)
    faults = Faults(None, simulated_death)
    driven(counted, faults)
    for at in range(1, faults.steps + 1, 7):
        platform = Platform(**TWO)
        with pytest.raises(Died):
            driven(platform, Faults(at, simulated_death))
        as_if_nothing_had_been(lived(platform), TWO)


def test_a_run_that_is_not_there_is_told() -> None:
    platform = Platform(**TWO)
    with pytest.raises(BadConfig, match="no run"):
        drive(platform.cloud(Faults(None, simulated_death)), "another")


class TestSomeRoundsOnly:
    """What a schedule starts: the same machine, for one round."""

    def test_one_round_is_trained_and_its_model_evaluated(self) -> None:
        settings = {**FIVE, "evaluate_every": 1}
        platform = lived(Platform(**settings), rounds=1)
        assert [(row.round, row.kind) for row in platform.rows] == [(1, "train"), (1, "evaluate")]
        assert platform.run().state is RunState.RUNNING

    def test_each_time_one_more_until_the_run_has_had_all(self) -> None:
        platform = Platform(**FIVE)
        for number in range(5):
            execution = platform.start(f"night-{number}", rounds=1)
            platform.live()
            assert execution.ended == "SUCCEEDED"
        as_if_nothing_had_been(platform, FIVE)
