"""The exchanges of one run whose app sends messages of its own: each is a round of kind "message".

    send(n, batch) ─▶ round n opened ─▶ tasks ─▶ answers: gate, arrival records ─▶ merged ─▶ replies(n)

Exchanges are numbered by whoever sends them. One that is on record is not sent again: after a death the app
sends what it had sent, and is answered from the record. The app's process opens exchanges and merges what
came; who has the bus (the same process, a hub, functions) invites and takes in.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator import exchange
from fleetfold.coordinator.engine import Engine
from fleetfold.coordinator.exchange import Batch, Fold, Outgoing, Reply, Terms
from fleetfold.coordinator.folding import HERE, OPENED, summary
from fleetfold.coordinator.intake import Gate, quarantine
from fleetfold.coordinator.merging import merged
from fleetfold.coordinator.policy import Policies, unit
from fleetfold.coordinator.reception import Reception
from fleetfold.coordinator.registry import Stopwatch, by_own_clock, teach
from fleetfold.coordinator.sources import header_of
from fleetfold.coordinator.turns import Turn, no_turn
from fleetfold.errors import Unavailable
from fleetfold.fold.plan import Site
from fleetfold.fold.recipe import Unfit
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Metrics, Task
from fleetfold.ports import Alarm, Control, Objects, fetch
from fleetfold.round.decide import opened
from fleetfold.round.events import (
    Disqualified,
    Effect,
    Event,
    Folded,
    GiveUp,
    Invite,
    Publish,
    Resumed,
    WakeAt,
)
from fleetfold.round.events import (
    Fold as Merge,
)
from fleetfold.round.fleet import in_run
from fleetfold.round.run import Run, RunState
from fleetfold.round.select import choose
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.round.where import eligible
from fleetfold.settings import count

REMEMBERED = 32
"""Batches and cohorts that are kept in memory."""
CALLED = 3
"""Kinds of exchanges that an app does in a round of its own, at most, as far as is looked back."""
TRIES = 50
"""Lost compare-and-sets in a row after which something is wrong with the store."""


class Messenger:
    """`control` None: somebody else has the bus, invites and takes in. `merges`: what came is merged here, by
    the process that has the app; else the round waits for it in FOLDING. The rest as of Coordinator."""

    def __init__(
        self, run: str, ledger: Ledger, objects: Objects, control: Control | None, alarm: Alarm,
        policies: Policies, clock: Callable[[], float], *, merges: bool = True, sole: bool = False,
        stopwatch: Stopwatch = by_own_clock, site: Site = HERE,
        ignored: Callable[[str], None] = lambda reason: None, turn: Turn = no_turn,
    ) -> None:  # fmt: skip
        self._name, self._ledger, self._objects, self._control = run, ledger, objects, control
        self._alarm, self._policies, self._clock, self._merges = alarm, policies, clock, merges
        self._stopwatch, self._site = stopwatch, site
        self._engine = Engine(ledger, clock, self._perform, policies.close, sole=sole, turn=turn)
        self._names = lru_cache(maxsize=REMEMBERED)(self._load_cohort)
        self._batch = lru_cache(maxsize=REMEMBERED)(lambda key: exchange.load(objects, key))
        self._header = lru_cache(maxsize=REMEMBERED)(lambda key: header_of(objects, key))
        self._ended = 0  # exchanges up to this one have ended, as far as is known here
        self._reception = None
        if control is not None:
            self._reception = Reception(
                self.run, ledger, objects, control, self._names, self._gate, self._engine.feed, ignored,
                clock, OPENED if site.latency else 1,
            )  # fmt: skip

    # The app's side

    def run(self) -> Run:
        found = self._ledger.run(self._name)
        if found is None:
            raise Unavailable(f"there is no run {self._name}")
        return found[0]

    def devices(self) -> list[str]:
        """Who may be sent to now: those who are there and of whom the run's condition is true, chosen by its
        rule where its cohort is not all of them."""
        run, now = self.run(), self._clock()
        settings = run.settings
        there = eligible(self._ledger.fleet(), self._policies.where, now, offline=settings.offline)
        wanted = count(settings.cohort, len(there)) if there else 0
        if wanted >= len(there):
            return sorted(device.name for device in there)
        fleet = [in_run(device, run.name) for device in there]
        draws = [unit(settings.seed, "message", run.round + 1, device.name) for device in fleet]
        return sorted(choose(self._policies.select, fleet, wanted, draws, run.round + 1))

    def spares(self, taken: Iterable[str], number: int) -> list[str]:
        """Up to so many others that may be sent to, by the run's rule: for who is asked beside those that the
        app has chosen."""
        run, now, taken = self.run(), self._clock(), frozenset(taken) | self.busy()
        there = eligible(self._ledger.fleet(), self._policies.where, now, offline=run.settings.offline)
        free = [in_run(device, run.name) for device in there if device.name not in taken]
        draws = [unit(run.settings.seed, "spare", run.round + 1, device.name) for device in free]
        return sorted(choose(self._policies.select, free, number, draws, run.round + 1))[:number]

    def busy(self) -> frozenset[str]:
        """Devices that were sent a message and have not answered."""
        open_now = [found[0] for number in self._open() if (found := self._found(number))]
        return frozenset(name for round in open_now for name in self._silent(round))

    def send(self, number: int, sent: Sequence[Outgoing], terms: Terms) -> Round:
        """Open exchange `number`, from 1 on; or find it on record, and then the record counts. Its devices
        are not busy. Raises BadConfig for a message that is too large."""
        if found := self._found(number):
            return found[0]
        run, now = self.run(), self._clock()
        round = exchange.opened(self._objects, run, number, sent, terms, now)
        self._amend(lambda run: replace(run, round=max(run.round, number), reason=""))
        decision = opened(round, now)
        committed = replace(decision.round, outbox=decision.effects)
        if self._ledger.save_round(committed, expect=0) and self._control is not None:
            return self._engine.act(committed, 1)
        return self.round(number) or committed

    def round(self, number: int) -> Round | None:
        """The exchange as it is now; None: it was never sent."""
        found = self._found(number)
        return found[0] if found else None

    def batch(self, number: int) -> Batch:
        """What was sent in it."""
        return self._batch(self._known(number).batch)

    def merge(self, number: int) -> None:
        """Look at what came for an exchange that is in FOLDING, and conclude it."""
        round = self._known(number)
        if round.phase is Phase.FOLDING:
            self._engine.feed(round, self._merged(round))

    def replies(self, number: int) -> list[Reply]:
        """Answers that count of an exchange that has ended well, by seat; of one that failed none."""
        round = self._known(number)
        return (
            [exchange.reply(self._objects, a) for a in self._counted(round)]
            if round.phase is Phase.DONE
            else []
        )

    def refusals(self, number: int) -> list[tuple[str, str]]:
        """(device, why) of those whose answer was refused, or who failed or refused to answer."""
        arrivals = self._ledger.arrivals(place(self._known(number))).values()
        return sorted((a.device, a.reason) for a in arrivals if a.state == "refused")

    def fold(self, number: int) -> Fold | None:
        """What the answers were folded into, if they were."""
        round = self._known(number)
        return Fold(round.model, round.digest) if round.model else None

    def note(self, number: int, by: str, metrics: Metrics) -> None:
        """Metrics of an exchange that somebody else has measured ("test"), for people."""
        for _ in range(TRIES):
            round, version = self._engine.read(self._known(number))
            if self._ledger.save_round(replace(round, metrics={**round.metrics, by: metrics}), version):
                return
        raise Unavailable(f"lost {TRIES} compare-and-sets on {place(round)}")

    def publish(self, version: int, digest: str) -> None:
        """That model of the run's, which is there, is its newest."""
        self._amend(
            lambda run: replace(run, version=version, digest=digest) if version > run.version else run
        )

    def plan(self, rounds: int) -> None:
        """How many rounds of its own the app is going to do, for people."""
        settings = self.run().settings
        self._amend(lambda run: replace(run, settings=replace(settings, rounds=rounds)))

    def hopeless(self, since: int = 0) -> str:
        """Why there is no use in going on; "" while there is: so many exchanges in a row have failed, of all
        or of those that the app calls the same, the last after number `since`. A device's reason is told."""
        run = self.run()
        numbers = range(run.round, max(0, run.round - CALLED * run.settings.patience), -1)
        last = [found[0] for n in numbers if (found := self._found(n)) and found[0].phase in ENDED]
        for label in ("", *{round.label for round in last}):
            same = [round for round in last if label in ("", round.label)][: run.settings.patience]
            failed = len(same) == run.settings.patience and all(r.phase is Phase.FAILED for r in same)
            if failed and same[0].number > since:
                told = "".join(f"; {device}: {why}" for device, why in self.refusals(same[0].number)[:1])
                named = f"{len(same)} {label} exchanges".replace("  ", " ")
                return f"{named} in a row failed; the last: {same[0].reason}{told}"
        return ""

    def retire(self, before: int, keep: Iterable[str] = (), *, after: int = 0) -> None:
        """Remove contents and answers of exchanges before that number and after the other, but for objects in
        `keep`: nobody will ask for them again."""
        kept = frozenset(keep)
        number = before - 1
        while number > after and (found := self._found(number)):
            where, round = place(found[0]), found[0]
            updates = self._objects.list(layout.updates(where))
            contents = {s.content for s in self._batch(round.batch).sent} if updates else set[str]()
            if not updates:
                return  # it was done up to here
            own = layout.contents(self._name)
            for key in [*(c for c in contents if c.startswith(own)), *updates]:
                if key not in kept:
                    self._objects.delete(key)
            if round.model == layout.folded(where) and round.model not in kept:
                self._objects.delete(round.model)
            number -= 1

    def end(self, state: RunState, reason: str) -> None:
        """The run is over. The same twice changes nothing."""

        def ended(run: Run) -> Run:
            if run.state is not RunState.RUNNING:
                return run
            return replace(run, state=state, reason=reason, ended_at=self._clock())

        self._amend(ended)

    # The side of who has the bus

    def step(self) -> float:
        """Take in what came, and do what is due in every exchange that is open. → when to look again at the
        latest, in seconds since the epoch; infinity when nothing is open."""
        if self._reception is not None:
            self._reception.take_in()
        wake = float("inf")
        for number in self._open():
            while (found := self._found(number)) and not self._is_over(found[0]):
                due = self._tended(*found)
                if due is not None:
                    wake = min(wake, due)
                    break
        return wake

    def resume(self) -> None:
        """After a standstill of everything: give every cohort its full time again, then take in what lies
        there. For a sole one only."""
        for number in self._open():
            round = self._known(number)
            self._engine.feed(round, Resumed())
            if self._reception is not None:
                self._reception.sweep(round)

    def repeat(self) -> None:
        """After the bus has lost its memory: send again to who has not answered, and take in what came while
        nobody could say so. For a sole one only."""
        for number in self._open():
            if self._reception is not None:
                self._reception.sweep(self._known(number))
            round = self._known(number)
            if round.phase is Phase.OPEN and self._control is not None:
                silent = self._silent(round)
                self._control.invite([task for task in self._tasks(round) if task.device in silent])

    def _tended(self, round: Round, version: int) -> float | None:
        """None: something has changed, look again."""
        if round.phase is Phase.FOLDING and not round.outbox:
            if not self._merges:
                return float("inf")  # the app's process does that
            self.merge(round.number)
            return None
        return float("inf") if self._control is None else self._engine.tend(round, version)

    def _perform(self, effect: Effect, round: Round) -> Event | None:
        """One effect. Every one may be done twice."""
        match effect:
            case Invite() if self._control is not None:
                self._control.invite(self._tasks(round))
            case WakeAt(time):
                self._alarm.wake_at(round.run, time)
            case Merge():
                self._dismiss(round)
                return self._merged(round) if self._merges else None
            case Publish():
                self._settle(round)
            case GiveUp():
                self._dismiss(round)
                self._settle(round)
        return None

    def _tasks(self, round: Round) -> list[Task]:
        return exchange.tasks(round, self.run(), self._batch(round.batch))

    def _dismiss(self, round: Round) -> None:
        if self._control is not None:
            self._control.withdraw(sorted(self._silent(round)))

    def _merged(self, round: Round) -> Event:
        counted = self._counted(round)
        terms = self._batch(round.batch).terms
        try:
            fold = merged(self._objects, round, counted, terms, self._site)
        except Unfit as unfit:
            return self._strike(round, counted, unfit)
        reported = summary(counted).get("trained", {})
        metrics = {"devices" if terms.label.startswith("evaluate") else "trained": reported}
        key, digest = (fold.key, fold.digest) if fold else ("", "")
        return Folded(round.arrived, model=key, digest=digest, metrics=metrics if reported else {})

    def _strike(self, round: Round, counted: Sequence[Arrival], unfit: Unfit) -> Event:
        struck = [arrival for arrival in counted if arrival.key in unfit.names]
        for arrival in struck:
            quarantine(self._objects, round, arrival.device, unfit.reason)
        refused = [replace(arrival, state="refused", reason=unfit.reason) for arrival in struck]
        self._ledger.save_arrivals(place(round), refused)
        return Disqualified(frozenset(arrival.seat for arrival in struck))

    def _settle(self, round: Round) -> None:
        decay = self.run().settings.turnaround_decay
        teach(self._ledger, [round], self._names, decay, self._stopwatch)

    # Reading

    def _gate(self, round: Round) -> Gate:
        return exchange.gate(round, self._batch(round.batch), self._header)

    def _counted(self, round: Round) -> list[Arrival]:
        here = {a.seat: a for a in self._ledger.arrivals(place(round)).values()}
        return [here[seat] for seat in sorted(round.arrived)]

    def _silent(self, round: Round) -> frozenset[str]:
        heard = round.arrived | round.refused
        if round.phase in ENDED:
            return frozenset()
        return frozenset(n for seat, n in enumerate(self._names(round.cohort)) if seat not in heard)

    def _open(self) -> list[int]:
        """Numbers of exchanges that have not ended, or of which something is left to do."""
        newest = self.run().round
        numbers = list(range(self._ended + 1, newest + 1))
        over = [n for n in numbers if (found := self._found(n)) is None or self._is_over(found[0])]
        while self._ended + 1 in over and self._found(self._ended + 1):
            self._ended += 1
        return [n for n in numbers if n not in over]

    def _is_over(self, round: Round) -> bool:
        return round.phase in ENDED and (not round.outbox or self._control is None)

    def _found(self, number: int) -> tuple[Round, int] | None:
        return self._ledger.round(self._name, number, "message")

    def _known(self, number: int) -> Round:
        found = self._found(number)
        if found is None:
            raise Unavailable(f"there is no exchange {number} of run {self._name}")
        return found[0]

    def _amend(self, change: Callable[[Run], Run]) -> None:
        for _ in range(TRIES):
            found = self._ledger.run(self._name)
            if found is None:
                raise Unavailable(f"there is no run {self._name}")
            after = change(found[0])
            if after == found[0] or self._ledger.save_run(after, found[1]):
                return
        raise Unavailable(f"lost {TRIES} compare-and-sets on run {self._name}")

    def _load_cohort(self, key: str) -> tuple[str, ...]:
        return tuple(msgspec.json.decode(fetch(self._objects, key), type=list[str]))
