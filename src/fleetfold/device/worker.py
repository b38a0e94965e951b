"""The process that trains: the real agent, one piece of work at a time, the app kept loaded in between.

    Do ─▶ journal, fetch, train, deliver, settle ─▶ Said … Done          (fleetfold.agent.loop)

What is unavailable is waited for with full jitter; the journal makes every repetition safe. When the socket
closes, the supervisor is dead, and so is this process and all that it has started.
"""

import ctypes
import hashlib
import os
import queue
import random
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fleetfold.agent.app import find_app, load_trainer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent, Models
from fleetfold.agent.trainer import Device
from fleetfold.device import own
from fleetfold.device.lines import (
    TO_WORKER,
    Answered,
    Asked,
    Denied,
    Do,
    Done,
    FromWorker,
    Granted,
    Look,
    Orders,
    Ready,
    Said,
    Spent,
    Step,
    ToWorker,
    line,
    listen,
)
from fleetfold.device.terms import Home, Terms
from fleetfold.errors import BadConfig, BadUpdate, FleetfoldError, Unavailable, blame
from fleetfold.fold.tensors import header_in
from fleetfold.messages import Answer, Ask, Command, Grant, Report, Task, UpdateHeader
from fleetfold.ports import pause
from fleetfold.settings import size
from fleetfold.wiring import device as wiring

FIRST, MOST = 1.0, 60.0
"""Seconds of the first pause when something is unavailable, and of the longest."""
OFTEN = 0.5
"""Seconds between two words on how far a transfer is."""

IDLE_IO = 3 << 13
"""The class of who reads and writes only when nobody else does (ioprio_set(2))."""
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314, "armv6l": 314, "i686": 289}
SET_DEATH_SIGNAL = 1


class Desk:
    """The worker's side of the socket: the agent's link, and the doors of its transfer."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._answers: queue.SimpleQueue[Granted | Denied] = queue.SimpleQueue()
        self._told, self._spent = 0.0, 0
        self._step: Step | None = None
        self.work: queue.SimpleQueue[Do] = queue.SimpleQueue()
        self.look = threading.Event()

    def say(self, message: FromWorker) -> None:
        with self._lock:
            self._channel.sendall(line(message))

    def listen(self) -> None:
        """Until the supervisor is dead; then everything here is."""
        listen(self._channel.recv, TO_WORKER, self._hear)
        os.killpg(0, signal.SIGKILL)

    def _hear(self, message: ToWorker) -> None:
        match message:
            case Do():
                self.work.put(message)
            case Granted() | Denied():
                self._answers.put(message)
            case Look():
                self.look.set()

    def tasks(self) -> list[Task]:
        return []  # they come by `work`, one at a time

    def report(self, report: Report) -> None:
        self.say(Said(report))

    def ask(self, ask: Ask) -> Grant:
        """Raises Unavailable."""
        self.say(Asked(ask))
        answer = self._answers.get()
        if isinstance(answer, Denied):
            raise Unavailable(answer.sentence)
        return answer.grant

    def wait(self, failures: int) -> None:
        """Before the next try of what was Unavailable; less where the link has come back."""
        self.settle()
        self.look.wait(pause(failures, FIRST, MOST, random.random()))
        self.look.clear()

    def spent(self, sent: int, received: int) -> None:
        self._spent += sent + received
        self._tell(done=False)

    def progress(self, step: str, done: int, total: int) -> None:
        self._step = Step("delivering" if step == "upload" else "fetching", "", done, total)
        self._tell(done=done >= total)

    def settle(self) -> None:
        """What was spent is all told."""
        self._step = None
        self._tell(done=True)

    def _tell(self, *, done: bool) -> None:
        """How far a transfer is, not more often than anybody looks."""
        now = time.monotonic()
        if now - self._told < OFTEN and not done:
            return
        self._told = now
        if self._spent:
            self.say(Spent(self._spent))
            self._spent = 0
        if self._step is not None:
            self.say(self._step)
            self._step = None


class Telling:
    """A transfer that says which step of the work this is, and notes what is learned from it."""

    def __init__(self, transfer: wiring.Way, desk: Desk, learn: Callable[..., None]) -> None:
        self._transfer, self._desk, self._learn = transfer, desk, learn
        self.delivered = transfer.delivered

    def fetch(self, task: Task) -> bytes | memoryview:
        self._desk.say(Step("fetching", total=task.size))
        model = self._transfer.fetch(task)
        self._desk.say(_work(task))
        return model

    def deliver(self, task: Task, update: bytes) -> None:
        self._desk.say(Step("delivering", total=len(update)))
        header = msgspec.json.decode(header_in(update).metadata, type=UpdateHeader)
        if task.kind == "train":
            self._learn(examples=header.examples)
        self._transfer.deliver(task, update)


class Bench:
    """Where the work is done: the device, its journal, its way to objects and, once it is needed, its app."""

    def __init__(self, orders: Orders, desk: Desk) -> None:
        self._orders, self._desk, self._home = orders, desk, Home(Path(orders.home))
        terms = orders.terms
        self._device = Device(
            name=orders.device, index=terms.index, count=terms.count,
            data=Path(terms.data) if terms.data else None,
        )  # fmt: skip
        self._records = wiring.records(self._home.path, "worker")
        self._journal = Journal(self._records, orders.device, orders.life)
        self._transfer = wiring.transfer_by(
            orders.transfer, self._home.path, desk.ask, desk.wait, desk.spent, desk.progress
        )
        self._told = Telling(self._transfer, desk, lambda **facts: own.learn(self._records, **facts))
        self._agent: Agent | None = None
        self._app_root = ""

    def load(self) -> None:
        try:
            self.agent()
            self._desk.say(Ready())
        except FleetfoldError as error:
            self._desk.say(Ready(error.sentence, error.next))
        except MemoryError:
            self._desk.say(Ready(self._no_memory()))

    def agent(self) -> Agent:
        """With the app loaded. Raises BadConfig where there is none, or a broken one."""
        if self._agent is None:
            terms = self._orders.terms
            if not terms.app:
                raise BadConfig("this device has no app", next="fleetfold join --app FOLDER")
            self._desk.say(Step("loading"))
            app = find_app(terms.app)
            trainer = load_trainer(app)
            if terms.threads and "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(terms.threads)
            self._app_root = app.root
            self._agent = Agent(
                self._device, trainer, self._journal, self._told, self._desk, time.perf_counter,
                app=app, models=Models(),
            )  # fmt: skip
        return self._agent

    def task(self, task: Task) -> None:
        """Until it is settled, however long what it needs is unavailable."""
        tries = 0
        while True:
            try:
                self._try(task)
                break
            except Unavailable as error:
                self._desk.say(Step("paused", f"{error.sentence}; tried again within {MOST:.0f} s"))
                self._desk.wait(tries)
                tries += 1
        if (self._home.cache / task.digest).exists():
            own.learn(self._records, model=task.digest)

    def _try(self, task: Task) -> None:
        try:
            agent = self.agent()
        except (BadConfig, MemoryError) as error:
            reason = error.sentence if isinstance(error, BadConfig) else self._no_memory()
            report = refused(task, reason)
            self._journal.settle(task, report)
            self._desk.report(report)
            return
        self._desk.say(_work(task))
        agent.handle(task)

    def command(self, command: Command) -> Answer:
        answer = Answer(id=command.id, device=command.device, state="done")
        try:
            match command.what:
                case "evaluate":
                    return self._evaluate(command, answer)
                case "get":
                    return self._get(command, answer)
                case _:
                    return self._set(command, answer)
        except (BadConfig, BadUpdate) as error:
            return msgspec.structs.replace(answer, state="refused", reason=error.sentence)
        except MemoryError:
            return msgspec.structs.replace(answer, state="refused", reason=self._no_memory())
        except Unavailable as error:
            return msgspec.structs.replace(answer, state="failed", reason=error.sentence)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything; the fleet goes on
            return msgspec.structs.replace(answer, state="failed", reason=blame(error, self._app_root))

    def _evaluate(self, command: Command, answer: Answer) -> Answer:
        model = self._fetched(command) if command.model else self._own()
        agent = self.agent()
        self._desk.say(Step("evaluating"))
        found = agent.score(model, command.settings)
        if found is None:
            raise BadConfig("the app has no evaluate(), or this device has nothing to evaluate on")
        return msgspec.structs.replace(answer, examples=found.examples, metrics=found.metrics)

    def _get(self, command: Command, answer: Answer) -> Answer:
        model = self._own()
        self._desk.say(Step("delivering", total=len(model)))
        digest = hashlib.sha256(model).hexdigest()
        self._transfer.put(command.upload, memoryview(model))
        return msgspec.structs.replace(answer, digest=digest, size=len(model))

    def _set(self, command: Command, answer: Answer) -> Answer:
        model = self._fetched(command)
        header_in(model)  # raises BadUpdate: it is no model
        wiring.replace_file(self._home.model, model)
        own.learn(self._records, model=command.digest)
        return msgspec.structs.replace(answer, digest=command.digest, size=len(model))

    def _fetched(self, command: Command) -> bytes | memoryview:
        self._desk.say(Step("fetching", total=command.size))
        model = self._transfer.take(command.model, command.digest, command.size)
        found = hashlib.sha256(model).hexdigest()
        if found != command.digest:
            raise Unavailable(f"the model has sha256 {found[:12]}…, the command says {command.digest[:12]}…")
        return model

    def _own(self) -> bytes:
        model = own.model(self._home, self._records)
        if model is None:
            raise BadConfig("this device keeps no model yet")
        return model

    def _no_memory(self) -> str:
        limit = self._orders.terms.memory
        return f"not enough memory: the limit is {size(limit)}" if limit else "not enough memory"


def _work(task: Task) -> Step:
    """What a person calls it."""
    what = task.message.type if task.message else task.kind
    return Step("evaluating" if what.startswith("evaluate") else "training")


def refused(task: Task, reason: str) -> Report:
    return Report(
        run=task.run, round=task.round, kind=task.kind, device=task.device, state="refused", reason=reason
    )


def lower(terms: Terms) -> None:
    """Take no more of the machine than the terms allow. A limit of data, not of addresses: what a library
    only reserves costs nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if terms.nice:
        os.setpriority(os.PRIO_PROCESS, 0, terms.nice)
    number = IOPRIO_SET.get(os.uname().machine)
    if terms.idle_io and number is not None:
        libc.syscall(number, 1, 0, IDLE_IO)
    if terms.memory:
        resource.setrlimit(resource.RLIMIT_DATA, (terms.memory, terms.memory))


def serve(orders: Orders) -> None:
    lower(orders.terms)
    desk = Desk(socket.socket(fileno=orders.socket))
    threading.Thread(target=desk.listen, daemon=True).start()
    with wiring.alone(Path(orders.home)):
        bench = Bench(orders, desk)
        while True:
            work = desk.work.get()
            if work.task is not None:
                bench.task(work.task)
            elif work.command is not None:
                desk.say(Answered(bench.command(work.command)))
            else:
                bench.load()
            desk.settle()
            desk.say(Done())


def main(arguments: Sequence[str]) -> None:
    serve(msgspec.json.decode(arguments[0], type=Orders))


if __name__ == "__main__":
    main(sys.argv[1:])
