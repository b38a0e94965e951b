"""The simulation: real agents whose doors take virtual time, and a real coordinator on the same clock.

    invite ─▶ device's own time:  fetch (bytes / down) ─▶ train (drawn) ─▶ deliver (bytes / up) ─▶ report
                                                                              heard then, or dropped

What the agent measures with its timer is what the profile drew, so every record is as in a real run.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from statistics import NormalDist

from msgspec import Struct

from fleetfold.agent.app import App, can, tester, users_code
from fleetfold.agent.trainer import Device, Evaluated, Trained, Trainer, Work
from fleetfold.coordinator.opening import open_run
from fleetfold.coordinator.policy import unit
from fleetfold.fold.tensors import Tensors, write
from fleetfold.messages import Report, Task
from fleetfold.settings import Settings
from fleetfold.sim.clock import Clock
from fleetfold.sim.profile import DeviceClass, Profile
from fleetfold.view import Row, rows
from fleetfold.wiring.local import InMemory

START = 1_000_000.0
"""The virtual epoch: any time but 0, which means "never" in records."""
MEGABIT = 1_000_000 / 8


class Simulated(Struct, frozen=True):
    """A simulated run: its rows, its virtual length in seconds, how often each class was invited."""

    rows: list[Row]
    seconds: float
    invited: Mapping[str, int]

    @property
    def round_seconds(self) -> float:
        """Mean length of a round."""
        return sum(r.seconds for r in self.rows) / max(1, len(self.rows))


def simulate(
    profile: Profile,
    app: App,
    trainer: Trainer,
    settings: Settings,
    watch: Callable[[int], None] = lambda _: None,
) -> Simulated:
    """Run `settings.rounds` rounds over the fleet of `profile`. `watch` is told each round's number."""
    clock, world = Clock(START), InMemory()
    members = profile.members()
    names = [f"device-{index:03}" for index in range(len(members))]
    with users_code(app, "init()"):
        model = write(trainer.init(settings.seed))
    open_run("sim", app.place, settings, model, names, world.ledger, world.objects, START)
    devices = []
    for index, name in enumerate(names):
        itself = Device(name=name, index=index, count=len(names))
        devices.append(_Simulated(itself, members[index], trainer, settings.seed, clock, world))
    coordinator = world.coordinator("sim", settings, clock, tester(app, trainer))
    seen = 0
    while (wake := coordinator.step()) != float("inf"):
        for device in devices:
            device.look()
        clock.advance(wake)
        found = world.ledger.run("sim")
        if found is not None and found[0].round != seen:
            seen = found[0].round
            watch(seen)
    invited: dict[str, int] = {}
    for entry, member in zip(world.ledger.fleet(), members, strict=True):
        invited[member.name] = invited.get(member.name, 0) + entry.chosen
    return Simulated(rows(world.ledger, world.objects, "sim", clock.now), clock.now - START, invited)


class _Simulated:
    """One device: its own time, its agent, and the doors through which its time passes."""

    def __init__(
        self, device: Device, kind: DeviceClass, trainer: Trainer, seed: int, clock: Clock, world: InMemory
    ) -> None:
        self._name, self._kind, self._seed = device.name, kind, seed
        self._clock, self._tasks = clock, world.link([device.name])
        self._transfer, self._trainer = world.transfer(), trainer
        self._now, self._round = START, 0
        self._agent = world.agent(device, self, self, self, lambda: self._now)

    def look(self) -> None:
        """Take up a new task, now or when the one before is done."""
        for task in self._tasks.tasks():
            self._clock.at(self._now, lambda task=task: self._begin(task))  # type: ignore[misc]

    def _begin(self, task: Task) -> None:
        self._now, self._round = self._clock.now, task.round
        self._agent.handle(task)

    # The doors of the agent: this device is its trainer, its transfer and its link, on its own time.

    def init(self, seed: int) -> Tensors:
        return self._trainer.init(seed)

    def train(self, model: Tensors, work: Work) -> Trained:
        chance = NormalDist().inv_cdf(unit(self._seed, "compute", self._name, work.round))
        self._now += self._kind.compute * exp(self._kind.spread * chance)
        return self._trainer.train(model, work)

    def evaluate(self, model: Tensors, work: Work) -> Evaluated | None:
        if not can(self._trainer, "evaluate"):
            return None
        return self._trainer.evaluate(model, work)  # type: ignore[attr-defined, no-any-return]

    def fetch(self, task: Task) -> bytes | memoryview:
        data = self._transfer.fetch(task)
        self._now += len(data) / (self._kind.down * MEGABIT)
        return data

    def deliver(self, task: Task, update: bytes) -> None:
        self._now += len(update) / (self._kind.up * MEGABIT)
        self._transfer.deliver(task, update)

    def delivered(self, task: Task) -> bool:
        return self._transfer.delivered(task)

    def tasks(self) -> Sequence[Task]:
        return self._tasks.tasks()

    def report(self, report: Report) -> None:
        if unit(self._seed, "dropout", self._name, report.round) >= self._kind.dropout:
            self._clock.at(self._now, lambda: self._tasks.report(report))
