"""A bus that loses its memory, tasks that are taken back, and rounds that wait for devices to be there."""

import pytest

from fleetfold import layout
from fleetfold.adapters.memory import MemoryBus
from fleetfold.messages import Presence, Task
from fleetfold.round.fleet import heard
from fleetfold.round.run import RunState
from tests.world import World, never


def invited(world: World) -> set[str]:
    """Devices that have a task at the bus."""
    return {device.name for device in world.ledger.fleet() if world.bus.newest(device.name)}


def handle(world: World, *devices: str, report: bool = True) -> None:
    for name in devices:
        newest = world.bus.newest(name)
        assert newest
        bus = world.bus
        if not report:
            world.bus = MemoryBus()  # what is said there nobody hears
        world.agent(next(d for d in world.devices if d.name == name), never()).handle(newest[1])
        world.bus = bus


def test_a_bus_that_lost_its_memory_is_told_again_of_those_who_have_not_answered() -> None:
    world = World(devices=3, rounds=1)
    coordinator = world.coordinator(never())
    coordinator.step()
    before: dict[str, Task] = {name: world.bus.newest(name)[1] for name in invited(world)}  # type: ignore[index]
    handle(world, "d0")
    coordinator.step()
    world.bus._tasks.clear()
    coordinator.repeat()
    assert invited(world) == {"d1", "d2"}
    assert world.bus.newest("d1")[1] == before["d1"], "the same task, and the same deadline"  # type: ignore[index]


def test_an_update_whose_report_the_bus_has_lost_is_found_and_counted_once() -> None:
    world, undisturbed = World(devices=2, rounds=1), World(devices=2, rounds=1)
    undisturbed.live()
    coordinator = world.coordinator(never())
    coordinator.step()
    handle(world, "d0", report=False)
    world.bus._tasks.clear()
    for _ in range(2):
        coordinator.repeat()
        assert invited(world) == {"d1"}
    handle(world, "d1")
    assert coordinator.step() == float("inf")
    (round,) = world.ledger.rounds("r")
    assert (len(round.arrived), world.run().state) == (2, RunState.DONE)
    assert world.model() == undisturbed.model()


def test_where_no_round_is_open_there_is_nothing_to_repeat() -> None:
    world = World(devices=2, rounds=1)
    world.coordinator(never()).repeat()
    assert world.ledger.rounds("r") == []
    world.live()
    world.bus._tasks.clear()
    world.coordinator(never()).repeat()
    assert invited(world) == set()


@pytest.mark.parametrize(("late", "taken_back"), [("drop", True), ("credit", False)])
def test_who_is_too_late_to_count_has_its_task_taken_back(late: str, taken_back: bool) -> None:
    world = World(devices=3, rounds=1, target=2, late=late)
    coordinator = world.coordinator(never())
    coordinator.step()
    handle(world, "d0", "d1")
    coordinator.step()
    assert world.run().state is RunState.DONE
    assert ("d2" in invited(world)) != taken_back
    assert {"d0", "d1"} <= invited(world), "who has answered has nothing to leave off"


def test_a_round_without_a_quorum_takes_its_tasks_back_too() -> None:
    world = World(devices=2, rounds=1, deadline=5.0, patience=1)
    coordinator = world.coordinator(never())
    coordinator.step()
    world.now += 6
    coordinator.step()
    assert world.run().state is RunState.FAILED
    assert invited(world) == set()


def say(world: World, device: str, **changes: object) -> None:
    said = Presence(device=device, **changes)  # type: ignore[arg-type]
    world.ledger.save_devices([heard(known, said, world.now) for known in world.ledger.devices([device])])


def test_a_round_is_opened_when_enough_devices_are_there_and_says_so_until_then() -> None:
    world = World(devices=3, rounds=1, available=2, cohort=1.0)
    for device in ("d0", "d1", "d2"):
        say(world, device, online=False)
    say(world, "d0")
    say(world, "d1", available=False, reason="not charging")
    coordinator = world.coordinator(never())
    for _ in range(2):
        assert coordinator.step() == world.now + 1.0, "it looks again"
    assert world.run().reason == "waiting to open round 1: 1 of 2 devices are there, 3 are known"
    assert world.ledger.rounds("r") == []
    say(world, "d1")
    coordinator.step()
    assert invited(world) == {"d0", "d1"}
    handle(world, "d0", "d1")
    coordinator.step()
    assert (world.run().state, world.run().reason) == (RunState.DONE, "1 rounds done")


def test_where_it_is_wished_who_is_off_is_invited_too() -> None:
    world = World(devices=2, rounds=1, offline=True)
    for device in ("d0", "d1"):
        say(world, device, online=False)
    world.coordinator(never()).step()
    assert invited(world) == {"d0", "d1"}


def test_nobody_of_whom_the_condition_is_true_is_starved_and_others_are_never_asked() -> None:
    world = World(devices=12, rounds=60, cohort=2, where="battery > 0.5", select="fastest", late="drop")
    for number, device in enumerate(world.devices):
        say(world, device.name, battery=0.9 if number % 2 else 0.1)
    world.live()
    chosen = {device.name: device.chosen for device in world.ledger.fleet()}
    assert all(chosen[f"d{n}"] == 0 for n in range(0, 12, 2))
    assert all(chosen[f"d{n}"] >= 2 for n in range(1, 12, 2)), "the slow and the unlucky have their turns"


def test_a_fleet_that_served_another_run_is_learned_from_and_nobody_is_starved() -> None:
    """A hub's devices have rounds of other runs behind them, with higher numbers."""
    world = World(devices=8, rounds=50, cohort=2, select="fastest", late="drop")
    veterans = [
        device.__class__(name=device.name, last_run="before", last_round=1000, chosen=7, turnaround=1.0)
        for device in world.ledger.fleet()
    ]
    world.ledger.save_devices(veterans)
    world.live()
    fleet = world.ledger.fleet()
    assert sum(device.chosen - 7 for device in fleet) == 100
    assert all(device.chosen > 7 for device in fleet)
    assert {device.last_run for device in fleet} == {"r"}


def test_an_evaluation_asks_nobody_who_has_a_task_that_still_counts() -> None:
    world = World(devices=4, rounds=4, cohort=2, evaluate="cohort", target=1)
    twice = list[tuple[str, str]]()
    open_for = dict[str, str]()

    class Watching(MemoryBus):
        def invite(self, tasks):  # type: ignore[no-untyped-def]
            for task in tasks:
                where = layout.round(task.run, task.round, task.kind)
                if task.device in open_for and open_for[task.device] != where:
                    twice.append((open_for[task.device], where))
                open_for[task.device] = where
            super().invite(tasks)

        def withdraw(self, devices):  # type: ignore[no-untyped-def]
            for device in devices:
                open_for.pop(device, None)
            super().withdraw(devices)

        def post(self, report):  # type: ignore[no-untyped-def]
            if open_for.get(report.device) == layout.round(report.run, report.round, report.kind):
                del open_for[report.device]
            super().post(report)

    world.bus = Watching()
    world.live()
    assert world.run().state is RunState.DONE
    assert twice == []
