"""A run is paused, stopped and resumed by a record, which whoever drives it obeys."""

import pytest

from fleetfold import Trained, Work
from fleetfold.coordinator.opening import extend, wish
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import Tensors
from fleetfold.ledger import Ledger
from fleetfold.round.run import RunState, Wish
from fleetfold.round.state import Phase
from tests.world import Walk, World


class Wishing(Walk):
    """Somebody asks something of the run while device d0 trains in round 2."""

    def __init__(self, what: Wish) -> None:
        super().__init__()
        self.what, self.ledger = what, None

    def train(self, model: Tensors, work: Work) -> Trained:
        if (work.device.name, work.round) == ("d0", 2) and self.ledger is not None:
            wish(self.ledger, "r", self.what)
        return super().train(model, work)


def wishing(what: Wish, **settings: object) -> World:
    trainer = Wishing(what)
    world = World(trainer=trainer, **settings)
    trainer.ledger = world.ledger  # type: ignore[assignment]
    return world


def phases(ledger: Ledger) -> list[Phase]:
    return [round.phase for round in ledger.rounds("r")]


def test_a_paused_run_ends_its_round_and_opens_no_other_until_it_is_resumed() -> None:
    world = wishing("pause", rounds=4)
    world.live()
    run = world.run()
    assert (run.state, run.round, run.reason) == (RunState.PAUSED, 3, "paused before round 3")
    assert phases(world.ledger) == [Phase.DONE] * 2
    extend(world.ledger, "r", None)
    world.live()
    assert (world.run().state, phases(world.ledger)) == (RunState.DONE, [Phase.DONE] * 4)


def test_a_stopped_run_gives_up_its_open_round_and_goes_on_with_the_next() -> None:
    world = wishing("stop", rounds=4, silent=1, quorum=4, deadline=50.0)
    world.live()
    run, round = world.run(), world.ledger.rounds("r")[-1]
    assert (run.state, run.round, run.version) == (RunState.STOPPED, 3, 1)
    assert (round.phase, "the run was stopped" in round.reason) == (Phase.FAILED, True)
    extend(world.ledger, "r", None)
    world.live()
    assert phases(world.ledger) == [Phase.DONE, Phase.FAILED, Phase.DONE, Phase.DONE]
    assert (world.run().state, world.run().failed) == (RunState.DONE, 0)


def test_a_stop_in_the_last_round_leaves_one_to_be_done() -> None:
    world = wishing("stop", rounds=2, silent=1, quorum=4, patience=1)
    world.live()
    assert world.run().state is RunState.STOPPED, "it is nobody's failure"
    extend(world.ledger, "r", None)
    world.live()
    assert (world.run().state, world.run().round) == (RunState.DONE, 3)


def test_a_stopped_round_teaches_nothing_of_its_devices() -> None:
    world = wishing("stop", rounds=4, silent=1, quorum=4)
    world.live()
    stopped = {device.name: (device.chosen, device.failures) for device in world.ledger.fleet()}
    assert stopped == {"d0": (1, 0), "d1": (1, 0), "d2": (1, 0), "d3": (1, 0), "d4": (1, 1)}


def test_whoever_dies_while_it_stops_leaves_it_to_the_next() -> None:
    steps = wishing("stop", rounds=3, silent=1, quorum=4).live()
    for at in range(steps):
        world = wishing("stop", rounds=3, silent=1, quorum=4)
        world.live(at)
        world.live()
        assert world.run().state is RunState.STOPPED, f"killed at step {at}"


def test_a_wish_that_is_taken_back_in_time_changes_nothing() -> None:
    world = World(rounds=2)
    wish(world.ledger, "r", "stop")
    wish(world.ledger, "r", "")
    world.live()
    assert (world.run().state, phases(world.ledger)) == (RunState.DONE, [Phase.DONE] * 2)


def test_resuming_a_run_that_has_not_obeyed_yet_takes_the_wish_back() -> None:
    world = World(rounds=2)
    wish(world.ledger, "r", "pause")
    extend(world.ledger, "r", None)
    world.live()
    assert world.run().state is RunState.DONE


def test_nothing_is_wished_of_a_run_that_has_ended_or_that_is_not_there() -> None:
    world = World(rounds=1)
    world.live()
    assert wish(world.ledger, "r", "stop").wish == ""
    with pytest.raises(BadConfig, match="there is no run q"):
        wish(world.ledger, "q", "stop")
