"""Keeps the SuperNodes of a bridge running: started by the bridge, and alive for a while when that is not.

    bridge ──starts, watches──▶ keeper ──▶ SuperNode, SuperNode, …   plan.json ─▶ keeper ─▶ standing.json

A SuperNode that ended is started again, after a pause by chance. Why they outlive a bridge that is killed:
what a SuperLink has given to a SuperNode it gives to no other, nor to that one's successor.
"""

import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Literal

import msgspec
from msgspec import Struct

from fleetfold.adapters.lock import is_locked
from fleetfold.flower.bridge.nodes import KEEPER, LOCK, PLAN, PORT, Node, Plan
from fleetfold.ports import pause

STANDING = "standing.json"
LOOK = 0.25
"""Seconds between two looks."""
GIVEN_UP = (75.0, 90.0)
"""Seconds after which a SuperNode that was killed is started again, at least and at most: by then the
SuperLink has given it up (it waits 60), and told the app. Any sooner, the app waits for a whole TTL."""
TOLD = 8.0
"""Seconds before one that ended by itself is started again, at least: the app has asked meanwhile."""
MOST = 60.0
"""Seconds between two starts of one that does not come up, at most."""
COUNT = 2.0
"""Seconds between two looks at what a SuperNode has started."""
ENDING = 15.0
"""Seconds that a SuperNode may take to leave."""
LOG = 16 << 20
"""Bytes of a SuperNode's log; then it begins anew."""
STARTED = re.compile(r"SuperNode ID: (\d+)|Received: \w+ message")
"""What a SuperNode says when the SuperLink has let it in; older ones only when they are sent something."""
CODE = re.compile(r"\[code: \d+\] (.+)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
State = Literal["starting", "connected", "waiting"]


class Standing(Struct, frozen=True, kw_only=True):
    """How a SuperNode fares. `node`: what the SuperLink calls it; `why`: what its last end was; `starts`: how
    often it was started; `at`: since when, or when it is started again, in seconds since the epoch."""

    device: str
    state: State
    at: float
    node: str = ""
    why: str = ""
    starts: int = 0
    pid: int = 0


class Watched:
    """One SuperNode, through all its starts."""

    def __init__(self, node: Node, clock: float) -> None:
        self.node, self._read, self._troubles, self._counted = node, 0, 0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self.standing = Standing(device=node.device, state="waiting", at=clock)

    def look(self, now: float) -> None:
        """Start it if it is time, hear what it says, see whether it has ended."""
        if self._process is None:
            if now >= self.standing.at:
                self._start(now)
            return
        self._hear(now)
        code = self._process.poll()
        if code is not None:
            self._ended(code, now)
        elif self.standing.state == "connected" and now - self._counted > COUNT:
            self._counted = now
            if not _has_children(self._process.pid):  # what runs its apps was killed, and it does not look
                self.end(signal.SIGTERM)

    def _start(self, now: float) -> None:
        with open(self.node.log, "ab") as log:
            self._read = log.tell()
            if self._read > LOG:
                log.truncate(0)
                self._read = 0
            self._process = _started(self.node, log)
        self.standing = msgspec.structs.replace(
            self.standing, state="starting", at=now, node="", starts=self.standing.starts + 1,
            pid=self._process.pid,
        )  # fmt: skip

    def _hear(self, now: float) -> None:
        if self.standing.state == "starting" and (found := STARTED.search(self._said())):
            self._troubles = 0
            self.standing = msgspec.structs.replace(
                self.standing, state="connected", at=now, node=found[1] or "", why=""
            )

    def _said(self) -> str:
        with open(self.node.log, "rb") as log:
            log.seek(self._read)
            text = str(log.read(1 << 20), errors="replace")
        return str(COLOUR.sub("", text))

    def _ended(self, code: int, now: float) -> None:
        """By its own will it has taken leave of the SuperLink, killed it has not."""
        was_in, said = self.standing.state == "connected", self._said()
        self.end(signal.SIGKILL)  # what it had started, if it was killed
        self._process = None
        if was_in and code < 0:
            seconds = random.uniform(*GIVEN_UP)
        else:
            seconds = pause(self._troubles, 2.0, MOST, random.random()) + (TOLD if was_in else 1.0)
        self._troubles += 1
        self.standing = msgspec.structs.replace(
            self.standing, state="waiting", at=now + seconds, node="", pid=0, why=reason(said, code)
        )

    def end(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def gone(self) -> bool:
        return self._process is None or self._process.poll() is not None


def reason(said: str, code: int) -> str:
    """Why a SuperNode ended, from its last words."""
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    if "Failed to activate SuperNode" in said:
        return "the SuperLink does not know its key, or has not yet given up the one before"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    coded = CODE.findall(said)
    wrong = [line for line in lines if "rror" in line and "Exit Code" not in line] or lines[-1:]
    why: str = next(iter([*coded[-1:], *wrong[-1:], f"it ended with code {code}"]))
    return why[:300]


def _started(node: Node, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    port = str(_free_port())
    command = [word.replace(PORT, port) for word in node.command]
    with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return subprocess.Popen(
        [*with_us, *command], env={**os.environ, **node.environment}, stdin=subprocess.DEVNULL, stdout=log,
        stderr=log, start_new_session=True,
    )  # fmt: skip


def _has_children(pid: int) -> bool:
    """Whether it has any that live; True where that cannot be seen."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(" Z " not in Path(f"/proc/{child}/stat").read_text() for child in children)
    except OSError:
        return True


def _free_port() -> int:
    """Below those that the system gives to whoever connects: those may be taken any moment."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


# The process


def keep(folder: Path) -> None:
    """Until it is told to end, or there has been no bridge for the plan's grace."""
    with (folder / KEEPER).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # there is one
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _keep(folder, msgspec.json.decode((folder / PLAN).read_bytes(), type=Plan))


def _keep(folder: Path, plan: Plan) -> None:
    ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin = time.time() + (TOLD if _end_those_before(folder) else 0.0)
    watched = [Watched(node, begin) for node in plan.nodes]
    told: list[Standing] = []
    seen = time.monotonic()
    try:
        while not ending:
            for each in watched:
                each.look(time.time())
            if (standings := [each.standing for each in watched]) != told:
                _tell(folder, standings)
                told = standings
            if is_locked(folder / LOCK):
                seen = time.monotonic()
            ending = ending or time.monotonic() - seen > plan.grace
            time.sleep(LOOK)
    finally:
        _leave(watched)
        (folder / STANDING).unlink(missing_ok=True)


def _end_those_before(folder: Path) -> bool:
    """SuperNodes whose keeper was killed, where the kernel has not ended them with it. → whether there were
    some: what they were at is then lost, and the SuperLink has to see that before they come again."""
    left = standings(folder)
    for standing in left.values():
        with suppress(OSError):
            if standing.pid and b"supernode" in Path(f"/proc/{standing.pid}/cmdline").read_bytes():
                os.killpg(standing.pid, signal.SIGTERM)
    return bool(left)


def _leave(watched: list[Watched]) -> None:
    for each in watched:
        each.end(signal.SIGTERM)
    give_up = time.monotonic() + ENDING
    while not all(each.gone() for each in watched) and time.monotonic() < give_up:
        time.sleep(0.05)
    for each in watched:
        each.end(signal.SIGKILL)  # the executor and the app that a SuperNode started, too


def _tell(folder: Path, standings: list[Standing]) -> None:
    staged = folder / f".{STANDING}"
    staged.write_bytes(msgspec.json.encode(standings))
    staged.replace(folder / STANDING)


def standings(folder: Path) -> Mapping[str, Standing]:
    """How the SuperNodes fare, by device; nothing where no keeper runs."""
    try:
        found = msgspec.json.decode((folder / STANDING).read_bytes(), type=list[Standing])
    except (OSError, msgspec.MsgspecError):
        return {}
    return {standing.device: standing for standing in found}


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
