"""The worker processes of a run: started, listened to, started again when they die, ended together."""

import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Self

import msgspec
from msgspec.structs import replace

from fleetfold.errors import BadConfig, Unavailable
from fleetfold.local.worker import Hint, Orders
from fleetfold.messages import Task
from fleetfold.ports import Control
from fleetfold.wiring.faults import FAULTS

DEATHS = 12
"""Deaths of workers in a row, with nothing reported in between, after which the run stops."""


class Workers:
    """`orders` for worker 0; the others differ in their number. `log` takes what they print."""

    def __init__(self, orders: Orders, log: IO[bytes]) -> None:
        self._orders, self._log = orders, log
        self._selector = selectors.DefaultSelector()
        self._running: dict[socket.socket, tuple[int, subprocess.Popen[bytes]]] = {}
        self._heard: dict[socket.socket, bytes] = {}
        self._deaths = 0
        self.ready = 0

    def __enter__(self) -> Self:
        for number in range(self._orders.workers):
            self._start(number, dict(os.environ))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel, (_, process) in self._running.items():
            channel.close()
            process.kill()
        for _, process in self._running.values():
            process.wait()
        self._selector.close()

    def look(self) -> None:
        """Tell all workers that there may be tasks."""
        for channel in self._running:
            try:
                channel.send(b"l", socket.MSG_DONTWAIT)
            except (BlockingIOError, OSError):
                continue  # it has hints enough, or is dead, which `wait` will see

    def wait(self, seconds: float) -> None:
        """Until some worker says something, or `seconds` have passed. A dead worker is started again.

        Raises BadConfig or Unavailable when a worker says that it cannot go on, or workers keep dying.
        """
        for key, _ in self._selector.select(max(0.0, seconds)):
            channel = key.fileobj
            assert isinstance(channel, socket.socket)
            try:
                said = channel.recv(1 << 16)
            except ConnectionError:
                said = b""
            if not said:
                self._bury(channel)
                continue
            *lines, self._heard[channel] = (self._heard[channel] + said).split(b"\n")
            for line in lines:
                self._hear(msgspec.json.decode(line, type=Hint))

    def _hear(self, hint: Hint) -> None:
        if hint.what == "error":
            raise (BadConfig if hint.users else Unavailable)(hint.sentence, next=hint.next)
        if hint.what == "ready":
            self.ready += 1
        else:
            self._deaths = 0

    def _start(self, number: int, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        orders = replace(self._orders, worker=number, socket=theirs.fileno())
        process = subprocess.Popen(
            [sys.executable, "-m", "fleetfold.local.worker", msgspec.json.encode(orders).decode()],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=environment, start_new_session=True,  # a Ctrl-C is the coordinator's to hear
        )  # fmt: skip
        theirs.close()
        self._running[ours], self._heard[ours] = (number, process), b""
        self._selector.register(ours, selectors.EVENT_READ)

    def _bury(self, channel: socket.socket) -> None:
        self._selector.unregister(channel)
        number, process = self._running.pop(channel)
        channel.close()
        code = process.wait()
        self._deaths += 1
        if self._deaths >= DEATHS:
            raise Unavailable(
                f"worker {number} keeps dying (exit code {code})", next=f"read {self._log.name}"
            )
        # A fault that was asked for strikes once: what follows it is what is tested.
        self._start(number, {k: v for k, v in os.environ.items() if k != FAULTS})


class Hinting:
    """A coordinator's end of the bus that tells the workers when there are tasks."""

    def __init__(self, control: Control, workers: Workers) -> None:
        self._control, self._workers = control, workers
        self.letters, self.acknowledge, self.withdraw = control.letters, control.acknowledge, control.withdraw

    def invite(self, tasks: Sequence[Task]) -> None:
        self._control.invite(tasks)
        self._workers.look()
