"""The worker process as its supervisor has it: started when there is work, heard, measured, ended.

    start ─▶ do ─▶ lines … ─▶ Done ─▶ (warm) ─▶ do …        end: SIGTERM, SIGKILL to all of its group

A thread hears it, so that what it asks is answered while the supervisor waits; what it says is taken by
`lines`, and only as long as it is the child of now.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fleetfold.device.lines import (
    FROM_WORKER,
    Asked,
    Denied,
    Do,
    FromWorker,
    Granted,
    Orders,
    ToWorker,
    line,
    listen,
)
from fleetfold.errors import Unavailable
from fleetfold.messages import Ask, Grant
from fleetfold.wiring.faults import FAULTS

GRACE = 3.0
"""Seconds between a SIGTERM and a SIGKILL."""
ANSWER = 30.0
"""Seconds that the hub has to answer what a worker asks."""


class Child:
    """ask: passes on what the worker asks. wake: is called from another thread when it has said something."""

    def __init__(self, orders: Orders, ask: Callable[[Ask, float], Grant], wake: Callable[[], None]) -> None:
        self._orders, self._ask, self._wake = orders, ask, wake
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._said: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self._environment = dict(os.environ)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def do(self, work: Do) -> None:
        """Begin it, in a process that is started if need be."""
        if self._process is None:
            self._start()
        self.send(work)

    def send(self, message: ToWorker) -> None:
        if self._channel is not None:
            with suppress(OSError):  # it is dead, which `death` will see
                self._channel.sendall(line(message))

    def lines(self) -> list[FromWorker]:
        """What it has said since the last call."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._said.get_nowait())
        return found

    def death(self) -> str:
        """How it died, if it did: to be asked before `lines`, which then have its last words."""
        if self._process is None or self._process.poll() is None:
            return ""
        code = self._process.returncode
        self.end()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """End it, and whatever it has started; nothing of it is left on return."""
        process, channel = self._process, self._channel
        if process is None or channel is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        channel.close()
        self._process = self._channel = None

    def memory(self) -> int:
        """Bytes resident of the process and all that it has started."""
        return sum(resident for resident, _ in self._group())

    def cpu(self) -> float:
        """Seconds of processor that they have taken."""
        return sum(seconds for _, seconds in self._group())

    def _group(self) -> list[tuple[int, float]]:
        return [] if self._process is None else group(self._process.pid)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        orders = replace(self._orders, socket=theirs.fileno())
        environment = dict(self._environment)
        if orders.terms.threads:
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment[name] = str(orders.terms.threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fleetfold.device.worker", msgspec.json.encode(orders).decode()],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(),
            env=environment, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        # A fault that was asked for strikes once: what follows it is what is tested.
        self._environment.pop(FAULTS, None)
        self._channel = ours
        self._said = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, args=(ours, self._said), daemon=True)
        self._listener.start()

    def _listen(self, channel: socket.socket, said: "queue.SimpleQueue[FromWorker]") -> None:
        def hear(message: FromWorker) -> None:
            if isinstance(message, Asked):
                self._pass_on(message.ask, channel)
            else:
                said.put(message)
                self._wake()

        listen(channel.recv, FROM_WORKER, hear)
        self._wake()

    def _pass_on(self, ask: Ask, channel: socket.socket) -> None:
        answer: ToWorker
        try:
            answer = Granted(self._ask(ask, ANSWER))
        except Unavailable as error:
            answer = Denied(error.sentence)
        with suppress(OSError):
            channel.sendall(line(answer))


def group(leader: int) -> list[tuple[int, float]]:
    """(bytes resident, seconds of processor) of each process of a group."""
    found = []
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[2]) == leader:  # counted from behind the name: state, parent, group …
            found.append((int(words[21]) * page, (int(words[11]) + int(words[12])) / tick))
    return found
