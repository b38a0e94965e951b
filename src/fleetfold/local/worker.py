"""A worker process: the real agent for its share of the simulated devices, with the trainer kept warm.

It hears "look" on its socket, and says "reported" or "error" there. When the socket closes, its
coordinator is dead, and so is it, whatever it was doing: the next one resumes from the journal.

    handle, handle, handle …   what they report is told together: every BATCH seconds, and when none is left
"""

import gc
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from fleetfold.agent.app import App, load_trainer
from fleetfold.errors import BadConfig, FleetfoldError
from fleetfold.local.devices import simulated
from fleetfold.messages import Task
from fleetfold.ports import pause
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring

BATCH = 0.05
"""Seconds that a report waits for others while there is more to do: who writes each by itself, or looks at
each by itself, spends more on that than on the work."""


class Orders(Struct, frozen=True):
    """What a worker is started with."""

    home: str
    run: str
    app: App
    settings: Settings
    worker: int
    workers: int
    socket: int  # inherited file descriptor
    life: str  # of the coordinator that started it


class Hint(Struct, frozen=True):
    """One line on the socket, from a worker to its coordinator."""

    what: Literal["ready", "reported", "error"]
    sentence: str = ""
    next: str = ""
    users: bool = False  # whether the error is the user's


def serve(orders: Orders) -> None:
    channel = socket.socket(fileno=orders.socket)
    look = threading.Event()
    threading.Thread(target=_listen, args=(channel, look), daemon=True).start()

    def say(hint: Hint) -> None:
        channel.sendall(msgspec.json.encode(hint) + b"\n")

    try:
        _work(orders, look, say)
    except FleetfoldError as error:
        say(Hint("error", error.sentence, error.next, isinstance(error, BadConfig)))


def _work(orders: Orders, look: threading.Event, say: Callable[[Hint], None]) -> None:
    place = wiring.Place(Path(orders.home), orders.run)
    trainer = load_trainer(orders.app)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the fleet's parallelism is its workers
    mine = simulated(orders.settings)[orders.worker :: orders.workers]
    fleet = wiring.fleet(
        place,
        orders.settings,
        orders.app,
        trainer,
        mine,
        time.perf_counter,
        f"worker-{orders.worker}",
        orders.life,
    )
    gc.freeze()  # what was loaded stays: nobody need look for garbage in it again
    say(Hint("ready"))
    for agent in fleet.agents.values():
        agent.resume()
    fleet.link.flush()
    say(Hint("reported"))
    chance, idle = random.Random(orders.worker), 0
    pending: dict[str, Task] = {}
    telling = Telling(fleet.link.flush, lambda: say(Hint("reported")))
    while True:
        if look.is_set() or not pending:
            look.clear()
            pending.update({task.device: task for task in fleet.link.tasks()})  # a newer task replaces
        if pending:
            device = next(iter(pending))
            fleet.agents[device].handle(pending.pop(device))
            telling.soon() if pending else telling.now()
            idle = 0
        else:
            settings = orders.settings
            if not look.wait(pause(idle, settings.wait, settings.wait_most, chance.random())):
                idle += 1


class Telling:
    """Has what was reported told in time, also while the next task takes long: by a thread of its own.
    `flush` tells it, and whether there was something; `told` hears of that."""

    def __init__(self, flush: Callable[[], bool], told: Callable[[], None]) -> None:
        self._flush, self._told = flush, told
        self._due, self._lock = threading.Event(), threading.Lock()
        self._failed: FleetfoldError | None = None
        threading.Thread(target=self._keep_telling, daemon=True).start()

    def now(self) -> None:
        with self._lock:
            if self._flush():
                self._told()

    def soon(self) -> None:
        """Within BATCH seconds. Raises what had to be told before and could not be."""
        if self._failed:
            raise self._failed
        self._due.set()

    def _keep_telling(self) -> None:
        while True:
            self._due.wait()
            time.sleep(BATCH)
            self._due.clear()
            try:
                self.now()
            except FleetfoldError as error:
                self._failed = error
                return


def _listen(channel: socket.socket, look: threading.Event) -> None:
    try:
        while channel.recv(64):
            look.set()
    except OSError:
        pass
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    serve(msgspec.json.decode(arguments[0], type=Orders))


if __name__ == "__main__":
    main(sys.argv[1:])
