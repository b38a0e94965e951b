"""A whole system in one process, whose stores outlive its deaths.

world = World(devices=4, rounds=3)
world.live()                 # from where the stores stand, to the end or to the next death
world.model()                # the newest model's bytes
"""

import random
from collections.abc import Callable, Sequence

import numpy as np

from fleetfold import Device, Evaluated, Trained, Work, layout
from fleetfold.adapters.faults import Died, Faults, Unruly, simulated_death
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords, NoAlarm
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.opening import open_run
from fleetfold.coordinator.policy import policies
from fleetfold.fold.tensors import Tensors, write
from fleetfold.ledger import Ledger
from fleetfold.messages import Kind, Task
from fleetfold.ports import Objects, fetch
from fleetfold.round.run import Run
from fleetfold.settings import Settings


def never() -> Faults:
    return Faults(None, simulated_death)


class Walk:
    """A trainer whose update depends on the device, the round's seed and the model: any mix-up shows."""

    def __init__(self, shape: tuple[int, ...] = (7,)) -> None:
        self.shape = shape
        self.trained: list[tuple[str, int]] = []

    def init(self, seed: int) -> Tensors:
        chance = np.random.default_rng(seed)
        return {
            "w": chance.normal(size=self.shape).astype(np.float32),
            "steps": np.array(0, np.int64),
            "none": np.zeros((0, 3), np.float32),
        }

    def train(self, model: Tensors, work: Work) -> Trained:
        self.trained.append((work.device.name, work.round))
        chance = np.random.default_rng(work.seed)
        tensors = {
            "w": (model["w"] * np.float32(0.9) + chance.normal(size=self.shape)).astype(np.float32),
            "steps": model["steps"] + 1,
            "none": model["none"],
        }
        return Trained(tensors=tensors, examples=1 + work.device.index, metrics={"loss": 1.0 / work.round})

    def evaluate(self, model: Tensors, work: Work) -> Evaluated:
        return Evaluated(examples=10, metrics={"accuracy": float(np.abs(model["w"]).mean())})


class Tampering(ObjectTransfer):
    """A device whose files are not what its agent wrote."""

    def __init__(self, objects: Objects, tamper: Callable[[str, bytes], bytes]) -> None:
        super().__init__(objects)
        self._tamper = tamper

    def deliver(self, task: Task, update: bytes) -> None:
        super().deliver(task, self._tamper(task.device, update))


class World:
    """`devices` answer, `silent` more never do. Time passes only when nobody has anything to do. `tamper`:
    (device, update file) → the file that is delivered instead."""

    def __init__(
        self, devices: int = 4, *, trainer: object = None, silent: int = 0,
        tamper: Callable[[str, bytes], bytes] | None = None, objects: Objects | None = None,
        **settings: object,
    ) -> None:  # fmt: skip
        self.tamper = tamper
        settings.setdefault("devices", devices + silent)
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.trainer = trainer or Walk()
        self.objects = objects or MemoryObjects()
        self.records, self.bus = MemoryRecords(), MemoryBus()
        self.journals = MemoryRecords()
        self.ledger = Ledger(self.records)
        self.now, self.lives = 1_000.0, 0
        names = [f"d{i}" for i in range(devices + silent)]
        self.devices = [Device(name=n, index=i, count=len(names)) for i, n in enumerate(names)][:devices]
        model = write(self.trainer.init(self.settings.seed))  # type: ignore[attr-defined]
        open_run("r", "app", self.settings, model, names, self.ledger, self.objects, self.now)

    def coordinator(
        self, faults: Faults, unruly: random.Random | None = None,
        ignored: Callable[[str], None] = lambda reason: None,
    ) -> Coordinator:  # fmt: skip
        control = faults.wrap(self.bus)
        return Coordinator(
            "r", Ledger(faults.wrap(self.records)), faults.wrap(self.objects),
            Unruly(control, unruly) if unruly else control, faults.wrap(NoAlarm()),
            policies(self.settings), lambda: self.now, sole=True, ignored=ignored,
        )  # fmt: skip

    def agent(self, device: Device, faults: Faults) -> Agent:
        objects, link = faults.wrap(self.objects), faults.wrap(self.bus.link([device.name]))
        transfer = Tampering(objects, self.tamper) if self.tamper else ObjectTransfer(objects)
        journal = Journal(faults.wrap(self.journals), device.name, str(self.lives))
        return Agent(device, self.trainer, journal, transfer, link, lambda: self.now)  # type: ignore[arg-type]

    def live(
        self,
        at: int | None = None,
        unruly: random.Random | None = None,
        die: Callable[[], None] = simulated_death,
    ) -> int:
        """Everything starts, goes on from what the stores say, and runs to the end of the run, or until
        step `at` of all its writes, where everything dies. → steps taken."""
        faults = Faults(at, die)
        self.lives += 1
        try:
            coordinator = self.coordinator(faults, unruly)
            agents = {d.name: self.agent(d, faults) for d in self.devices}
            link = self.bus.link(list(agents))
            for agent in agents.values():
                agent.resume()
            coordinator.resume()
            while (wake := coordinator.step()) != float("inf"):
                self.pass_time(agents, link.tasks(), wake)
        except Died:
            pass
        return faults.steps

    def pass_time(self, agents: dict[str, Agent], tasks: Sequence[Task], wake: float) -> None:
        for task in tasks:
            agents[task.device].handle(task)
        if not tasks and not self.bus.letters():
            self.now = max(self.now, wake)

    def run(self) -> Run:
        found = self.ledger.run("r")
        assert found is not None
        return found[0]

    def model(self) -> bytes:
        return fetch(self.objects, layout.model("r", self.run().version))


Part = tuple[str, Kind, int]
"""A device's part in one round: (device, kind, round)."""


class Paced(World):
    """A world whose devices take their own time: `pace(device, round)` seconds from the invitation on, also
    if everything dies meanwhile. It notes in `twice` who was asked while at work, before the deadline."""

    def __init__(self, pace: Callable[[str, int], float], devices: int = 6, **settings: object) -> None:
        super().__init__(devices, **settings)  # type: ignore[arg-type]
        self.pace = pace
        self.due: dict[Part, float] = {}
        self.at_work: dict[Part, Task] = {}
        self.answered: set[Part] = set()
        self.twice: list[tuple[Part, Part]] = []

    def pass_time(self, agents: dict[str, Agent], tasks: Sequence[Task], wake: float) -> None:
        for task in tasks:
            self._begin((task.device, task.kind, task.round), task)
        if self.bus.letters():
            return
        first = min(self.at_work, key=self.due.__getitem__, default=None)
        if first is None or self.due[first] > wake:
            self.now = max(self.now, wake)
            return
        self.now = max(self.now, self.due[first])
        for part in [part for part in self.at_work if self.due[part] <= self.now]:
            agents[part[0]].handle(self.at_work[part])
            self.answered.add(part)
            del self.at_work[part]

    def _begin(self, part: Part, task: Task) -> None:
        self.due.setdefault(part, self.now + self.pace(task.device, task.round))
        for other, earlier in self.at_work.items():
            if other[0] == part[0] and other != part and self.now < earlier.deadline:
                where = layout.round(earlier.run, earlier.round, earlier.kind)
                if self.ledger.arrival(where, earlier.device) is None:  # else a life before was the last
                    self.twice.append((other, part))
        if part not in self.answered:
            self.at_work[part] = task
