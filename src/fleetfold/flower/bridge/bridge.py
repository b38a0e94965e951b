"""An existing SuperLink's SuperNodes, whose work is done by devices of ours: the process in the middle.

    SuperLink ⇄ SuperNode ─▶ app ─Forward─▶ ┌ bridge ┐ ─▶ post ─▶ an exchange of one message ─▶ device
                             app ◀──Back─── └────────┘ ◀─ post ◀─ its answer ◀───────────────── device

It waits for nobody without an end: a message's time is over when its app says so. Killed, it goes on where it
was: SuperNodes and apps live on (keeper), the apps ask again, and the post finds what was answered.
"""

import fcntl
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.adapters.lock import is_locked
from fleetfold.errors import BadConfig, FleetfoldError, Unavailable, blame
from fleetfold.flower.bridge.keeper import Standing, standings
from fleetfold.flower.bridge.lines import FORWARD, LINE, SPOOL, Back, Forward, failed, line, listening
from fleetfold.flower.bridge.nodes import KEEPER, LOCK, PLAN, Plan
from fleetfold.flower.private import RAISED, UNAVAILABLE
from fleetfold.messages import Envelope
from fleetfold.ports import pause

LOOK = 0.25
"""Seconds between two looks at SuperNodes and answers."""
PATIENCE = 20.0
"""Seconds that the keeper may take to leave, or the bridge before this one."""


class Post(Protocol):
    """The way to the devices and back. The same message may be taken several times: it is one exchange."""

    def take(self, forward: Forward) -> None:
        """Send it, or go on with it. Raises BadConfig, BadUpdate, Unavailable."""

    def step(self) -> float:
        """Do what can be done. → when to look again, in seconds since the epoch."""

    def back(self, forward: Forward) -> Back | None:
        """Its answer, or why there is none; None: not yet."""

    def close(self) -> None:
        """The bridge ends, by a person's will."""


class Row(Struct, frozen=True, kw_only=True):
    """How a device fares, for people. `doing`: the message that it is at, since `since`; `forwarded` and
    `failed`: messages in this process's time."""

    device: str
    standing: Standing | None
    doing: str = ""
    since: float = 0.0
    forwarded: int = 0
    failed: int = 0
    why: str = ""


class _App:
    """A connection of an app that waits for its answer."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.said = connection, b""
        self.forward: Forward | None = None


class Bridge:
    """`post`: opened by this process, once it has the bridge to itself."""

    def __init__(
        self, folder: Path, plan: Plan, post: Callable[[], Post], log: Callable[[str], None]
    ) -> None:
        self._folder, self._plan, self._open, self._log = folder, plan, post, log
        self._stopping = False
        self._keeper: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._apps: list[_App] = []
        self._rows = {node.device: Row(device=node.device, standing=None) for node in plan.nodes}
        self._troubles, self._said = 0, ""

    def stop(self) -> None:
        self._stopping = True

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def serve(self, watch: Callable[[Sequence[Row]], None]) -> None:
        """Until `stop`. Ends what it has started. Raises BadConfig if a bridge is there already."""
        with ExitStack() as stack:
            stack.enter_context(_sole(self._folder))
            self._post = self._open()
            listener = stack.enter_context(listening(self._folder))
            self._selector.register(listener, selectors.EVENT_READ)
            stack.callback(self._selector.close)
            stack.callback(self._leave)
            self._adopt()
            while not self._stopping:
                self._turn()
                watch(self.rows)

    # One turn

    def _turn(self) -> None:
        seconds = LOOK
        try:
            seconds = min(LOOK, max(0.0, self._post.step() - time.time()))
            self._troubles, saying = 0, ""
        except Exception as error:  # noqa: BLE001 - whatever stands in a run's way, the others have a bridge
            saying, seconds = _told(error), pause(self._troubles, 0.1, 5.0, 0.7)
            self._troubles += 1
        self._answer()
        if saying and saying != self._said:
            self._log(saying)
        self._said = saying
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._accept(key.fileobj)  # type: ignore[arg-type]
            else:
                self._read(key.data)
        self._supervise()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it has left again
        connection.setblocking(False)
        app = _App(connection)
        self._apps.append(app)
        self._selector.register(connection, selectors.EVENT_READ, app)

    def _read(self, app: _App) -> None:
        """What an app says, up to its one line; or that it has left."""
        try:
            part = app.connection.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        app.said += part
        if not part or len(app.said) > LINE:
            self._forget(app)
        elif app.forward is None and app.said.endswith(b"\n"):
            self._take(app)

    def _take(self, app: _App) -> None:
        try:
            forward = app.forward = FORWARD.decode(app.said)
        except msgspec.MsgspecError as error:
            self._log(f"an app said what is no message: {error}")
            self._forget(app)
            return
        row = self._rows.get(forward.device)
        if row is None:
            self._reply(app, failed(forward, f"{forward.device} is not behind this bridge", UNAVAILABLE))
            return
        if not row.doing:
            row = replace(row, doing=_doing(forward.message), since=time.time())
        self._rows[forward.device] = row
        try:
            self._post.take(forward)
        except Unavailable as error:
            self._log(f"{forward.device}: {error.sentence}")
            self._forget(app)  # it asks again
        except Exception as error:  # noqa: BLE001 - one message's fault must not end the bridge
            self._reply(app, failed(forward, _told(error), RAISED))

    def _answer(self) -> None:
        """Those whose answers have come, or will not come."""
        for app in [app for app in self._apps if app.forward]:
            assert app.forward is not None
            try:
                back = self._post.back(app.forward)
            except Unavailable:
                continue  # what stands in its run's way, `step` has said
            except Exception as error:  # noqa: BLE001 - one message's fault must not end the bridge
                back = failed(app.forward, _told(error), RAISED)
            if back is not None:
                self._reply(app, back)

    def _reply(self, app: _App, back: Back) -> None:
        """Nobody asks for what was answered: the content's file goes."""
        assert app.forward is not None
        with suppress(OSError):
            if Path(app.forward.file).parent == self._folder / SPOOL:
                os.unlink(app.forward.file)
        row, error = self._rows.get(app.forward.device), back.message.error
        if row is not None:
            row = replace(row, doing="", since=time.time(), forwarded=row.forwarded + 1)
            if error:
                row = replace(row, failed=row.failed + 1, why=error[1])
                self._log(f"{row.device}: {error[1]}")
            self._rows[row.device] = row
        with suppress(OSError):
            app.connection.settimeout(5.0)
            app.connection.sendall(line(back))
        self._forget(app)

    def _forget(self, app: _App) -> None:
        self._selector.unregister(app.connection)
        app.connection.close()
        self._apps.remove(app)
        still = any(
            each.forward and app.forward and each.forward.device == app.forward.device for each in self._apps
        )
        if app.forward and not still and (row := self._rows.get(app.forward.device)):
            self._rows[row.device] = replace(row, doing="")

    # The keeper, and through it the SuperNodes

    def _adopt(self) -> None:
        """Go on with the SuperNodes of a bridge that was killed, if they are those that are wanted."""
        folder = self._folder
        if is_locked(folder / KEEPER):
            before = msgspec.json.decode((folder / PLAN).read_bytes(), type=Plan)
            if before.commands == self._plan.commands:
                self._log("the SuperNodes of the bridge before are still there")
                return
            self._end_keeper()
        (folder / PLAN).write_bytes(msgspec.json.encode(self._plan))
        self._start_keeper()

    def _start_keeper(self) -> None:
        with (self._folder / "keeper.log").open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "fleetfold.flower.bridge.keeper", str(self._folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _supervise(self) -> None:
        if not is_locked(self._folder / KEEPER) and (self._keeper is None or self._keeper.poll() is not None):
            if self._keeper is not None:
                self._log("the keeper of the SuperNodes has died; it is started again")
            self._start_keeper()
        for device, standing in standings(self._folder).items():
            row = self._rows.get(device)
            if row is None or row.standing == standing:
                continue
            if standing.why and standing.state == "waiting":
                self._log(f"{device}: its SuperNode ended: {standing.why}")
            elif standing.state == "connected":
                called = f", as {standing.node}" if standing.node else ""
                self._log(f"{device}: its SuperNode is connected{called}")
            self._rows[device] = replace(row, standing=standing)

    def _leave(self) -> None:
        for app in list(self._apps):
            self._forget(app)
        self._end_keeper()
        self._post.close()
        shutil.rmtree(self._folder / SPOOL, ignore_errors=True)
        (self._folder / SPOOL).mkdir(exist_ok=True)

    def _end_keeper(self) -> None:
        lock, give_up = self._folder / KEEPER, time.monotonic() + PATIENCE
        while is_locked(lock) and time.monotonic() < give_up:
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(lock.read_text()), signal.SIGTERM)
            time.sleep(0.1)
        if self._keeper is not None:
            with suppress(subprocess.TimeoutExpired):
                self._keeper.wait(1)


def _told(error: Exception) -> str:
    known = isinstance(error, FleetfoldError)
    return error.sentence if known else f"a fault of the bridge itself: {blame(error)}"  # type: ignore[attr-defined]


def _doing(message: Envelope) -> str:
    return message.type + (f" of {message.group}" if message.group else "")


@contextmanager
def _sole(folder: Path) -> Iterator[None]:
    """Be the only bridge of that folder. Raises BadConfig."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    give_up = time.monotonic() + 1.0
    with (folder / LOCK).open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # perhaps only somebody who looks whether it is held
                if time.monotonic() > give_up:
                    lock.seek(0)
                    pid = lock.read().strip() or "?"
                    raise BadConfig(
                        f"a bridge to this SuperLink runs already, as process {pid}", next=f"kill {pid}"
                    ) from None
                time.sleep(0.02)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
