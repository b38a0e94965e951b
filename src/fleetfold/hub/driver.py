"""One run on the hub, driven from where it stands; and how its reports come: by the bus, or by the door.

bus ─report─▶ ┌ Hearing ┐ ─▶ coordinator
door ─stored─▶└─────────┘      an update that lies there and that nobody reports within SILENT seconds is
                               as good as reported: its device may have died in between
"""

import threading
import time
from collections.abc import Sequence
from typing import IO

from fleetfold import layout
from fleetfold.adapters.mqtt_bus import MqttBus
from fleetfold.agent.app import find_app, import_paths
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.messenger import Messenger
from fleetfold.errors import BadConfig
from fleetfold.hub.scorer import Scorer
from fleetfold.messages import Report
from fleetfold.ports import Control, Letter, Objects
from fleetfold.round.run import RunState
from fleetfold.tell.teller import Says, Teller
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place

SILENT = 2.0
"""Seconds after which an update that lies there counts as reported."""


SOON = 0.05
"""Seconds between two looks at a run whose app may have sent something."""


class Stored:
    """Updates that the door has taken and nobody has reported: a device may die in between. They are as
    good as reported."""

    def __init__(self) -> None:
        self._lock, self._at = threading.Lock(), dict[str, float]()

    def add(self, key: str) -> None:
        """`key`: of an update, or of one of its parts; of anything else is nothing to report."""
        part = layout.part_of(key)
        if "/updates/" in key:
            with self._lock:
                self._at[part[0] if part else key] = time.monotonic()

    def letters(self, run: str, reported: Sequence[Letter]) -> list[Letter]:
        """What is due of that run's; nobody asks any more for what runs before it left."""
        now = time.monotonic()
        with self._lock:
            for letter in reported:
                report = letter.report
                where = layout.round(report.run, report.round, report.kind) if report.run == run else ""
                self._at.pop(layout.update(where, report.device), None)
            self._at = {key: at for key, at in self._at.items() if key.startswith(f"{layout.run(run)}/")}
            due = [key for key, at in self._at.items() if now - at > SILENT]
        return [Letter(key, _reported(run, key)) for key in due]

    def acknowledge(self, receipts: Sequence[str]) -> None:
        with self._lock:
            for receipt in receipts:
                self._at.pop(receipt, None)


def _reported(run: str, key: str) -> Report:
    where = layout.round_of(key)
    return Report(
        run=run,
        round=layout.number_of(key),
        kind=layout.kind_of(where),
        device=layout.device_of(key),
        state="delivered",
    )


class Hearing:
    """`Control` of one run: the bus, and what the door has seen, where it is whole."""

    def __init__(self, run: str, bus: Control, stored: Stored, objects: Objects) -> None:
        self._run, self._bus, self._stored, self._objects = run, bus, stored, objects
        self.invite, self.withdraw = bus.invite, bus.withdraw

    def letters(self) -> list[Letter]:
        reported = self._bus.letters()
        due = self._stored.letters(self._run, reported)
        return [*reported, *(letter for letter in due if self._objects.size(letter.receipt) is not None)]

    def acknowledge(self, receipts: Sequence[str]) -> None:
        self._bus.acknowledge(receipts)
        self._stored.acknowledge(receipts)


class Driver:
    """Raises BadConfig where the run or its app cannot be found. `repeat`: the bus has lost its memory."""

    def __init__(
        self, place: Place, bus: MqttBus, objects: Objects, stored: Stored, say: Says, *, away: bool
    ) -> None:
        found = wiring.ledger(place).run(place.run)
        if found is None:
            raise BadConfig(f"run {place.run} was never opened", next="fleetfold run APP --hub")
        self.run, self.repeat = place.run, False
        self._place = place
        self._log: IO[bytes] = (place.folder / "scorer.log").open("ab")
        self._control = Hearing(place.run, bus, stored, objects)
        self._scorer: Scorer | None = None
        self._driven: Coordinator | Messenger
        if found[0].messages:
            self._driven = wiring.messenger(
                place, found[0].settings, objects, self._control, time.time, bus.ignored, away=away
            )
        else:
            app = find_app(found[0].app)
            import_paths(app)
            self._scorer = Scorer(app.place, self._log)
            self._driven = wiring.coordinator(
                place, found[0].settings, objects, self._control, time.time, self._scorer.score, bus.ignored,
                away=away,
            )  # fmt: skip
        self._ledger = wiring.ledger(place)
        self._resumed, self._wake, self._messages = False, 0.0, found[0].messages
        self._teller = Teller(place.folder, wiring.ledger(place), objects, place.run, say)

    def step(self) -> float:
        """→ when to look again at the latest, in seconds since the epoch; infinity when the run has ended."""
        if not self._resumed:
            self._driven.resume()
            self._resumed = True
        elif self.repeat:
            self._driven.repeat()
        elif time.time() < self._wake and not self._control.letters() and not self._wished():
            return self._wake
        self.repeat = False
        self._wake = self._driven.step()
        if self._messages:  # its app may open another exchange at any time
            found = wiring.ledger(self._place).run(self.run)
            over = found is None or found[0].state is not RunState.RUNNING
            self._wake = float("inf") if over else min(self._wake, time.time() + SOON)
        self._teller.look()
        return self._wake

    def _wished(self) -> bool:
        """Whether somebody has asked anything of the run."""
        found = self._ledger.run(self.run)
        return found is not None and found[0].wish != ""

    def close(self) -> None:
        self._teller.close()
        if self._scorer:
            self._scorer.close()
        self._log.close()
