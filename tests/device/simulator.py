"""A hub in a folder, and the two ends that a device has of it: its link and its way to objects.

hub.invite(task) ─▶ task.json (retained) ─▶ SimLink ─▶ up.jsonl ─▶ hub.reports()
folder/offline: no link        folder/shut: no objects        FLEETFOLD_SIMULATED names the folder
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fleetfold import layout
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.errors import Unavailable
from fleetfold.fold.tensors import write
from fleetfold.messages import Answer, Ask, Command, Grant, Presence, Report, Task, encode
from fleetfold.ports import fetch
from tests.device.link import NAME, place

APP = """
import os, signal, time
from pathlib import Path
import numpy as np
from fleetfold import Evaluated, Trained

PLACE = Path(os.environ["FLEETFOLD_SIMULATED"])

class Walk:
    def init(self, seed):
        return {"w": np.zeros(50, np.float32)}

    def train(self, model, work):
        with open(PLACE / "trained.log", "a") as log:
            log.write(f"{work.round} {os.getpid()}\\n")
        told = work.settings
        while told.get("hold") and not (PLACE / "go").exists():
            time.sleep(0.005)
        if told.get("eat"):
            eaten = np.ones(told["eat"] // 8)
        if told.get("die"):
            os.kill(os.getpid(), told["die"])
        if told.get("fork"):
            import subprocess, sys
            eat = f"x = b'1' * {told['fork']}; import time; time.sleep(600)"
            subprocess.Popen([sys.executable, "-c", eat])
            time.sleep(600)
        step = np.random.default_rng(work.seed).normal(size=50).astype(np.float32)
        return Trained(tensors={"w": model["w"] * np.float32(0.9) + step}, examples=17)

    def evaluate(self, model, work):
        metrics = {"mean": float(model["w"].mean()), "of": work.settings.get("of", 0)}
        return Evaluated(examples=5, metrics=metrics)

trainer = Walk()
"""


class Hub:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "commands").mkdir()
        self.folder, self.objects = folder, FileObjects(folder / "objects")
        self._commands = 0
        (folder / "app.py").write_text(APP)

    def model(self, value: float = 0.0) -> tuple[str, str, int]:
        """(key, sha256, bytes) of a model whose values are all `value`."""
        data = write({"w": np.full(50, value, np.float32)})
        digest = hashlib.sha256(data).hexdigest()
        self.objects.put(f"models/{digest}", [data])
        return f"models/{digest}", digest, len(data)

    def task(self, round: int = 1, run: str = "r", **changes: Any) -> Task:
        key, digest, size = self.model()
        task = Task(
            run=run, round=round, kind="train", device=NAME, model=key, digest=digest, size=size, most=4096,
            update=layout.update(layout.round(run, round, "train"), NAME), seed=round, deadline=9.0,
        )  # fmt: skip
        return msgspec.structs.replace(task, **changes)

    def invite(self, task: Task) -> Task:
        self._retain(encode(task))
        return task

    def withdraw(self) -> None:
        self._retain(b"")

    def command(self, **fields: Any) -> Command:
        self._commands += 1
        command = Command(**{"id": f"c{self._commands}", "device": NAME, **fields})
        staged = self.folder / "commands" / f".{self._commands:06}"
        staged.write_bytes(encode(command))
        staged.rename(self.folder / "commands" / f"{self._commands:06}-{command.id}")
        return command

    def mark(self, name: str, there: bool = True) -> None:
        """`offline`, `shut`, `forgotten`, `go`."""
        if there:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink()

    def reports(self) -> list[Report]:
        return [msgspec.convert(said, Report) for said in self._said("report")]

    def states(self) -> list[tuple[int, str]]:
        return [(report.round, report.state) for report in self.reports()]

    def answers(self) -> list[Answer]:
        return [msgspec.convert(said, Answer) for said in self._said("answer")]

    def presences(self) -> list[Presence]:
        return [msgspec.convert(said, Presence) for said in self._said("say")]

    def update(self, task: Task) -> bytes:
        return fetch(self.objects, task.update)

    def trained(self) -> list[int]:
        """Rounds, as often as training was begun."""
        log = self.folder / "trained.log"
        return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []

    def trainer(self) -> int:
        """The process that trained last."""
        return int((self.folder / "trained.log").read_text().split()[-1])

    def _said(self, what: str) -> list[Any]:
        log = self.folder / "up.jsonl"
        lines = log.read_bytes().splitlines() if log.exists() else []
        return [said for word, said in map(msgspec.json.decode, lines) if word == what]

    def _retain(self, payload: bytes) -> None:
        staged = self.folder / ".task"
        staged.write_bytes(payload)
        staged.rename(self.folder / "task.json")


class SimTransfer(ObjectTransfer):
    """Objects of the folder, with the cache and the spool that a real one keeps."""

    def __init__(self, home: Path, spent: Callable[[int, int], None]) -> None:
        super().__init__(FileObjects(place() / "objects"))
        self._home, self._spent = home, spent

    def fetch(self, task: Task) -> bytes:
        cached = self._home / "cache" / task.digest
        if cached.exists():
            return cached.read_bytes()
        self._open()
        data = super().fetch(task)
        self._spent(0, len(data))
        if hashlib.sha256(data).hexdigest() == task.digest:
            cached.parent.mkdir(exist_ok=True)
            cached.write_bytes(data)
        return data

    def take(self, address: str, digest: str, size: int) -> bytes:
        self._open()
        return fetch(self._objects, address)

    def put(self, address: str, data: memoryview) -> None:
        self._open()
        self._objects.put(address, [data])

    def deliver(self, task: Task, update: bytes) -> None:
        spooled = self._spooled(task)
        spooled.parent.mkdir(exist_ok=True)
        spooled.with_suffix(".part").write_bytes(update)
        spooled.with_suffix(".part").rename(spooled)
        self._go(task, spooled)

    def delivered(self, task: Task) -> bool:
        spooled = self._spooled(task)
        if spooled.exists():
            self._go(task, spooled)
        self._open()
        return super().delivered(task)

    def _go(self, task: Task, spooled: Path) -> None:
        self._open()
        data = spooled.read_bytes()
        super().deliver(task, data)
        self._spent(len(data), 0)
        spooled.unlink()

    def _spooled(self, task: Task) -> Path:
        return self._home / "spool" / f"{task.run}-{task.round}-{task.kind}.safetensors"

    def _open(self) -> None:
        if (place() / "shut").exists():
            raise Unavailable("the door is shut")


def transfer(
    home: Path,
    ask: Callable[[Ask], Grant],
    wait: Callable[[int], None],
    spent: Callable[[int, int], None],
    progress: Callable[..., None],
) -> SimTransfer:
    return SimTransfer(home, spent)
