"""Models sent as the difference to one that a device keeps: who is offered which, and what is tidied."""

import pytest

from fleetfold import layout
from fleetfold.fold import difference
from fleetfold.messages import Presence, Task
from fleetfold.ports import fetch
from fleetfold.round.fleet import heard
from tests.world import World


class Watched(World):
    """Notes every task as it is handed over."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.tasks: list[Task] = []

    def pass_time(self, agents, tasks, wake):  # type: ignore[no-untyped-def]
        self.tasks += tasks
        for task in tasks:
            if task.difference:
                old = next(
                    data
                    for version in range(task.round)
                    if digest(data := fetch(self.objects, layout.model("r", version))) == task.known
                )
                made = b"".join(difference.decode(old, fetch(self.objects, task.difference)))
                assert digest(made) == task.digest
        super().pass_time(agents, tasks, wake)


def digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def large() -> dict[str, object]:
    from tests.world import Walk

    return {"trainer": Walk((5000,)), "devices": 3, "rounds": 6, "send": "difference"}


def test_who_contributed_to_the_last_round_is_offered_the_difference(large: dict[str, object]) -> None:
    world = Watched(**large)
    world.live()
    offered = [bool(task.difference) for task in world.tasks if task.kind == "train"]
    assert offered == [False] * 6 + [True] * 12, "the first comes whole, and its file has another length"


def test_a_run_that_sends_differences_ends_with_the_same_model(large: dict[str, object]) -> None:
    one, other = Watched(**large), World(**{**large, "send": "whole"})  # type: ignore[arg-type]
    one.live()
    other.live()
    assert one.model() == other.model()


def test_differences_to_models_of_the_past_are_removed(large: dict[str, object]) -> None:
    world = Watched(**large)
    world.live()
    left = [key for key in world.objects.list("runs/r/models/") if key.endswith("difference")]
    assert left == [layout.difference("r", 4, 5)]


def test_a_device_that_says_what_it_keeps_is_believed_and_one_that_says_nonsense_is_not(
    large: dict[str, object],
) -> None:
    world = Watched(**large)
    world.live(at=60)  # it dies in a middle round; the registry is told then
    fleet = world.ledger.fleet()
    version = max(world.run().version, 1)
    kept = digest(fetch(world.objects, layout.model("r", version)))
    says = [Presence(device=d.name, model=kept if d.name == "d0" else "f" * 64) for d in fleet]
    world.ledger.save_devices([heard(d, p, 1.0) for d, p in zip(fleet, says, strict=True)])
    world.live()
    assert world.run().state == "done"
    known = {task.device for task in world.tasks if task.known == kept}
    assert "d0" in known
    assert not any(task.known == "f" * 64 for task in world.tasks)
