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
from fleetfold.adapters.posting import LIFETIME
from fleetfold.coordinator import errands
from fleetfold.coordinator.granting import grant, refused
from fleetfold.coordinator.registrar import Registrar, brief
from fleetfold.errors import BadConfig, FleetfoldError, Unavailable, blame, shown, told
from fleetfold.hub import desk
from fleetfold.hub.authority import site
from fleetfold.hub.broker import Broker
from fleetfold.hub.door import Door, tls
from fleetfold.hub.driver import Driver, Stored
from fleetfold.hub.enrol import credential
from fleetfold.hub.signing import HubSigner
from fleetfold.ledger import Ledger
from fleetfold.log import Log
from fleetfold.messages import Answer, Ask, Command, Grant, encode
from fleetfold.ports import Signer, pause
from fleetfold.round.run import RunState
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place

LOOK = 0.25
"""Seconds between two looks at what other processes have left."""
GATHER = 0.01
"""Seconds in which more may come before what has come is taken in."""
OPENING = 60.0
"""Seconds that may pass between a run's place in the queue and its opening."""
SERVER = ("server.pem", "server.key", "ca.pem")
"""Of the hub's folder: what the door is known by, and whose certificates it takes."""


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
        self._passed: set[str] = set()  # ids of commands that the broker has
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
        except Exception as error:  # noqa: BLE001 - whatever came over the wire, the fleet has a hub
            saying = told(error)[0] if isinstance(error, FleetfoldError) else f"a fault: {blame(error)}"
            seconds = pause(self._troubles, 0.1, 5.0, 0.7)
            self._troubles += 1
        if saying and saying != self._said:
            self._log(saying)
        self._said = saying
        with suppress(FleetfoldError):  # it is told again
            self._tell()
        if self._woken.wait(max(0.0, seconds)) and not self._stopping.is_set():
            time.sleep(GATHER)

    def _supervise(self) -> None:
        if self._broker and not self._broker.alive():
            self._log("the broker has died; it is started again")
            self._broker.restart()
        if self._bus.forgotten():  # said once: what may fail comes last
            self._passed.clear()
            if self._driver:
                self._driver.repeat = True
            self._registrar.all_gone()

    def _attend(self) -> None:
        """To what devices say besides their answers to tasks, and to what other processes have left."""
        answers = (letter.report for letter in self._bus.letters())
        progress = self._bus.progress()
        if progress:  # nobody acts on it, but who watches may want to know
            self._records.put_many([(layout.doing(r.device), encode(brief(r))) for r in progress])
        seen = [report.device for report in (*progress, *answers)]
        self._registrar.take(self._bus.presences(), seen, time.time())
        for ask in self._bus.asks():
            self._bus.grant(self._granted(ask))
        self._pass_on()
        for answer in errands.answered(self._records, self._bus.answers()):
            self._bus.ignored(f"answer of {answer.device} to a command that nobody waits for")

    def _pass_on(self) -> None:
        """Commands, once in the life of hub and broker: a device does each once, however often it comes."""
        if not self._connection.connected:
            return
        waiting = errands.ordered(self._records, time.time())
        self._passed &= {command.id for command in waiting}
        for command in waiting:
            if command.id not in self._passed:
                try:
                    self._bus.command(errands.signed(command, self._signer, LIFETIME))
                except BadConfig as error:
                    self._refuse(command, error.sentence)
                self._passed.add(command.id)

    def _refuse(self, command: Command, why: str) -> None:
        refusal = Answer(id=command.id, device=command.device, state="refused", reason=why)
        errands.answered(self._records, [refusal])

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
        first = self._first()
        if self._driver and (first is None or first.run != self._driver.run):
            self._leave_run()
        if first is None:
            self._pass_over()
            return LOOK
        try:
            if self._driver is None:
                self._log("the run goes on", run=first.run)
                self._driver = Driver(
                    Place(self._home, first.run), self._bus, self._objects, self._stored,
                    self._log, away=bool(self._site.objects),
                )  # fmt: skip
            wake = self._driver.step()
        except BadConfig as error:
            self._fail(first, error.sentence)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one run's fault must not end the hub
            self._fail(first, f"a fault of fleetfold itself: {blame(error)}")
        else:
            if wake != float("inf"):
                return wake - time.time()
            self._log("the run has ended", run=first.run)
            self._end(first)
        return 0.0

    def _first(self) -> desk.Waiting | None:
        """The first run of the queue. Who put one there and died before it was opened is not waited for."""
        for waiting in desk.queued(self._records):
            place = Place(self._home, waiting.run)
            if (self._driver and self._driver.run == waiting.run) or (
                wiring.is_run(place) and wiring.ledger(place).run(waiting.run)
            ):
                return waiting
            if time.time() - waiting.at > OPENING:
                self._log("the run was never opened", run=waiting.run)
                desk.leave(self._records, waiting)
        return None

    def _pass_over(self) -> None:
        """Reports that no run waits for."""
        strays = self._bus.letters()
        for letter in strays:
            self._bus.ignored(f"report for run {shown(letter.report.run, 80)}, which has ended")
        self._bus.acknowledge([letter.receipt for letter in strays])

    def _fail(self, failed: desk.Waiting, why: str) -> None:
        self._log("the run failed", run=failed.run, reason=why)
        ledger = wiring.ledger(Place(self._home, failed.run))
        while (found := ledger.run(failed.run)) and found[0].state is RunState.RUNNING:
            ended = replace(found[0], state=RunState.FAILED, reason=why, ended_at=time.time())
            ledger.save_run(ended, found[1])  # else somebody has given it more to do: look again
        self._end(failed)

    def _end(self, ended: desk.Waiting) -> None:
        self._leave_run()
        desk.leave(self._records, ended)

    def _leave_run(self) -> None:
        if self._driver:
            self._driver.close()
            self._driver = None

    def _tell(self) -> None:
        if time.monotonic() - self._told_at < desk.TELL:
            return
        self._told_at = time.monotonic()
        self._tidy()
        (online, known), link = self._registrar.count(time.time()), self._connection
        status = desk.Status(
            pid=os.getpid(), started_at=self._started_at, told_at=time.time(),
            broker=link.address, connected=link.connected, why=link.why, door=self._base,
            run=self._driver.run if self._driver else "", saying=self._said,
            online=online, known=known,
            ignored=dict(self._bus.ignored.counts), refused=dict(self._door.refused),
        )  # fmt: skip
        desk.tell(self._records, status)

    def _tidy(self) -> None:
        """What came for commands that nobody waits for any more; nothing can come now."""
        for command in errands.expired(self._records, time.time() - LIFETIME):
            for key in errands.files(command):
                self._objects.delete(key)

    def _leave(self) -> None:
        self._leave_run()
        with suppress(FleetfoldError):
            self._told_at = float("-inf")
            self._tell()
