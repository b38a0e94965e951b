"""A run goes on from a round that has ended once, whoever else goes on from it at the same time."""

import pytest

from fleetfold.round.run import Run, RunState, advance
from fleetfold.round.state import Phase, Policy, Round
from fleetfold.settings import Settings


@pytest.mark.parametrize(
    ("phase", "ending", "version"), [(Phase.DONE, RunState.DONE, 3), (Phase.FAILED, RunState.FAILED, 2)]
)
def test_after_its_last_round_a_run_does_not_pass_it_twice(
    phase: Phase, ending: RunState, version: int
) -> None:
    run = Run(name="r", app="a", settings=Settings(rounds=3, patience=1), started_at=0.0, round=3, version=2)
    policy = Policy(target=1, quorum=1, deadline=60.0)
    round = Round(run="r", number=3, base=2, cohort="c", invited=1, policy=policy, opened_at=0.0, phase=phase)
    ended = advance(run, round, 1.0, lambda took: 0.0)
    assert (ended.state, ended.version) == (ending, version)
    assert advance(ended, round, 2.0, lambda took: 0.0) == ended, "who comes late finds it done"
