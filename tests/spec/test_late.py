"""Updates that come after their round has closed: dropped, or credited exactly once."""

import numpy as np
import pytest

from fleetfold import Trained, Work, layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.fold.tensors import Tensors, read
from fleetfold.messages import Task
from fleetfold.round.run import RunState
from tests.world import Walk, World

SETTINGS = {"rounds": 5, "deadline": 10.0, "target": 3, "quorum": 2}


def with_a_slow_device(at: int | None = None, **settings: object) -> World:
    """d3 answers each of its tasks one round late; everything dies at step `at` and starts again."""
    world = World(**{**SETTINGS, **settings})  # type: ignore[arg-type]
    if drive(world, Faults(at, simulated_death)):
        drive(world, Faults(None, simulated_death))
    return world


def drive(world: World, faults: Faults) -> bool:
    """→ whether everything died on the way."""
    from fleetfold.adapters.faults import Died

    try:
        coordinator = world.coordinator(faults)
        agents = {d.name: world.agent(d, faults) for d in world.devices}
        link = world.bus.link(list(agents))
        for name, agent in agents.items():
            if name != "d3":
                agent.resume()
        coordinator.resume()
        held: list[Task] = []
        while (wake := coordinator.step()) != float("inf"):
            tasks = list(link.tasks())
            late, held = held, [t for t in tasks if t.device == "d3"]
            for task in [t for t in tasks if t.device != "d3"] + late:
                agents[task.device].handle(task)
            if not tasks and not world.bus.letters():
                world.now = max(world.now, wake)
    except Died:
        return True
    return False


def states(world: World) -> dict[int, str]:
    found = {n: world.ledger.arrival(layout.round("r", n, "train"), "d3") for n in range(1, 6)}
    return {n: f[0].state for n, f in found.items() if f is not None}


def test_a_late_update_is_dropped_by_default_and_its_record_says_so() -> None:
    world = with_a_slow_device()
    assert world.run().state is RunState.DONE
    assert set(states(world).values()) == {"late"}
    assert all(not r.credits for r in world.ledger.rounds("r"))


def test_a_late_update_is_credited_to_a_later_round_with_a_staleness_weight() -> None:
    dropped, credited = with_a_slow_device(), with_a_slow_device(late="credit")
    rounds = world_rounds(credited)
    assert any(r.credits for r in rounds)
    assert read(credited.model())[0]["w"].tobytes() != read(dropped.model())[0]["w"].tobytes()
    keys = [key for r in rounds for key in r.credits]
    assert len(keys) == len(set(keys)), "never by two rounds"
    unweighted = with_a_slow_device(late="credit", staleness=0.0)
    assert read(unweighted.model())[0]["w"].tobytes() != read(credited.model())[0]["w"].tobytes()


def world_rounds(world: World):  # type: ignore[no-untyped-def]
    return world.ledger.rounds("r")


@pytest.mark.parametrize("at", range(1, 360, 5))
def test_a_credit_is_given_exactly_once_wherever_everything_dies(at: int) -> None:
    world = with_a_slow_device(at, late="credit")
    assert world.run().state is RunState.DONE
    keys = [key for r in world_rounds(world) for key in r.credits]
    assert len(keys) == len(set(keys))
    for r in world_rounds(world):
        for key in r.credits:
            found = world.ledger.arrival(key.partition("/updates/")[0], layout.device_of(key))
            assert found is not None
            assert (found[0].state, found[0].credited_to) == ("credited", r.number)


def left(**settings: object) -> set[str]:
    """Rounds whose updates are still there after five."""
    world = World(rounds=5, **settings)  # type: ignore[arg-type]
    world.live()
    return {key.split("/")[3] for key in world.objects.list("runs/r/rounds/") if "/updates/" in key}


def test_updates_are_let_go_when_later_rounds_have_ended_and_no_credit_reaches_back() -> None:
    assert left() == {"000004", "000005"}
    assert left(keep=1, evaluate="cohort") == {"000005", "000005-evaluate"}
    assert len(left(keep=0)) == 5
    assert len(left(late="credit")) == 5


def test_a_late_update_that_turns_out_unfit_is_refused_for_good() -> None:
    class Late(Walk):
        def train(self, model: Tensors, work: Work) -> Trained:
            honest = super().train(model, work)
            if work.device.name != "d3" or work.round != 1:
                return honest
            return Trained(
                tensors={**honest.tensors, "w": honest.tensors["w"] * np.float32(np.nan)}, examples=9
            )

    world = with_a_slow_device(late="credit", trainer=Late())
    assert world.run().state is RunState.DONE
    assert states(world)[1] == "refused"
    where = layout.round("r", 1, "train")
    assert all(layout.update(where, "d3") not in r.credits for r in world_rounds(world))
    notes = [key for key in world.objects.list("runs/r/rounds/") if "/quarantine/" in key]
    assert len(notes) == 1, "by one round, not by each that follows"
