"""The device that is tried, as a process group that can be killed as a power cut would, and begun again."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fleetfold.errors import BadConfig, shown

PATIENCE = 10.0
"""Seconds that it may take to leave."""


class Program:
    """`command`: {bundle} in it is the bundle's path, {home} that of a folder which outlives the process."""

    def __init__(self, command: Sequence[str], bundle: Path, home: Path, log: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._words = [word.replace("{bundle}", str(bundle)).replace("{home}", str(home)) for word in command]
        if self._words == list(command) or not any("{bundle}" in word for word in command):
            raise BadConfig(
                "the command does not say where the bundle goes: put {bundle} where its path is to stand",
                next="fleetfold check-device -- bash device.sh {bundle}",
            )
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                raise BadConfig(f"cannot run {self._words[0]}: {error.strerror}") from None

    def left(self) -> str:
        """How it has ended by itself; "" while it runs."""
        code = self._process.poll() if self._process else None
        if code is None:
            return ""
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        words = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"it has ended with {how}" + (f", after it said: {shown(words[-1], 200)}" if words else "")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        """All of it: what it has started dies too."""
        self._signal(number)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
