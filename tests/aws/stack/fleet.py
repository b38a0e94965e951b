"""A fleet on the emulated AWS, by the commands that a person would type; the devices are real processes.

with AwsFleet(aws, folder, app, devices=10) as fleet:
    fleet.begin("--rounds", "5")
    fleet.finished() → the run

What differs from a real account, and is set here: a broker's address and its authority in the bundles, the
object store without TLS, the Python of the functions, which has to be this machine's.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from fleetfold import bundle, layout
from fleetfold.adapters.dynamo import DynamoRecords
from fleetfold.aws.stack import Stack as Deployed
from fleetfold.aws.stack import load
from fleetfold.ledger import Ledger
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Round
from tests.aws.stack import environments
from tests.aws.stack.stack import Stack

_T = TypeVar("_T")
PATIENCE = 300.0
PROGRAM = [str(Path(sys.executable).with_name("fleetfold"))]
NAME, FLEET = "trial", "field"
SHARED = environments.ROOT / "package"
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


class AwsFleet:
    """A stack of `name`, deployed when it is entered, and devices named like those of a run on one machine.
    `settings`: more parameters of the template, NAME=VALUE."""

    def __init__(
        self, aws: Stack, folder: Path, app: Path, devices: int, *, name: str = NAME,
        settings: Sequence[str] = (), started: int | None = None,
    ) -> None:  # fmt: skip
        self.aws, self.home, self.folder, self.app, self.name = aws, folder / "home", folder, app, name
        self.names = [f"device-{index:03}" for index in range(devices)]
        self._settings, self._started = settings, self.names[:started]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("FLEETFOLD_", "AWS_"))}
        plain |= {"OMP_NUM_THREADS": "1"}
        self.devices_environment = plain | {"FLEETFOLD_AGENT_PLAIN": "1"}
        self.environment = plain | aws.environment | {"FLEETFOLD_HOME": str(self.home)}
        self.run = ""
        self.took: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.home.mkdir(exist_ok=True)
        _share(self.home / "aws" / "package")
        self.timed("deploy", "aws", "deploy", *self._deployment)
        self.stack: Deployed = load(self.home, self.name)
        self.table = DynamoRecords(self.aws.client("dynamodb"), self.stack.table)
        self.ledger = Ledger(self.table, alone=False)
        self._hasten()
        if self.names:
            self.timed("enroll", "enroll", *self.names, "--aws", "--stack", self.name)
        for name in self.names:
            self._rewrite(name)
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
            for name in self._processes:
                print(f"--- {name}\n{(self.folder / f'{name}.log').read_text()[-1500:]}")
            for function in self.stack.functions.values():
                print(f"--- {function}\n{self.aws.written(function)[-3000:]}")

    @property
    def _deployment(self) -> list[str]:
        more = [word for setting in self._settings for word in ("--set", setting)]
        return ["--stack", self.name, "--fleet", FLEET, "--python", OWN, "--yes", *more]

    def timed(self, what: str, *words: str, code: int = 0) -> str:
        since = time.monotonic()
        said = self.command(*words, code=code)
        self.took[what] = time.monotonic() - since
        print(f"{what}: {self.took[what]:.1f} s", flush=True)
        return said

    def deploy(self) -> str:
        return self.timed("deploy again", "aws", "deploy", *self._deployment)

    def command(self, *words: str, code: int = 0) -> str:
        """A command of a person's, which ends with that code. → what it says, or what it complains of."""
        done = subprocess.run(
            [*PROGRAM, *words], env=self.environment, capture_output=True, text=True, check=False,
            cwd=self.folder, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def start(self, name: str) -> None:
        index = str(self.names.index(name))
        command = [
            *PROGRAM, "join", str(self.folder / f"{name}.bundle"), "--home", str(self.folder / name),
            "--app", str(self.app), "--index", index, "--count", str(len(self.names)), "--threads", "1",
        ]  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self.devices_environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def begin(self, *settings: str) -> str:
        """Give the stack a run of the app, on all devices if nothing else is said. → its name"""
        there = () if "--available" in settings else ("--available", str(len(self.names)))
        words = ["run", str(self.app), "--aws", "--stack", self.name, "--detach", *there, *settings]
        self.run = self.command(*words).split()[0]
        return self.run

    def state(self) -> Run:
        found = self.ledger.run(self.run)
        assert found is not None
        return found[0]

    def rounds(self) -> list[Round]:
        return self.ledger.rounds(self.run)

    def until(self, found: Callable[[], _T], seconds: float = PATIENCE) -> _T:
        """What `found` finds, as soon as it finds something."""
        give_up = time.monotonic() + seconds
        while not (it := found()):
            assert time.monotonic() < give_up, f"it did not come: {self.state() if self.run else ''}"
            time.sleep(0.1)
        return it

    def online(self) -> list[str]:
        """Devices that the registry has as connected."""
        return [one.name for one in self.ledger.devices(self.names) if one.says and one.says.online]

    def finished(self, ending: RunState = RunState.DONE) -> Run:
        self.until(lambda: self.state().state is not RunState.RUNNING)
        found = self.state()
        assert found.state is ending, found.reason
        return found

    def model(self) -> bytes:
        key = layout.model(self.run, self.state().version)
        found: bytes = self.aws.client("s3").get_object(Bucket=self.stack.bucket, Key=key)["Body"].read()
        return found

    def executions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.aws.client("stepfunctions").list_executions(
            stateMachineArn=self.stack.machine
        )["executions"]
        return found

    def dead(self) -> dict[str, int]:
        """How many messages were laid aside, by queue."""
        sqs, found = self.aws.client("sqs"), dict[str, int]()
        for name in ("ArrivalsDead", "SaidDead"):
            url = self.stack.outputs[name]
            got = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
            found[name] = int(got["Attributes"]["ApproximateNumberOfMessages"])
        return found

    def _rewrite(self, name: str) -> None:
        """The bundle says Amazon's roots and ports; the emulator's are others."""
        path = next(p for p in (self.folder / f"{name}.bundle", self.home / f"{name}.bundle") if p.exists())
        own = bundle.load(path)
        core = self.aws.core
        fresh = replace(own, brokers=(core.address,), authority=core.authority.pem)
        with suppress(FileNotFoundError):
            path.unlink()
        bundle.save(fresh, self.folder / f"{name}.bundle")

    def _hasten(self) -> None:
        """A message that a function has not taken in comes again after the queue's timeout, minutes: here
        after seconds, for a test's sake."""
        for name in ("Arrivals", "Said"):
            self.aws.client("sqs").set_queue_attributes(
                QueueUrl=self.stack.outputs[name], Attributes={"VisibilityTimeout": "5"}
            )


def _share(place: Path) -> None:
    """The functions' libraries, which pip takes a while to fetch, are the same for all tests."""
    place.parent.mkdir(parents=True, exist_ok=True)
    SHARED.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(SHARED)
