"""Devices of one process, whose journals and reports are written together: nothing is lost that counted."""

import itertools
from pathlib import Path

import pytest

from fleetfold.adapters.faults import Died, Faults, simulated_death
from fleetfold.adapters.group_commit import GroupCommit
from fleetfold.adapters.sqlite import SqliteBus, SqliteLink, SqliteRecords
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.agent.trainer import Device
from fleetfold.messages import Task
from fleetfold.ports import Objects
from tests.world import Walk, World, never

DEVICES = ("d0", "d1", "d2")


class Process:
    """One life of the process that has the three devices."""

    def __init__(self, folder: Path, objects: Objects, trainer: Walk, faults: Faults) -> None:
        records = faults.wrap(SqliteRecords(folder / "devices.db"))
        link = faults.wrap(SqliteLink(folder / "bus.db", DEVICES))
        self.together = GroupCommit(records, link)
        self.agents = {
            name: Agent(
                Device(name=name, index=k, count=3), trainer,
                Journal(self.together, name, "life", self.together.put_soon),
                faults.wrap(ObjectTransfer(objects)), self.together, lambda: 0.0,
            )
            for k, name in enumerate(DEVICES)
        }  # fmt: skip

    def live(self, tasks: list[Task]) -> None:
        for agent in self.agents.values():
            agent.resume()
        for task in tasks:
            self.agents[task.device].handle(task)
        self.together.flush()


@pytest.fixture
def tasks() -> tuple[World, list[Task]]:
    world = World(trainer=Walk(), rounds=1)
    world.coordinator(never()).step()
    return world, list(world.bus.link(DEVICES).tasks())


def test_a_process_that_dies_at_any_write_reports_for_each_device_and_trains_nothing_twice_that_arrived(
    tasks: tuple[World, list[Task]], tmp_path: Path
) -> None:
    world, given = tasks
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        trainer = Walk()
        faults = Faults(at, simulated_death)
        try:
            Process(folder, world.objects, trainer, faults).live(given)
            died = False
        except Died:
            died = True
        arrived = {task.device for task in given if world.objects.size(task.update) is not None}
        before = len(trainer.trained)
        Process(folder, world.objects, trainer, never()).live(given)
        told = [letter.report for letter in SqliteBus(folder / "bus.db").letters()]
        assert {(r.device, r.state) for r in told} == {(name, "delivered") for name in DEVICES}
        assert not arrived & {name for name, _ in trainer.trained[before:]}
        for task in given:
            world.objects.delete(task.update)
        if not died:
            assert at > 14  # three promises, three updates, one commit of what is settled and one of reports
            return


def test_what_is_settled_goes_with_the_next_promise(tmp_path: Path) -> None:
    records = SqliteRecords(tmp_path / "devices.db")
    together = GroupCommit(records, SqliteLink(tmp_path / "bus.db", DEVICES))
    together.put_soon([("journal/d0/run:train", b"settled")])
    assert records.get("journal/d0/run:train") is None
    found = together.get("journal/d0/run:train")
    assert found is not None
    assert found.value == b"settled"
    together.put_many([("journal/d1/run:train", b"promised")])
    written = records.get("journal/d0/run:train")
    assert written is not None
    assert written.value == b"settled"


def test_a_flush_says_whether_anything_was_reported(tmp_path: Path) -> None:
    together = GroupCommit(SqliteRecords(tmp_path / "devices.db"), SqliteLink(tmp_path / "bus.db", DEVICES))
    together.put_soon([("journal/d0/run:train", b"settled")])
    assert not together.flush()
