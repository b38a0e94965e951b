"""A fleet in one process, behind a FleetGrid: while the app waits, its devices answer, or time passes.

field = Field(client_app, devices=4)
field.grid()                 # as a new process has it; what was sent before is on record
"""

import time
from collections.abc import Callable
from typing import Any

from fleetfold import Device
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords, NoAlarm
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.app import App
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import open_messages
from fleetfold.coordinator.policy import policies
from fleetfold.flower.client import Client
from fleetfold.flower.grid import FleetGrid
from fleetfold.ledger import Ledger
from fleetfold.messages import Task
from fleetfold.round.state import Round
from fleetfold.settings import Settings

HERE = __file__.rpartition("/")[0]


class Field:
    """`silent` devices more never answer. `app`: their ClientApp. `config`: the run's."""

    def __init__(
        self, app: Any, devices: int = 4, *, silent: int = 0, config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.settings = Settings(**{"lease": 5.0, "app": config or {}, **settings})
        self.objects, self.records, self.bus = MemoryObjects(), MemoryRecords(), MemoryBus()
        self.ledger, self.now, self.answered = Ledger(self.records), time.time(), list[tuple[str, int]]()
        self.names = [f"d{i}" for i in range(devices + silent)]
        open_messages("r", "app", self.settings, self.names, self.ledger, self.now)
        self.client, journals = Client(app, "f1"), MemoryRecords()
        everyone = [Device(name=n, index=i, count=len(self.names)) for i, n in enumerate(self.names)]
        self.agents = {
            device.name: Agent(
                device, self.client, Journal(journals, device.name, ""), ObjectTransfer(self.objects),
                self.bus.link([device.name]), lambda: self.now, app=App("app", "", HERE),
            )
            for device in everyone[:devices]
        }  # fmt: skip
        self._link = self.bus.link(list(self.agents))
        self.before: Callable[[Task], None] = lambda task: None

    def grid(self) -> FleetGrid:
        messenger = Messenger(
            "r", self.ledger, self.objects, self.bus, NoAlarm(), policies(self.settings), lambda: self.now,
            sole=True,
        )  # fmt: skip
        messenger.resume()
        return FleetGrid(
            messenger, self.objects, "r", self.settings, fingerprint="f1", idle=self.idle,
            fleet=lambda: [device.name for device in self.ledger.fleet()], clock=lambda: self.now,
        )  # fmt: skip

    def idle(self, seconds: float) -> None:
        tasks = self._link.tasks()
        for task in tasks:
            self.before(task)
            self.answered.append((task.device, task.round))
            self.agents[task.device].handle(task)
        if not tasks and not self.bus.letters():
            self.now += max(seconds, 1.0)

    def rounds(self) -> list[Round]:
        return self.ledger.rounds("r")
