"""The devices of one process of `fleet`: each the real agent, with its own certificate, journal and doors.

    one loop, all connections ──task──▶ threads: Agent.handle ──▶ door, status

    python -P bench/fleet_devices.py FOLDER BUNDLES THREADS  ─▶ {"connected": seconds, …}, when all are there
                                          at the end of stdin ─▶ {"handed": …, "uploaded": …, …}

What differs from `join`: no process each, journals in memory, and no conditions.
"""

import os
import queue
import random
import selectors
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fleetfold.adapters.connection import Connection
from fleetfold.adapters.doors import context
from fleetfold.adapters.https import SignedTransfer
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.adapters.mqtt_link import MqttLink
from fleetfold.agent.app import find_app, load_trainer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.agent.trainer import Device, Trainer
from fleetfold.bundle import Bundle
from fleetfold.errors import Unavailable
from fleetfold.messages import Presence, Task
from fleetfold.ports import pause

APP = Path(__file__).parent / "apps" / "add_one.py"
TEND = 10.0
"""Seconds between two looks at a connection on which nothing happens, to keep it alive."""
ANSWER = 30.0
"""Seconds for fresh addresses."""


class Noted:
    """A way to objects that notes when uploads were done. `done`: (run, round) → when the last one was."""

    def __init__(self, transfer: SignedTransfer, done: dict[str, float]) -> None:
        self.fetch, self.delivered = transfer.fetch, transfer.delivered
        self._deliver, self._done = transfer.deliver, done

    def deliver(self, task: Task, update: bytes) -> None:
        self._deliver(task, update)
        place = where(task)
        self._done[place] = max(time.time(), self._done.get(place, 0.0))


class Member:
    """One device: its end of the bus, driven from outside, and its agent."""

    def __init__(self, folder: Path, bundle: Bundle, trainer: Trainer, done: dict[str, float]) -> None:
        name = bundle.device
        self.connection = Connection(name, bundle.brokers[:1], context(bundle))
        self.link = MqttLink(self.connection, bundle.fleet, name, time.monotonic)
        transfer = SignedTransfer(
            folder / name, bundle, lambda ask: self.link.ask(ask, ANSWER),
            lambda n: time.sleep(pause(n, 0.5, 30.0, random.random())),
        )  # fmt: skip
        self.agent = Agent(
            Device(name=name), trainer, Journal(MemoryRecords(), name, "bench"), Noted(transfer, done),
            self.link, time.perf_counter,
        )  # fmt: skip
        self.link.say(Presence(device=name, examples=1, agent="bench"))
        self.losses = 0


class Crowd:
    """All of the process's devices. The loop has the connections, the threads have the work."""

    def __init__(self, folder: Path, bundles: list[Bundle], threads: int) -> None:
        self.handed: dict[str, list[float]] = {}
        self.uploaded: dict[str, float] = {}
        self.lost = self.unavailable = 0
        trainer = load_trainer(find_app(str(APP)))
        self._members = [Member(folder, bundle, trainer, self.uploaded) for bundle in bundles]
        self._work: queue.SimpleQueue[tuple[Member, Task]] = queue.SimpleQueue()
        self._pressed, self._tended = deque[Member](), time.monotonic()
        self._again: list[tuple[float, Member]] = [(0.0, member) for member in self._members]
        self._selector = selectors.DefaultSelector()
        self._wake, waker = socket.socketpair()
        self._waker = waker
        for end in (self._wake, waker):
            end.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        for member in self._members:
            member.connection.wanting = lambda member=member: self._press(member)  # type: ignore[misc]
        for _ in range(threads):
            threading.Thread(target=self._labour, daemon=True).start()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def connected(self) -> bool:
        return all(member.link.connected for member in self._members)

    def turn(self, seconds: float) -> None:
        """Whatever can be done on all connections; at most one that is lost is made again."""
        soon = self._open_one()
        for key, _ in self._selector.select(0.0 if soon else seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._wake.recv(1 << 16)
            else:
                self._look(key.data)
        for _ in range(len(self._pressed)):
            self._look(self._pressed.popleft())
        if time.monotonic() - self._tended > TEND:
            self._tended = time.monotonic()
            for member in self._members:
                self._look(member)

    def _open_one(self) -> bool:
        """→ whether another one is due at once."""
        now = time.monotonic()
        due = next((entry for entry in self._again if entry[0] <= now), None)
        if due is None:
            return False
        self._again.remove(due)
        member = due[1]
        try:
            member.connection.open()
        except OSError:
            self._later(member)
        else:
            self._selector.register(member.connection.socket(), selectors.EVENT_READ, member)
            self._look(member)
        return any(at <= now for at, _ in self._again)

    def _look(self, member: Member) -> None:
        found = member.connection.socket()
        if found is None:
            return
        if not member.connection.turn():
            self._selector.unregister(found)
            self._later(member)
            return
        for task in member.link.tasks():
            self.handed.setdefault(where(task), []).append(time.time())
            self._work.put((member, task))

    def _later(self, member: Member) -> None:
        self.lost += 1
        member.losses += 1
        self._again.append((time.monotonic() + pause(member.losses, 1.0, 60.0, random.random()), member))

    def _press(self, member: Member) -> None:
        self._pressed.append(member)
        with suppress(BlockingIOError):
            self._waker.send(b".")

    def _labour(self) -> None:
        while True:
            member, task = self._work.get()
            for tried in range(100):
                try:
                    member.agent.handle(task)
                    break
                except Unavailable as error:
                    self.unavailable += 1
                    print(error.sentence, file=sys.stderr, flush=True)
                    time.sleep(pause(tried, 1.0, 60.0, random.random()))


def _await_end(ended: threading.Event) -> None:
    os.read(0, 1)
    ended.set()


def where(task: Task) -> str:
    return f"{task.run} {task.round}"


def main(folder: Path, bundles: Path, threads: int) -> None:
    crowd = Crowd(folder, msgspec.json.decode(bundles.read_bytes(), type=list[Bundle]), threads)
    say: Any = lambda **words: print(msgspec.json.encode(words).decode(), flush=True)  # noqa: E731
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    start = time.monotonic()
    while not crowd.connected and not ended.is_set():
        crowd.turn(0.1)
    say(connected=time.monotonic() - start, devices=len(crowd))
    while not ended.is_set():
        crowd.turn(1.0)
    say(handed=crowd.handed, uploaded=crowd.uploaded, lost=crowd.lost, unavailable=crowd.unavailable)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
