"""A simulated platform in memory: what calls the six functions on AWS, with all that it may do to them.

put ─▶ queue ─▶ collect      report ─▶ queue ─▶ status      alarm ─▶ tick      state machine ─▶ initiate, …

A queue delivers at least once, in any order, in batches, and again what failed; the state machine is executed
from its definition. A function may die at any of its writes (`die_at`) or meet itself there (`meet_at`).
"""

import base64
import json
import random
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote_plus

import msgspec
from msgspec.structs import replace

from fleetfold import Device, layout
from fleetfold.adapters.faults import WRITES, Died, Faults, simulated_death
from fleetfold.adapters.memory import MemoryBus, MemoryLink, MemoryObjects, MemoryRecords, MemoryUploads
from fleetfold.adapters.parted import Parted
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.aws import steps
from fleetfold.aws.machine import machine
from fleetfold.aws.mail import Message
from fleetfold.aws.workflow import Standing
from fleetfold.coordinator.opening import open_run
from fleetfold.coordinator.turns import Turns
from fleetfold.errors import FleetfoldError
from fleetfold.fold.plan import LAMBDA
from fleetfold.fold.tensors import write
from fleetfold.ledger import Ledger
from fleetfold.messages import Command, Grant, Report, encode
from fleetfold.ports import Letter, fetch
from fleetfold.round.run import Run
from fleetfold.settings import Settings
from fleetfold.view import Row
from fleetfold.wiring.aws import Cloud
from tests.aws.machine import Execution, Failed
from tests.world import Walk

FUNCTIONS = ("initiate", "collect", "status", "tick", "fold_shard", "publish")
BATCH = 10
"""Messages of one batch."""
TINY = replace(LAMBDA, part=8, folders=3)
"""Where the least model is folded in parts."""


class Notifying(MemoryObjects):
    """Objects of which each one that is put is told."""

    def __init__(self, told: Callable[[str], None]) -> None:
        super().__init__()
        self._told = told

    def put(self, key: str, data: Any) -> int:
        size = super().put(key, data)
        self._told(key)
        return size


class Posting(MemoryLink):
    """A device's end of the bus, whose reports go into a queue."""

    def __init__(self, bus: MemoryBus, devices: Sequence[str], post: Callable[[Report], None]) -> None:
        super().__init__(bus, devices)
        self._post = post

    def report(self, report: Report) -> None:
        self._post(report)


class Turn:
    """The bus of one turn."""

    def __init__(self, bus: MemoryBus, letters: Sequence[Letter], granted: list[Any]) -> None:
        self.invite, self.withdraw = bus.invite, bus.withdraw
        self._letters, self._granted = {letter.receipt: letter for letter in letters}, granted
        assert len(self._letters) == len(letters), "each letter has a receipt of its own"

    def letters(self) -> list[Letter]:
        return list(self._letters.values())

    def acknowledge(self, receipts: Sequence[str]) -> None:
        for receipt in receipts:
            self._letters.pop(receipt, None)

    def grant(self, grant: Grant) -> None:
        self._granted.append(grant)

    def command(self, command: Command) -> None:
        self._granted.append(command)


class Platform:
    """`devices` answer, `silent` more never do. `chance`: of orders, batches and doublets."""

    def __init__(
        self, devices: int = 4, *, silent: int = 0, chance: random.Random | None = None,
        trainer: Any = None, pace: Callable[[str, int], float] | None = None, cut: bool = True,
        tamper: Callable[[str, bytes], bytes] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        settings.setdefault("devices", devices + silent)
        self.settings, self.chance, self.pace = Settings(**settings), chance, pace
        self.trainer = trainer or Walk()
        self.now = 1_000.0
        self.queues: dict[str, list[Message]] = {"collect": [], "status": []}
        self.objects, self.records, self.bus = Notifying(self._stored), MemoryRecords(), MemoryBus()
        self.uploads, self.journals = MemoryUploads(self.objects, least=1), MemoryRecords()
        self.ledger = Ledger(self.records)
        self.alarms: set[tuple[float, str]] = set()
        self.executions: dict[str, Execution] = {}
        self.said: list[Any] = []
        self.ignored: list[str] = []
        self.troubles: list[str] = []
        self.rows: list[Row] = []
        self.calls: dict[str, int] = dict.fromkeys(FUNCTIONS, 0)
        self.steps: dict[str, int] = dict.fromkeys(FUNCTIONS, 0)
        self.victim, self.at, self.meets, self.doubled, self.deaf = "", 0, False, "", False
        self._serial = 0
        self.cut = cut
        names = [f"d{i}" for i in range(devices + silent)]
        fleet = [Device(name=n, index=i, count=len(names)) for i, n in enumerate(names)][:devices]
        model = write(self.trainer.init(self.settings.seed))
        open_run("r", "app", self.settings, model, names, self.ledger, self.objects, self.now)
        self.queues["collect"].clear()
        self.link = Posting(self.bus, [device.name for device in fleet], self._posted)
        self.due: list[tuple[float, Any]] = []
        self.agents = {d.name: self._agent(d, tamper) for d in fleet}

    # What happens by itself

    def open(self, run: str) -> None:
        """Another run, of the same fleet."""
        names = [device.name for device in self.ledger.fleet()]
        model = write(self.trainer.init(self.settings.seed))
        open_run(run, "app", self.settings, model, names, self.ledger, self.objects, self.now)

    def start(self, name: str = "e", **input: Any) -> Execution:
        definition = json.loads(json.dumps(machine()).replace("${Partition}", "aws"))
        made = Execution(definition, {"run": "r", **input}, self._task, lambda: self.now, self._anew, name)
        self.executions[name] = made
        return made

    def live(self, most: int = 3_000) -> None:
        """Until every execution has ended."""
        for _ in range(most):
            if all(each.ended for each in self.executions.values()):
                return
            if not self._happens():
                self._sleep()
        raise AssertionError(
            f"it goes on and on: {self.run()} {list(self.executions.values())[-1].visited[-9:]}"
        )

    def _happens(self) -> bool:
        happened = False
        for execution in list(self.executions.values()):
            happened |= execution.advance()
        for task in self.link.tasks():
            when = self.now + self.pace(task.device, task.round) if self.pace else self.now
            self.due.append((when, task))
        ready = [task for when, task in self.due if when <= self.now]
        self.due = [(when, task) for when, task in self.due if when > self.now]
        for task in ready:
            self.agents[task.device].handle(task)
            happened = True
        for name in ("collect", "status"):
            happened |= self._deliver(name)
        return happened

    def _sleep(self) -> None:
        """Nothing can be done now: time passes until something can."""
        waiting = [each.until for each in self.executions.values() if each.token]
        if self.deaf:  # no alarm rings
            self.alarms.clear()
        nexts = [*waiting, *(time for time, _ in self.alarms), *(when for when, _ in self.due)]
        assert nexts, "nobody will ever do anything again"
        self.now = max(self.now, min(nexts))
        for time, run in sorted(self.alarms):
            if time <= self.now:
                self.alarms.discard((time, run))
                self._alarmed(run)

    def _alarmed(self, run: str) -> None:
        for _ in range(3):  # Scheduler tries again
            try:
                self.invoke("tick", {"run": run})
                return
            except (Died, FleetfoldError):
                continue

    def _deliver(self, name: str) -> bool:
        queue = self.queues[name]
        if not queue:
            return False
        if self.chance:
            self.chance.shuffle(queue)
        taken = queue[: self.chance.randint(1, BATCH) if self.chance else BATCH]
        del queue[: len(taken)]
        event = {"Records": [{"messageId": m.id, "body": m.body, "attributes": _sent(m)} for m in taken]}
        try:
            failed = set(self.invoke(name, event))
        except Died:
            failed = {message.id for message in taken}
        again = [m for m in taken if m.id in failed or (self.chance and self.chance.random() < 0.2)]
        queue.extend(again)
        return True

    # Calling functions

    def invoke(self, name: str, event: Any) -> Any:
        """As a platform does: with an event that is JSON, in a process that may die."""
        event = json.loads(json.dumps(event))
        self.calls[name] += 1
        if name == self.doubled:
            self.do(name, json.loads(json.dumps(event)), Faults(None, simulated_death))
        if name != self.victim:
            return self.do(name, event, Faults(None, simulated_death))
        faults = Faults(None, simulated_death)
        before = self.steps[name]
        if self.at > before:
            faults.at = self.at - before
            if self.meets:
                faults.die = lambda: self.do(name, event, Faults(None, simulated_death))
        try:
            return self.do(name, event, faults)
        finally:
            self.steps[name] = before + faults.steps

    def do(self, name: str, event: Any, faults: Faults) -> Any:
        cloud = self.cloud(faults)
        match name:
            case "initiate":
                return steps.initiate(cloud, **event)
            case "tick":
                return steps.tick(cloud, **event)
            case "fold_shard":
                event.pop("kind", None)
                return steps.fold_shard(cloud, **event)
            case "publish":
                told = msgspec.convert(event, Standing)
                return msgspec.to_builtins(steps.publish(cloud, told, event["folded"]))
            case _:
                from fleetfold.aws.mail import batch

                return {"collect": steps.collect, "status": steps.status}[name](cloud, batch(event))

    def cloud(self, faults: Faults) -> Cloud:
        signer, records = _Keys(), faults.wrap(self.records)
        return Cloud(
            records=records, turn=Turns(records, lambda: self.now, self._rest, lambda: 0.5),
            objects=faults.wrap(Parted(self.objects)),
            uploads=faults.wrap(self.uploads), signer=signer, alarm=faults.wrap(_Alarm(self.alarms)),
            workflow=_stepped(_Workflow(self.executions), faults),
            bus=lambda letters: faults.wrap(Turn(self.bus, letters, self.said)),
            clock=lambda: self.now, site=TINY if self.cut else LAMBDA, ignored=self.ignored.append,
            troubled=self.troubles.append, measured=lambda run, row: self.rows.append(row),
        )  # fmt: skip

    def _rest(self, seconds: float) -> None:
        self.now += seconds

    def _task(self, function: str, payload: Any) -> Any:
        name = {"${Initiate}": "initiate", "${FoldShard}": "fold_shard", "${Publish}": "publish"}[function]
        try:
            return self.invoke(name, payload)
        except Died:
            raise Failed("Runtime.ExitError") from None
        except FleetfoldError as error:
            raise Failed(type(error).__name__, str(error)) from None

    def _anew(self, name: str, input: Any) -> None:
        if name in self.executions:
            raise Failed("StepFunctions.ExecutionAlreadyExistsException")
        self.start(name, **{k: v for k, v in input.items() if k in ("rounds", "patience")})

    # Devices

    def _agent(self, device: Device, tamper: Callable[[str, bytes], bytes] | None) -> Agent:
        from tests.world import Tampering

        transfer = Tampering(self.objects, tamper) if tamper else ObjectTransfer(self.objects)
        journal = Journal(self.journals, device.name, "life")
        return Agent(device, self.trainer, journal, transfer, self.link, lambda: self.now)

    def _stored(self, key: str) -> None:
        event = {"eventName": "ObjectCreated:Put", "s3": {"object": {"key": quote_plus(key)}}}
        self._queue("collect", {"Records": [event]})

    def _posted(self, report: Report) -> None:
        self.say(report.device, "status", encode(report))

    def say(self, device: str, word: str, payload: bytes) -> None:
        said = base64.b64encode(payload).decode()
        self._queue("status", {"device": device, "word": word, "said": said})

    def lifecycle(self, device: str, event: str, at: float, session: int) -> None:
        about = {
            "clientId": device,
            "timestamp": int(at * 1000),
            "eventType": event,
            "versionNumber": session,
        }
        self._queue("status", {"lifecycle": about})

    def _queue(self, name: str, body: Any) -> None:
        self._serial += 1
        self.queues[name].append(Message(f"m{self._serial}", json.dumps(body), self.now))

    # What came of it

    def run(self) -> Run:
        found = self.ledger.run("r")
        assert found is not None
        return found[0]

    def model(self) -> bytes:
        return fetch(self.objects, layout.model("r", self.run().version))

    def trained(self) -> list[tuple[str, int]]:
        return list(self.trainer.trained)


class _Keys:
    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return key

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        return key


class _Alarm:
    """To the minute, as Scheduler is."""

    def __init__(self, alarms: set[tuple[float, str]]) -> None:
        self._alarms = alarms

    def wake_at(self, run: str, time: float) -> None:
        self._alarms.add((-(-time // 60) * 60.0, run))


class _Workflow:
    def __init__(self, executions: dict[str, Execution]) -> None:
        self._executions = executions

    def tell(self, token: str, said: bytes) -> None:
        for execution in self._executions.values():
            execution.tell(token, json.loads(said))


def _stepped(workflow: _Workflow, faults: Faults) -> Any:
    """To tell a token is a write too."""
    assert "tell" in WRITES
    return faults.wrap(workflow)


def _sent(message: Message) -> dict[str, str]:
    return {"SentTimestamp": str(int(message.at * 1000))}
