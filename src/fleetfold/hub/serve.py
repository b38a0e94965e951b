"""The hub: a broker, a door, a bus, and the coordinator of whichever run is first in the queue: one process.

    devices ⇄ broker ⇄ bus ─┐                              ┌─▶ registry, status, answers
    devices ⇄ door ─────────┴─▶ one turn after another ────┴─▶ the run: step, until it has ended

All that it knows lies in its records and objects. It may be killed at any time; the next one goes on.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.mqtt_bus import LIFETIME
from fleetfold.coordinator.granting import grant, refused
from fleetfold.errors import BadConfig, FleetfoldError, Unavailable, blame
from fleetfold.hub import desk
from fleetfold.hub.authority import site
from fleetfold.hub.broker import Broker
from fleetfold.hub.door import Door, tls
from fleetfold.hub.driver import Driver, Stored
from fleetfold.hub.enrol import credential
from fleetfold.hub.registrar import Registrar
from fleetfold.hub.signing import HubSigner
from fleetfold.ledger import Ledger
from fleetfold.messages import Ask, Grant
from fleetfold.ports import Signer, pause
from fleetfold.round.run import RunState
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place

LOOK = 0.25
"""Seconds between two looks at what other processes have left."""
GATHER = 0.01
"""Seconds in which more may come before what has come is taken in."""
SERVER = ("server.pem", "server.key", "ca.pem")
"""Of the hub's folder: what the door is known by, and whose certificates it takes."""
Log = Callable[[str], None]


class Hub:
    """`home`: FLEETFOLD_HOME. `broker`: the address of one that is there already; "": its own. Make and
    serve it in one thread: its broker ends with that thread. Raises BadConfig."""

    def __init__(self, home: Path, log: Log, broker: str = "") -> None:
        self._home, self._log, folder = home, log, wiring.folder(home)
        self._site, self._records = site(folder), wiring.records(home)
        self._doorkeeper = wiring.records(home)  # the door's thread has its own
        self._fleet = Ledger(self._records)
        self._objects, store = wiring.objects(home, self._site.objects)
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._base = self._site.base
        secret = (folder / "signing.key").read_bytes()
        self._signer: Signer = store or HubSigner(secret, self._base, time.time)
        self._stored = Stored()
        self._broker = None if broker else Broker(folder, self._records)
        own = f"mqtts://{self._site.listen or '127.0.0.1'}:{self._site.mqtt}"
        self._connection, self._bus = wiring.bus(
            folder, broker or own, self._site.fleet, self._signer, log, self._woken.set
        )
        self._door = Door(
            wiring.files(home), tls(*(folder / name for name in SERVER)), secret, self._current,
            self._arrived, log, time.time, host=self._site.listen, port=self._site.door,
        )  # fmt: skip
        self._registrar = Registrar(self._fleet)
        self._driver: Driver | None = None
        self._said, self._troubles = "", 0
        self._started_at, self._told_at = time.time(), float("-inf")

    def serve(self, ready: Callable[[str], None] = lambda sentence: None) -> None:
        """Until `stop`. Raises BadConfig or Unavailable where it cannot begin."""
        with ExitStack() as stack:
            if self._broker:
                stack.callback(self._broker.stop)
                self._broker.start()
            self._door.start()
            stack.callback(self._door.stop)
            self._connection.start()
            stack.callback(self._connection.close)
            stack.callback(self._leave)
            ready(f"fleet {self._site.fleet}: broker {self._connection.address}, door {self._base}")
            while not self._stopping.is_set():
                self._turn()

    def stop(self) -> None:
        self._stopping.set()
        self._woken.set()

    def _turn(self) -> None:
        """Everything that can be done now, then a wait for more."""
        self._woken.clear()
        saying, seconds = "", LOOK
        try:
            self._supervise()
            self._attend()
            seconds = min(self._drive(), LOOK)
            self._troubles = 0
        except Unavailable as error:
            saying, seconds = error.sentence, pause(self._troubles, 0.1, 5.0, 0.7)
            self._troubles += 1
        if saying and saying != self._said:
            self._log(saying)
        self._said = saying
        self._tell()
        if self._woken.wait(max(0.0, seconds)) and not self._stopping.is_set():
            time.sleep(GATHER)

    def _supervise(self) -> None:
        if self._broker and not self._broker.alive():
            self._log("the broker has died; it is started again")
            self._broker.restart()
        if self._bus.forgotten():
            self._registrar.all_gone()
            if self._driver:
                self._driver.repeat = True

    def _attend(self) -> None:
        """To what devices say besides their answers to tasks, and to what other processes have left."""
        answers = (letter.report for letter in self._bus.letters())
        seen = [report.device for report in (*self._bus.progress(), *answers)]
        self._registrar.take(self._bus.presences(), seen, time.time())
        for ask in self._bus.asks():
            self._bus.grant(self._granted(ask))
        for command in desk.ordered(self._records):
            self._bus.command(wiring.signed(command, self._signer))
            desk.passed(self._records, command)
        for answer in self._bus.answers():
            desk.answered(self._records, answer)

    def _granted(self, ask: Ask) -> Grant:
        place = Place(self._home, ask.run)
        if not layout.valid_name(ask.run) or not wiring.is_run(place):
            return refused(ask, "there is no such run here")
        return grant(ask, wiring.ledger(place), self._objects, self._signer, LIFETIME)

    def _current(self, device: str) -> str | None:
        """The id of the credential that the device gets in by. In the door's thread."""
        found = credential(self._doorkeeper, device)
        return found.id if found and found.counts else None

    def _arrived(self, key: str) -> None:
        """In the door's thread."""
        self._stored.add(key)
        self._woken.set()

    def _drive(self) -> float:
        """The first run of the queue. → seconds until it wants to be looked at again."""
        queue = desk.queued(self._records)
        if self._driver and (not queue or queue[0] != self._driver.run):
            self._driver.close()
            self._driver = None
        if not queue:
            self._pass_over()
            return LOOK
        try:
            if self._driver is None:
                self._log(f"run {queue[0]} goes on")
                place = Place(self._home, queue[0])
                self._driver = Driver(
                    place, self._bus, self._objects, self._stored, away=bool(self._site.objects)
                )
            wake = self._driver.step()
        except BadConfig as error:
            self._fail(queue[0], error.sentence)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one run's fault must not end the hub
            self._fail(queue[0], f"a fault of fleetfold itself: {blame(error)}")
        else:
            if wake != float("inf"):
                return wake - time.time()
            self._log(f"run {queue[0]} has ended")
            desk.leave(self._records, queue[0])
        return 0.0

    def _pass_over(self) -> None:
        """Reports that no run waits for."""
        strays = self._bus.letters()
        for letter in strays:
            self._bus.ignored(f"report for run {letter.report.run[:80]}, which has ended")
        self._bus.acknowledge([letter.receipt for letter in strays])

    def _fail(self, name: str, why: str) -> None:
        self._log(f"run {name} failed: {why}")
        ledger = wiring.ledger(Place(self._home, name))
        found = ledger.run(name)
        if found and found[0].state is RunState.RUNNING:
            ended = replace(found[0], state=RunState.FAILED, reason=why, ended_at=time.time())
            ledger.save_run(ended, found[1])
        desk.leave(self._records, name)

    def _tell(self) -> None:
        if time.monotonic() - self._told_at < desk.TELL:
            return
        self._told_at = time.monotonic()
        (online, known), link = self._registrar.count(time.time()), self._connection
        ignored = self._bus.ignored.counts | (self._driver.ignored if self._driver else {})
        told = desk.Status(
            pid=os.getpid(), started_at=self._started_at, told_at=time.time(),
            broker=link.address, connected=link.connected, why=link.why, door=self._base,
            run=self._driver.run if self._driver else "", saying=self._said,
            online=online, known=known,
            ignored=ignored, refused=dict(self._door.refused),
        )  # fmt: skip
        desk.tell(self._records, told)

    def _leave(self) -> None:
        if self._driver:
            self._driver.close()
        with suppress(FleetfoldError):
            self._told_at = float("-inf")
            self._tell()
