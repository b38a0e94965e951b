"""The agent on a device: what it promises, what it does once, what it gives up."""

import pytest

from fleetfold import Trained, Work
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.errors import BadUpdate
from fleetfold.fold.tensors import Tensors
from fleetfold.messages import Report, Task
from fleetfold.ports import Objects, pause
from tests.world import Walk, World, never


class Dies(Walk):
    """Training takes the whole process with it, as often as it is told to."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def train(self, model: Tensors, work: Work) -> Trained:
        if self.times and work.device.name == "d0":
            self.times -= 1
            raise KeyboardInterrupt
        return super().train(model, work)


def invited(trainer: Walk) -> tuple[World, Task]:
    world = World(trainer=trainer, rounds=1)
    world.coordinator(never()).step()
    return world, world.bus.link(["d0"]).tasks()[0]


def agent(world: World) -> Agent:
    return world.agent(world.devices[0], never())


def reports(world: World) -> list[Report]:
    return [letter.report for letter in world.bus.letters()]


def test_a_task_is_done_once_and_told_as_often_as_it_is_asked() -> None:
    world, task = invited(Walk())
    for _ in range(3):
        agent(world).handle(task)
    agent(world).resume()
    assert [r.state for r in reports(world)] == ["delivered"] * 4
    assert world.trainer.trained == [("d0", 1)]  # type: ignore[attr-defined]


def test_a_task_that_kills_its_process_again_and_again_is_given_up_with_the_reason() -> None:
    world, task = invited(Dies(times=99))
    with pytest.raises(KeyboardInterrupt):
        agent(world).handle(task)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            agent(world).resume()
    agent(world).resume()
    assert [(r.state, r.reason) for r in reports(world)] == [
        ("failed", "the process died 3 times at this task")
    ]


def test_what_killed_everything_at_once_is_not_held_against_the_task() -> None:
    world, task = invited(Dies(times=5))
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            agent(world).handle(task)
        world.lives += 1
    agent(world).resume()
    assert [r.state for r in reports(world)] == ["delivered"]


def test_a_task_of_a_round_that_was_left_behind_is_not_begun() -> None:
    world, task = invited(Walk())
    newer = Task(**{**{f: getattr(task, f) for f in task.__struct_fields__}, "round": 2, "update": "u2"})
    one = agent(world)
    one.handle(newer)
    one.handle(task)
    assert [r.round for r in reports(world)] == [2]


def test_a_model_that_is_not_the_one_of_the_task_is_not_trained() -> None:
    from fleetfold.errors import Unavailable

    world, task = invited(Walk())
    world.objects.put(task.model, [b"something else"])
    with pytest.raises(Unavailable, match="sha256"):
        agent(world).handle(task)
    assert reports(world) == []


def test_a_message_of_another_version_or_for_another_device_is_ignored() -> None:
    world, task = invited(Walk())
    fields = {f: getattr(task, f) for f in task.__struct_fields__}
    agent(world).handle(Task(**{**fields, "v": 99}))
    agent(world).handle(Task(**{**fields, "device": "d1"}))
    assert reports(world) == []


class Over(ObjectTransfer):
    """A hub that wants no update of that round any more, `at` the step at which it says so."""

    def __init__(self, objects: Objects, at: str) -> None:
        super().__init__(objects)
        self.at = at

    def deliver(self, task: Task, update: bytes) -> None:
        if self.at == "deliver":
            raise BadUpdate("round 1 is over")
        super().deliver(task, update)

    def delivered(self, task: Task) -> bool:
        if self.at == "delivered":
            raise BadUpdate("round 1 is over")
        return super().delivered(task)


@pytest.mark.parametrize("at", ["deliver", "delivered"])
def test_a_round_that_is_over_before_its_update_is_delivered_is_answered_with_the_reason(at: str) -> None:
    world, task = invited(Walk())
    journal = Journal(world.journals, "d0", "life")
    link = world.bus.link(["d0"])
    for _ in range(2):
        Agent(world.devices[0], Walk(), journal, Over(world.objects, at), link, lambda: 0.0).handle(task)
    assert [(r.state, r.reason) for r in reports(world)] == [("refused", "round 1 is over")] * 2


def test_pauses_double_up_to_the_longest_and_are_spread_by_chance() -> None:
    assert [pause(n, 0.5, 30.0, 1.0) for n in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pause(3, 0.5, 30.0, 0.25) == 1.0
    assert pause(10_000, 0.5, 30.0, 1.0) == 30.0
