"""The real agent in processes of its own, as a person or systemd starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fleetfold import bundle
from fleetfold.bundle import Bundle
from fleetfold.wiring.faults import FAULTS
from tests.device.link import NAME
from tests.device.simulator import Hub

Shell = subprocess.CompletedProcess[str]
SIMULATED = ["--link", "tests.device.link:link", "--transfer", "tests.device.simulator:transfer"]
PATIENCE = 60.0
"""Seconds after which a test that waits for something has failed."""


def fleetfold(*arguments: str) -> Shell:
    return subprocess.run(
        [sys.executable, "-m", "fleetfold", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def until(holds: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, what()
        time.sleep(0.01)


class Agent:
    def __init__(self, hub: Hub, home: Path, identity: tuple[str, str]) -> None:
        self.hub, self.home = hub, home
        self.bundle = home.parent / "press-7.bundle"
        certificate, key = identity
        bundle.save(
            Bundle(fleet="main", device=NAME, brokers=("mqtts://simulated:8883",), authority=certificate,
                   certificate=certificate, key=key),
            self.bundle,
        )  # fmt: skip
        self._log = home.parent / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def join(self, *flags: str, faults: str = "") -> None:
        """Start it; the first time with its bundle."""
        new = (
            []
            if (self.home / "settings.json").exists()
            else [str(self.bundle), "--app", str(self.hub.folder)]
        )
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fleetfold", "join", *new, *SIMULATED, *flags],
                env={**os.environ, FAULTS: faults}, stdout=log, stderr=log,
            )  # fmt: skip

    def log(self) -> str:
        return self._log.read_text()

    def until(self, holds: Callable[[], object]) -> None:
        def alive_and() -> object:
            found = holds()
            code = self.process.poll() if self.process else None
            assert found or code in (None, -signal.SIGKILL), self.log()
            return found

        until(alive_and, lambda: (self.log(), self.hub.states()))

    def settled(self, count: int = 1) -> None:
        self.until(
            lambda: len([s for _, s in self.hub.states() if s not in ("accepted", "progress")]) >= count
        )

    def leave(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
