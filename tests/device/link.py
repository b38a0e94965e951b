"""The device's end of a simulated hub, in a folder that FLEETFOLD_SIMULATED names: what MqttLink does over a
broker. It loads no more than that one would."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from fleetfold.bundle import Bundle
from fleetfold.errors import Unavailable
from fleetfold.messages import Answer, Ask, Command, Grant, Presence, Report, Task

PLACE = "FLEETFOLD_SIMULATED"
NAME = "press-7"


def place() -> Path:
    return Path(os.environ[PLACE])


class SimLink:
    """The device's side: what MqttLink does over a broker."""

    broker = "mqtts://simulated:8883"

    def __init__(self, folder: Path) -> None:
        self._folder, self._news = folder, threading.Event()
        self._seen, self._queue, self._taken = b"", list[bytes](), False
        self._looked: tuple[Any, ...] = ()

    @property
    def connected(self) -> bool:
        return not (self._folder / "offline").exists()

    @property
    def why(self) -> str:
        return "" if self.connected else "the cable is out"

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def wake(self) -> None:
        self._news.set()

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._news.wait(0.01) and self._look() == self._looked:
            pass
        self._looked = self._look()  # what changes from here on ends the next wait
        self._news.clear()

    def _look(self) -> tuple[Any, ...]:
        task = self._folder / "task.json"
        return (
            self.connected,
            task.stat().st_mtime_ns if task.exists() else 0,
            os.listdir(self._folder / "commands"),
        )

    def _current(self) -> bytes:
        try:
            return (self._folder / "task.json").read_bytes() if self.connected else self._seen
        except FileNotFoundError:
            return b""

    def tasks(self) -> list[Task]:
        now = self._current()
        if not now or now == self._seen:
            return []
        self._seen, self._taken = now, False
        return [msgspec.json.decode(now, type=Task)]

    def withdrawn(self) -> bool:
        gone = bool(self._seen) and not self._current()
        if gone:
            self._seen = b""
        return gone

    def commands(self) -> list[Command]:
        found = []
        for path in sorted((self._folder / "commands").glob("[0-9]*")) if self.connected else []:
            found.append(msgspec.json.decode(path.read_bytes(), type=Command))
            path.unlink()
        return found

    def forgotten(self) -> bool:
        mark = self._folder / "forgotten"
        there = mark.exists()
        mark.unlink(missing_ok=True)
        return there

    def report(self, report: Report) -> None:
        self._up("report", report)

    def answer(self, answer: Answer) -> None:
        self._up("answer", answer)

    def say(self, presence: Presence) -> None:
        self._up("say", presence)

    def ask(self, ask: Ask, seconds: float) -> Grant:
        self._up("ask", ask)
        raise Unavailable("nobody answers")

    def _up(self, what: str, message: msgspec.Struct) -> None:
        file = os.open(self._folder / "up.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, msgspec.json.encode([what, message]) + b"\n")
        os.close(file)


def link(bundle: Bundle) -> SimLink:
    return SimLink(place())
