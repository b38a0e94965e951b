"""One run as it is watched: what is read of its ledger, when, and what is told of it.

    run, open round ─▶ each look     new arrivals ─▶ of the seats that the round has newly heard of
    ended rounds ─▶ once, the newest first     the fleet ─▶ when a round has ended, and now and then

A look rests for many times as long as it took: who watches takes no more than a small share of one core,
however large the fleet is, and nothing while nobody asks.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from fleetfold.aws.pricing import priced
from fleetfold.dashboard import words
from fleetfold.dashboard.feed import Feed, Page
from fleetfold.dashboard.standing import standing
from fleetfold.dashboard.steps import Steps
from fleetfold.errors import shown
from fleetfold.ledger import Arrival, place
from fleetfold.messages import Kind
from fleetfold.ports import fetch
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.view import row_of, sent, spread
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

EVERY = {"here": 0.4, "hub": 0.4, "cloud": 2.0}
"""Seconds between two looks, at the least: a table on AWS is paid for by the reading."""
REST = 25.0
"""Times as long as a look took it rests: 4 % of one core."""
SLICE = 0.15
"""Seconds in which ended rounds are read at a stretch."""
FLEET = {"here": 2.0, "hub": 2.0, "cloud": 30.0}
"""Seconds between two readings of the fleet, at the least."""
FLEET_REST = 50.0
"""Times as long as one took it rests besides."""
LATER = 2
"""Ended rounds that are read once more when the next one has ended: what came late."""
REFUSED = 500
"""Refused updates that are told of, the newest."""
Id = tuple[int, Kind]


class Watch:
    """`look` reads, `since` tells; they may be called by two threads, which hold a lock for both."""

    def __init__(self, place: Place, life: str, clock: Callable[[], float] = time.time) -> None:
        self._place, self.where, self._clock = place, wiring.where(place), clock
        self.name = place.run
        self.ledger, self.objects = wiring.ledger(place), wiring.objects(place)
        self._priced = priced(place, self.ledger)
        self._steps = Steps(place)
        self.feed = Feed(life)
        self.run: Run | None = None
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        self._fleet: dict[str, Device] = {}
        self._fleet_at, self._fleet_due = float("-inf"), True
        self._done: set[Id] = set()
        self._todo: deque[int] = deque()
        self._seen = 0  # the newest round that is in `_todo` or was
        self._open: tuple[Round, int] | None = None
        self._arrivals: dict[str, Arrival] = {}
        self._cohort: list[str] = []
        self._seats: dict[str, int] = {}
        self._at: dict[str, str] = {}  # what devices of the open round are at, that have not answered
        self._sizes: dict[int, int] = {}  # bytes of models
        self._told_refused: dict[tuple[int, Kind, str], int] = {}
        self.refusals: list[tuple[Round, str, Arrival | None]] = []
        self._standing = ""

    # Telling

    @property
    def behind(self) -> int:
        """Rounds that are still to be read."""
        return len(self._todo)

    def now(self) -> dict[str, Any]:
        """The run and its round as they are: small, and told each time."""
        run, told = self.run, dict[str, Any](at=round(self._clock(), 2))
        if run is None:
            return told
        settings = run.settings
        told["run"] = {
            "name": words.name(run.name), "state": run.state, "round": run.round, "kind": run.kind,
            "rounds": settings.rounds, "version": run.version, "reason": shown(run.reason, words.WORDS),
            "wish": run.wish, "started": words.time(run.started_at), "ended": words.time(run.ended_at),
            "app": shown(run.app, words.WORDS), "where": self.where,
            "devices": len(self._names), "private": settings.noise > 0, "standing": self._standing,
            "todo": self.behind, "settings": self._settings(run),
        }  # fmt: skip
        if self._open is not None:
            told["now"] = self._round_now(self._open[0])
        return told

    @staticmethod
    def _settings(run: Run) -> dict[str, object]:
        s = run.settings
        return {"mode": s.mode, "select": s.select, "fold": s.fold, "codec": s.codec, "cohort": s.cohort}

    @staticmethod
    def _round_now(round: Round) -> dict[str, Any]:
        policy = round.policy
        return {
            "round": round.number, "kind": round.kind, "phase": round.phase,
            "reason": shown(round.reason, words.WORDS), "invited": round.invited,
            "counted": round.counted, "arrived": len(round.arrived), "refused": len(round.refused),
            "target": policy.target, "quorum": policy.quorum, "opened": words.time(round.opened_at),
            "asked": words.time(round.asked_at), "deadline": words.time(round.deadline_at),
            "closed": words.time(round.closed_at), "ended": words.time(round.ended_at),
            "version": round.base,
        }  # fmt: skip

    def since(self, cursor: str) -> Page:
        return self.feed.since(cursor)

    # Looking

    def look(self) -> Iterator[None]:
        """Everything that is due, in steps of no more than a moment."""
        found = self.ledger.run(self._place.run)
        if found is None:
            return
        self.run = run = found[0]
        for number in range(self._seen + 1, run.round + 1):
            self._todo.appendleft(number)
        self._seen = max(self._seen, run.round)
        self._standing = standing(self._place, run)
        yield from self._look_at_open(run)
        yield
        if self._fleet_is_due(run):
            self._look_at_fleet()
            yield
        began = time.monotonic()
        while self._todo and time.monotonic() - began < SLICE:
            number = self._todo.popleft()
            for kind in words.KINDS:
                self._look_back(number, kind)
            yield

    def _look_at_open(self, run: Run) -> Iterator[None]:
        """The round where the run stands, or the last there was."""
        found = self.ledger.round(run.name, run.round, run.kind)
        if found is None:  # between two rounds: the one before is the last that is known
            last = self._open and self._open[0]
            found = self.ledger.round(run.name, last.number, last.kind) if last else self._newest(run)
        if found is None:
            return
        old, self._open = self._open, found
        round = found[0]
        if old is None or place(old[0]) != place(round):
            if old is not None:
                self._again(old[0].number)
            self._begin(round)
        elif old[1] != found[1] or round.phase not in ENDED:
            self._hear(round)
        else:
            return
        yield
        if round.phase in ENDED:
            self._finish_open()
        elif old is None or old[1] != found[1]:
            self._tell_row(round, self._arrivals)

    def _newest(self, run: Run) -> tuple[Round, int] | None:
        for kind in reversed(words.KINDS):
            if found := self.ledger.round(run.name, run.round - 1, kind):
                return found
        return None

    def _begin(self, round: Round) -> None:
        self.feed.clear("lanes")
        self._arrivals, self._at, self._cohort = {}, {}, []
        with suppress(KeyError, msgspec.MsgspecError):
            self._cohort = msgspec.json.decode(fetch(self.objects, round.cohort), type=list[str])
        self._seats = {name: seat for seat, name in enumerate(self._cohort)}
        self._hear(round)

    def _hear(self, round: Round) -> None:
        """New arrivals, and what the others are at."""
        heard = round.arrived | round.refused
        fresh = [
            self._cohort[seat]
            for seat in heard
            if seat < len(self._cohort) and self._cohort[seat] not in self._arrivals
        ]
        self._tell_arrivals(round, self.ledger.arrivals_of(place(round), fresh) if fresh else {})
        quiet = [name for name in self._cohort if name not in self._arrivals]
        steps = self._steps.of(round, quiet) if round.phase is Phase.OPEN else {}
        otherwise = "silent" if round.phase in ENDED else "invited"
        for name in quiet:
            step = steps.get(name, otherwise)
            if self._at.get(name) != step:
                self._at[name] = step
                self._tell_lane(round, name, None, step)

    def _tell_arrivals(self, round: Round, fresh: dict[str, Arrival]) -> None:
        for name, arrival in fresh.items():
            if name in self._seats and self._arrivals.get(name) != arrival:
                self._tell_lane(round, name, arrival, "")
            if arrival.state == "refused":
                self._tell_refused(round, name, arrival, arrival.at, arrival.reason)
        self._arrivals |= fresh

    def _tell_lane(self, round: Round, name: str, arrival: Arrival | None, step: str) -> None:
        seat = self._seats[name]
        self.feed.put("lanes", seat, words.lane_row(seat, self._id(name), round, arrival, step))

    def _finish_open(self) -> None:
        """The round has ended: its row for good, with all that has come."""
        if self._open is None or self._open[0].phase not in ENDED:
            return
        round = self._open[0]
        if (round.number, round.kind) in self._done:
            return
        self._tell_arrivals(round, self.ledger.arrivals(place(round)))
        self._hear(round)
        self._end(round, self._arrivals)
        self._fleet_due = True
        for earlier in range(max(1, round.number - LATER), round.number):
            self._again(earlier)

    def _again(self, number: int) -> None:
        """Read that round once more: it may have ended since, and what comes late may have come."""
        self._done -= {(number, kind) for kind in words.KINDS}
        if number not in self._todo:
            self._todo.append(number)
        self._fleet_due = True

    def _look_back(self, number: int, kind: Kind) -> None:
        """A round that has ended, read once."""
        if self._open and (number, kind) == (self._open[0].number, self._open[0].kind):
            return
        if (number, kind) in self._done:
            return
        found = self.ledger.round(self._place.run, number, kind)
        if found is not None and found[0].phase in ENDED:
            self._end(found[0], self.ledger.arrivals(place(found[0])))

    def _end(self, round: Round, arrivals: dict[str, Arrival]) -> None:
        self._done.add((round.number, round.kind))
        self._tell_row(round, arrivals)
        for arrival in arrivals.values():
            if arrival.state == "refused":
                self._tell_refused(round, arrival.device, arrival, arrival.at, arrival.reason)
        for key in self.objects.list(f"{place(round)}/quarantine/"):
            device = key.rpartition("/")[2].removesuffix(".json")
            if device not in arrivals:
                self._tell_refused(round, device, None, round.ended_at, "it was not invited to this round")

    def _tell_row(self, round: Round, arrivals: dict[str, Arrival]) -> None:
        if round.batch or round.base not in self._sizes:
            self._sizes[round.base] = sent(self.objects, round)
        row = row_of(round, arrivals, self._sizes[round.base], self._clock(), self._priced)
        spreads = words.Spreads(spread(arrivals.values(), "loss"), spread(arrivals.values(), "accuracy"))
        self.feed.put("rounds", (round.number, round.kind), words.round_row(row, round, spreads))

    def _tell_refused(
        self, round: Round, device: str, arrival: Arrival | None, at: float, reason: str
    ) -> None:
        key = (round.number, round.kind, device)
        if key in self._told_refused or len(self._told_refused) >= REFUSED:
            return
        id = self._told_refused[key] = len(self.refusals)
        self.refusals.append((round, device, arrival))
        row = words.refused_row(id, self._ids.get(device, -1), words.name(device), round, at, reason)
        self.feed.put("refused", id, row)

    # The fleet

    def _id(self, name: str) -> int:
        id = self._ids.get(name)
        if id is None:
            id = self._ids[name] = len(self._names)
            self._names.append(name)
            self.feed.put("devices", id, words.device_row(id, self._fleet.get(name, Device(name=name))))
        return id

    def name_of(self, id: int) -> str | None:
        return self._names[id] if 0 <= id < len(self._names) else None

    def id_of(self, name: str) -> int | None:
        return self._ids.get(name)

    def device(self, name: str) -> Device | None:
        return self._fleet.get(name)

    def _fleet_is_due(self, run: Run) -> bool:
        moving = self.where != "here" and run.state is RunState.RUNNING
        rested = time.monotonic() - self._fleet_at >= FLEET[self.where]
        return not self._fleet or (rested and (self._fleet_due or moving))

    def _look_at_fleet(self) -> None:
        began = time.monotonic()
        self._fleet_due = False
        for device in self.ledger.fleet():
            if self._fleet.get(device.name) != device:
                self._fleet[device.name] = device
                id = self._id(device.name)
                self.feed.put("devices", id, words.device_row(id, device))
        ended = time.monotonic()
        self._fleet_at = ended + (ended - began) * FLEET_REST  # rests longer, the larger the fleet is
