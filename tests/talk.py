"""A system in one process whose app sends messages of its own, and averages the answers by itself.

talk = Talk(devices=4, exchanges=3)
talk.live()                  # the app begins anew, and is answered from the record as far as that goes
talk.model                   # what it came to
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np

from fleetfold import Device, layout
from fleetfold.adapters.faults import Died, Faults, simulated_death
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords, NoAlarm
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.agent.trainer import Answered, Model
from fleetfold.coordinator.exchange import Outgoing, Terms
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import open_messages
from fleetfold.coordinator.policy import policies
from fleetfold.fold.tensors import read, write
from fleetfold.ledger import Ledger
from fleetfold.messages import Envelope, Task
from fleetfold.ports import Objects, fetch
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED
from fleetfold.settings import Settings
from tests.world import Tampering


class Parrot:
    """Answers with what it was sent, a little changed, and counts in its state how often it did."""

    def __init__(self) -> None:
        self.answered: list[tuple[str, int]] = []
        self.state = b""

    def answer(self, task: Task, content: Model, device: Device, state: bytes) -> Answered:
        self.answered.append((device.name, task.round))
        times = len(state)
        chance = np.random.default_rng([task.seed, times])
        assert task.message is not None
        tensors = {name: (x * np.float32(0.9) + chance.normal(size=x.shape)).astype(x.dtype)
                   for name, x in content.tensors.items()}  # fmt: skip
        about = Envelope(id=f"re-{task.message.id}", reply_to=task.message.id, app=task.message.app)
        metrics = {"weight": 1.0 + device.index, "loss": 1.0 / task.round}
        return Answered(tensors=tensors, message=about, metrics=metrics, state=state + b".")


class Talk:
    """`apart`: the app's process has no bus, another one has. `tamper`: (device, answer's file) → the file
    that is delivered instead; `silent` devices more never answer."""

    def __init__(
        self, devices: int = 4, exchanges: int = 3, *, silent: int = 0, apart: bool = False,
        terms: Terms | None = None, tamper: Callable[[str, bytes], bytes] | None = None,
        shape: tuple[int, ...] = (7,), answerer: Any = None, **settings: object,
    ) -> None:  # fmt: skip
        self.exchanges, self.apart, self.tamper, self.shape = exchanges, apart, tamper, shape
        self.terms = terms or Terms(timeout=60.0, alike=True, weight="weight", same_metrics=True)
        self.settings = Settings(**{"lease": 5.0, **settings})  # type: ignore[arg-type]
        self.objects: Objects = MemoryObjects()
        self.records, self.bus, self.journals = MemoryRecords(), MemoryBus(), MemoryRecords()
        self.ledger, self.now, self.lives = Ledger(self.records), 1_000.0, 0
        self.answerer = answerer or Parrot()
        self.names = [f"d{i}" for i in range(devices + silent)]
        every = [Device(name=n, index=i, count=len(self.names)) for i, n in enumerate(self.names)]
        self.devices, self.model = every[:devices], b""
        open_messages("r", "app", self.settings, self.names, self.ledger, self.now)

    def messenger(self, faults: Faults, *, bus: bool = True, merges: bool = True) -> Messenger:
        return Messenger(
            "r", Ledger(faults.wrap(self.records)), faults.wrap(self.objects),
            faults.wrap(self.bus) if bus else None, faults.wrap(NoAlarm()), policies(self.settings),
            lambda: self.now, merges=merges, sole=True,
        )  # fmt: skip

    def agent(self, device: Device, faults: Faults) -> Agent:
        objects, link = faults.wrap(self.objects), faults.wrap(self.bus.link([device.name]))
        transfer = Tampering(objects, self.tamper) if self.tamper else ObjectTransfer(objects)
        journal = Journal(faults.wrap(self.journals), device.name, str(self.lives))
        return Agent(device, self.answerer, journal, transfer, link, lambda: self.now)

    def live(self, at: int | None = None, die: Callable[[], None] = simulated_death) -> int:
        """Everything starts; the app runs from its beginning to its end, or until step `at` of all writes,
        where everything dies. → steps taken."""
        faults = Faults(at, die)
        self.lives += 1
        with suppress(Died):
            self._app(faults)
        return faults.steps

    def _app(self, faults: Faults) -> None:
        messenger = self.messenger(faults, bus=not self.apart)
        driver = self.messenger(faults, merges=False) if self.apart else messenger
        agents = {d.name: self.agent(d, faults) for d in self.devices}
        link = self.bus.link(list(agents))
        for agent in agents.values():
            agent.resume()
        driver.resume()
        model = write({"w": np.zeros(self.shape, np.float32)})
        for number in range(1, self.exchanges + 1):
            messenger.send(number, self.outgoing(model, number, faults), self.terms)
            while (round := messenger.round(number)) and round.phase not in ENDED:
                wake = min(driver.step(), messenger.step())
                self._pass_time(agents, link.tasks(), wake)
            driver.step()
            model = self.averaged(messenger, number, model)
        messenger.end(RunState.DONE, "the app has ended")
        self.model = model

    def outgoing(self, model: bytes, number: int, faults: Faults | None = None) -> list[Outgoing]:
        digest = hashlib.sha256(model).hexdigest()
        key = layout.content("r", digest)
        (faults or Faults(None, simulated_death)).wrap(self.objects).put(key, [model])
        return [
            Outgoing(
                device=name, content=key, digest=digest, size=len(model),
                message=Envelope(id=f"{number}-{name}", type="train", app="v1"),
            )
            for name in self.names
        ]  # fmt: skip

    def averaged(self, messenger: Messenger, number: int, model: bytes) -> bytes:
        """The app's own mean; what came may be nothing."""
        replies = messenger.replies(number)
        if not replies:
            return model
        total = sum(reply.metrics["weight"] or 0.0 for reply in replies)
        found = [read(fetch(self.objects, reply.key))[0]["w"] for reply in replies]
        weights = [(reply.metrics["weight"] or 0.0) / total for reply in replies]
        mean = sum(w * x.astype(np.float64) for w, x in zip(weights, found, strict=True))
        return write({"w": np.asarray(mean, np.float32)})

    def _pass_time(self, agents: dict[str, Agent], tasks: Sequence[Task], wake: float) -> None:
        for task in tasks:
            agents[task.device].handle(task)
        if not tasks and not self.bus.letters() and wake != float("inf"):
            self.now = max(self.now, wake)

    def run(self) -> Run:
        found = self.ledger.run("r")
        assert found is not None
        return found[0]


def header(data: bytes) -> dict[str, Any]:
    """The metadata of a file of tensors."""
    return msgspec.json.decode(read(data)[1])  # type: ignore[no-any-return]
