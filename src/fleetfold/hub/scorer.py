"""Scores global models on the user's own test set, in a process of its own: the hub needs no PyTorch.

hub ──length, model file──▶ scorer: the app's trainer, kept warm ──one line of JSON──▶ hub
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import msgspec
from msgspec import Struct

from fleetfold.agent.app import App, find_app, load_trainer, tester
from fleetfold.errors import BadConfig, FleetfoldError
from fleetfold.messages import Metrics

LENGTH = 8
"""Bytes that say how long the model file is, little-endian."""


class Said(Struct, frozen=True):
    """A scorer's line: metrics, or why there are none. `ready`: whether the app has a test set."""

    ready: bool | None = None
    metrics: Metrics = {}
    error: str = ""
    next: str = ""


class Scorer:
    """`score` is the coordinator's `Test`; it starts the process when it is first asked."""

    def __init__(self, app: str, log: IO[bytes]) -> None:
        self._app, self._log = app, log
        self._process: subprocess.Popen[bytes] | None = None
        self._tests = False

    def score(self, model: bytes) -> Metrics:
        """Raises BadConfig for what the user's code raises. A process that died since is started again."""
        if self._process is not None and self._tests and self._process.poll() is not None:
            self.close()
        process = self._process or self._started()
        if not self._tests:
            return {}
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: `_said` tells
            process.stdin.write(len(model).to_bytes(LENGTH, "little"))
            process.stdin.write(model)
            process.stdin.flush()
        return self._said(process).metrics

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # of what nobody has read
                        pipe.close()
            self._process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "fleetfold.hub.scorer", self._app]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        self._tests = bool(self._said(self._process).ready)
        return self._process

    def _said(self, process: "subprocess.Popen[bytes]") -> Said:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self.close()
            raise BadConfig(
                f"{self._app}: the process that scores models has died", next=f"read {self._log.name}"
            )
        said = msgspec.json.decode(line, type=Said)
        if said.error:
            self.close()
            raise BadConfig(said.error, next=said.next)
        return said


def main(arguments: Sequence[str]) -> None:
    said, heard = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what the app prints, by whatever way, is no answer

    def say(line: Said) -> None:
        said.write(msgspec.json.encode(line) + b"\n")
        said.flush()

    try:
        app: App = find_app(arguments[0])
        test = tester(app, load_trainer(app))
        say(Said(ready=test is not None))
        while test and (length := heard.read(LENGTH)):
            say(Said(metrics=test(heard.read(int.from_bytes(length, "little")))))
    except FleetfoldError as error:
        say(Said(error=error.sentence, next=error.next))


if __name__ == "__main__":
    main(sys.argv[1:])
