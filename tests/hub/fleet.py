"""A whole fleet on this machine, every part a real process: the hub, its broker, the agents, over mutual TLS.

with Fleet(folder, devices=3) as fleet:
    fleet.begin("examples/digits-numpy", rounds=5)
    fleet.kill("agent-1"), fleet.start("agent-1")
    fleet.finished() → the run
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from msgspec.structs import replace

from fleetfold import layout
from fleetfold.bundle import save
from fleetfold.hub import authority
from fleetfold.hub.enrol import enroll
from fleetfold.ledger import Ledger
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Round
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place
from tests.hub.conftest import free_port

_T = TypeVar("_T")
PATIENCE = 180.0
PROGRAM = [str(Path(sys.executable).with_name("fleetfold"))]


class Fleet:
    """`devices` agents named like those of a run on one machine. `through`: a port of the hub's → where
    agents go instead: the weather in between. `started`: so many join, the others only belong. `host`: what
    they know the hub by. `objects`: the store of its runs."""

    def __init__(
        self, folder: Path, app: Path, devices: int, *, seconds: str = "60s",
        through: Callable[[int], int] = lambda port: port, agent: Sequence[str] = (),
        host: str = "localhost", objects: str = "", started: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.home, self.folder, self._app, self._agent = folder / "home", folder, app, agent
        self.names = [f"device-{index:03}" for index in range(devices)]
        door = free_port()
        self.site = authority.Site(
            hosts=(host,), listen="127.0.0.1", mqtt=free_port(), door=door, websockets=free_port(),
            door_url=f"https://{host}:{through(door)}", objects=objects,
        )  # fmt: skip
        self.brokers = (f"mqtts://{host}:{through(self.site.mqtt)}",)
        authority.create(wiring.folder(self.home), self.site)
        records = wiring.records(self.home)
        for name in self.names:
            bundle = enroll(records, wiring.folder(self.home), name, 1_000.0)
            save(replace(bundle, brokers=self.brokers), folder / f"{name}.bundle")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("FLEETFOLD_")}
        self.environment |= {"FLEETFOLD_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        self.environment |= environment or {}
        self._started = self.names[:started]
        self.run = ""

    def __enter__(self) -> Self:
        self.start("hub")
        for name in self._started:
            self.start(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if error is not None:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}")

    def start(self, name: str, *words: str, **environment: str) -> None:
        """The hub, or the agent of a device. `words`, `environment`: more for it."""
        command = [*PROGRAM, "hub", *words]
        if name != "hub":
            index = str(self.names.index(name))
            command = [
                *PROGRAM, "join", str(self.folder / f"{name}.bundle"),
                "--home", str(self.folder / name), "--app", str(self._app),
                "--index", index, "--count", str(len(self.names)), "--threads", "1", *self._agent, *words,
            ]  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """As a power cut would: the hub, the agent of a device, or "broker"."""
        if name == "broker":
            os.kill(int((wiring.folder(self.home) / "broker.lock").read_text()), signal.SIGKILL)
            return
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self, name: str) -> None:
        self._processes[name].terminate()
        self._processes[name].wait(30)

    def command(self, *words: str, code: int = 0) -> str:
        """A command of the hub's, which ends with that code. → what it says, or what it complains of."""
        done = subprocess.run(
            [*PROGRAM, *words], env=self.environment, capture_output=True, text=True, check=False,
            cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def begin(self, *settings: str, app: Path | None = None) -> str:
        """Give the hub a run of the app, on all devices if nothing else is said. → its name"""
        there = () if "--available" in settings else ("--available", str(len(self.names)))
        said = self.command("run", str(app or self._app), "--hub", "--detach", *there, *settings)
        self.run = said.split()[0]
        return self.run

    def is_online(self, name: str) -> bool:
        (device,) = Ledger(wiring.records(self.home)).devices([name])
        return device.says is not None and device.says.online

    @property
    def place(self) -> Place:
        return Place(self.home, self.run)

    def state(self, run: str = "") -> Run:
        found = wiring.ledger(Place(self.home, run or self.run)).run(run or self.run)
        assert found is not None
        return found[0]

    def rounds(self, run: str = "") -> list[Round]:
        return wiring.ledger(Place(self.home, run or self.run)).rounds(run or self.run)

    def until(self, found: Callable[[], _T], seconds: float = PATIENCE) -> _T:
        """What `found` finds, as soon as it finds something."""
        give_up = time.monotonic() + seconds
        while not (it := found()):
            assert time.monotonic() < give_up, f"it did not come: {self.state() if self.run else ''}"
            time.sleep(0.02)
        return it

    def is_uploading(self, name: str) -> bool:
        """Whether the device is at its upload, and part of some update is at the door."""
        told = (self.folder / name / "state.json").read_bytes()
        staging = self.home / "staging"
        return b"delivering" in told and any(path.stat().st_size for path in staging.iterdir())

    def finished(self, run: str = "", ending: RunState = RunState.DONE) -> Run:
        """The run, when it has ended like that."""
        self.until(lambda: self.state(run).state is not RunState.RUNNING)
        found = self.state(run)
        assert found.state is ending, found.reason
        return found

    def model(self) -> bytes:
        return (self.home / layout.model(self.run, self.state().version)).read_bytes()


def alone(folder: Path, app: Path, devices: int, *settings: str) -> tuple[str, bytes]:
    """The same run on simulated devices of one machine. → (what it said, its model)"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLEETFOLD_")}
    environment |= {"FLEETFOLD_HOME": str(folder / "alone"), "OMP_NUM_THREADS": "1"}
    command = [*PROGRAM, "run", str(app), "--devices", str(devices), "--json", *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    models = sorted((folder / "alone" / "runs").glob("*/models/??????.safetensors"))
    return done.stdout, models[-1].read_bytes()
