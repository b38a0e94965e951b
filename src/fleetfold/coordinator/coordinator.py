"""One step of a run: take in what came, tick the round, do what was decided, go on to the next.

    reports ─▶ intake ─▶ engine: decide, commit, act ─▶ round over ─▶ the next one, an evaluation, the end

Everything it knows lies in the ledger and the objects; what it keeps in memory are copies of what never
changes. So it may die between any two lines, and the next one goes on from there.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import msgspec
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.engine import Engine
from fleetfold.coordinator.folding import (
    HERE,
    OPENED,
    Folder,
    Made,
    fold_round,
    found,
    release_of,
    summary,
)
from fleetfold.coordinator.hiding import ENTROPY, Overspent, hide, set_of, spending, stopped, take_up, whole
from fleetfold.coordinator.intake import Gate, quarantine, training
from fleetfold.coordinator.inviting import Way, tasks, ways
from fleetfold.coordinator.late import (
    Debts,
    backlog,
    debts,
    give_back,
    heard,
    known,
    reach,
    retire,
)
from fleetfold.coordinator.opening import next_round
from fleetfold.coordinator.policy import Policies, fewest
from fleetfold.coordinator.reception import Reception
from fleetfold.coordinator.registry import Stopwatch, by_own_clock, teach
from fleetfold.coordinator.sources import header_of
from fleetfold.coordinator.spreading import ways_there
from fleetfold.coordinator.turns import Turn, no_turn
from fleetfold.errors import Unavailable
from fleetfold.fold.gate import largest
from fleetfold.fold.plan import Site
from fleetfold.fold.recipe import Unfit
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Metrics, Task
from fleetfold.ports import Alarm, Control, Objects, fetch
from fleetfold.round.decide import STOPPED, opened
from fleetfold.round.events import (
    Disqualified,
    Effect,
    Event,
    Fold,
    Folded,
    GiveUp,
    Invite,
    Publish,
    Resumed,
    Stopped,
    WakeAt,
    Withheld,
)
from fleetfold.round.run import Run, RunState, advance, halted
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.round.where import eligible
from fleetfold.settings import Settings

Test = Callable[[bytes], Metrics]
"""Scores a model file on the user's own test set, where there is one."""
Elsewhere = Callable[[Round, Sequence[Arrival], Settings], None]
"""Has a round's updates, in their order, folded by others: `Coordinator.fold` in some process of theirs. It
may be asked for the same set again."""
Ignored = Callable[[str], None]
"""Hears why a report is passed over, each time."""
LOOK = 1.0
"""Seconds between two looks for devices, while too few are there."""
REMEMBERED = 32
"""Cohorts and headers that are kept in memory: of the rounds that reports come of."""


class Coordinator:
    """Drives one run. `clock`: seconds since the epoch. `sole`: nobody else drives it, so what a dead
    one left undone is done at once and not only when its lease is over. `entropy`: so many bytes of chance
    that nobody can know or draw again, for the noise that hides devices. `site`: how far off the objects
    are. `elsewhere`: folds are not done here. `made`: what folds a round, if not `fold_round`.
    `ignored` hears of reports that change nothing. `turn`: how many who report at once take turns."""

    def __init__(
        self, run: str, ledger: Ledger, objects: Objects, control: Control, alarm: Alarm,
        policies: Policies, clock: Callable[[], float], *, sole: bool = False, test: Test | None = None,
        stopwatch: Stopwatch = by_own_clock, entropy: Callable[[int], bytes] = os.urandom, site: Site = HERE,
        elsewhere: Elsewhere | None = None, made: Folder = fold_round, ignored: Ignored = lambda reason: None,
        turn: Turn = no_turn,
    ) -> None:  # fmt: skip
        self._name, self._ledger, self._objects, self._control = run, ledger, objects, control
        self._alarm, self._policies, self._clock = alarm, policies, clock
        self._test, self._stopwatch, self._entropy = test, stopwatch, entropy
        self._site, self._elsewhere, self._folder = site, elsewhere, made
        self._engine = Engine(ledger, clock, self._perform, policies.close, sole=sole, turn=turn)
        self._seats = lru_cache(maxsize=REMEMBERED)(self._load_cohort)
        self._header = lru_cache(maxsize=REMEMBERED)(lambda key: header_of(objects, key))
        self._reception = Reception(
            lambda: self._run()[0], ledger, objects, control, self._seats, self._gate, self._engine.feed,
            ignored, clock, OPENED if site.latency else 1,
        )  # fmt: skip

    def step(self, *, opening: bool = True) -> float:
        """Everything that can be done now; `opening`: rounds are opened too. → when to look again at the
        latest, in seconds since the epoch; infinity when the run has ended, or stands before a round that
        is not to be opened."""
        self._reception.take_in()
        while True:
            run, at = self._run()
            if run.state is not RunState.RUNNING:
                return float("inf")
            found = self._ledger.round(run.name, run.round, run.kind)
            if found is None and run.wish:
                self._ledger.save_run(halted(run, self._clock()), expect=at)
                continue
            if found is None and not opening:
                return float("inf")
            if found is None:
                if self._clock() < run.opens_at:
                    return run.opens_at
                if not self._open(run):
                    return self._clock() + LOOK
                continue
            round, version = found
            if round.phase in ENDED and not round.outbox:
                self._go_on(round)
            elif run.wish == "stop" and round.phase is Phase.OPEN and not round.outbox:
                self._engine.feed(round, Stopped())
            elif (wake := self._engine.tend(round, version)) is not None:
                return wake

    def fold(self) -> None:
        """What `elsewhere` was asked for: fold the run's round as it is now, and conclude it; if updates turn
        out unfit, take them out and ask `elsewhere` again. Any number of processes may do it at once: what
        was folded of a set that is not the round's any more changes nothing."""
        run, _ = self._run()
        found = self._ledger.round(run.name, run.round, run.kind)
        if found is not None and found[0].phase is Phase.FOLDING:
            self._engine.feed(found[0], self._fold(found[0]))

    def resume(self) -> None:
        """After a standstill of everything: give the cohort its full time again, and then take in what
        lies there. For a sole coordinator only."""
        run, _ = self._run()
        found = self._ledger.round(run.name, run.round, run.kind)
        if found is not None and run.state is RunState.RUNNING:
            self._engine.feed(found[0], Resumed())
            self._reception.sweep(found[0])
            for number in sorted({number for number, _ in found[0].owed}):
                self._reception.sweep(known(self._ledger, run.name, number))

    def repeat(self) -> None:
        """After the bus has lost its memory: invite again who has not answered, and take in what came while
        nobody could say so. For a sole coordinator only."""
        run, _ = self._run()
        found = self._ledger.round(run.name, run.round, run.kind)
        if found is None or found[0].phase is not Phase.OPEN:
            return
        self._reception.sweep(found[0])
        round, _ = self._engine.read(found[0])
        if round.phase is Phase.OPEN:
            answered = {name for seat, name in enumerate(self._seats(round.cohort)) if seat in _heard(round)}
            self._control.invite([task for task in self._tasks(round) if task.device not in answered])

    # Acting

    def _perform(self, effect: Effect, round: Round) -> Event | None:
        """One effect. Every one may be done twice."""
        match effect:
            case Invite():
                self._control.invite(self._tasks(round))
                settings = self._run()[0].settings
                if round.kind == "train" and settings.credits_late:
                    return backlog(self._ledger, round, reach(settings))
            case WakeAt(time):
                self._alarm.wake_at(round.run, time)
            case Fold():
                self._dismiss(round)
                if self._elsewhere is None or round.kind == "evaluate":
                    return self._fold(round)
                self._elsewhere(round, self._counted(round), self._run()[0].settings)
            case Publish():
                self._settle(round)
            case GiveUp():
                self._dismiss(round)
                self._settle(round)
        return None

    def _dismiss(self, round: Round) -> None:
        """Whose update would not count any more may leave off: what is folded is fixed."""
        if not self._run()[0].settings.credits_late:
            cohort = self._seats(round.cohort)
            self._control.withdraw([name for seat, name in enumerate(cohort) if seat not in _heard(round)])

    def _tasks(self, round: Round) -> list[Task]:
        run, cohort = self._run()[0], self._seats(round.cohort)
        key = layout.model(round.run, round.base)
        size = self._objects.size(key) or 0
        if round.kind == "evaluate":
            return tasks(round, run, cohort, dict.fromkeys(cohort, Way()), {}, size, largest(None))
        model = self._header(key)
        how = ways(cohort, model, run.settings, self._policies.codec, self._ledger.fleet)
        shorts = {}
        if run.settings.send == "difference":
            shorts = ways_there(self._ledger, self._objects, round, cohort)
        return tasks(round, run, cohort, how, shorts, size, largest(model))

    def _fold(self, round: Round) -> Event:
        run, _ = self._run()
        counted = self._counted(round)
        metrics = summary(counted)
        if round.kind == "evaluate":
            return Folded(round.arrived, round.credits, metrics=metrics)
        try:
            made = self._made(round, counted, run.settings)
        except Unfit as unfit:
            return self._strike(round, counted, unfit)
        except Overspent as overspent:
            return Withheld(str(overspent))
        if self._test is not None:
            metrics["test"] = self._test(fetch(self._objects, made.model))
        if made.release:
            metrics["privacy"] = spending(self._ledger, round, run.settings, made.release)
        model = layout.model(round.run, round.base + 1)
        return Folded(round.arrived, round.credits, model, made.digest, metrics, made.release)

    def _made(self, round: Round, counted: Sequence[Arrival], settings: Settings) -> Made:
        """The round's model: folded, or with privacy found where a folder before this one finished it."""
        header = self._header(layout.model(round.run, round.base))
        fold = partial(
            self._folder,
            self._objects,
            round,
            counted,
            settings,
            header,
            self._policies.fold,
            site=self._site,
        )
        if not settings.noise:
            return fold()
        updates = set_of(counted)
        if release := whole(self._ledger, self._objects, round, updates):
            return found(self._objects, round, release.number)
        entropy = self._entropy(ENTROPY)  # of this fold alone, and kept nowhere
        before = release_of(header) if round.base else 0
        return fold(hide=partial(hide, self._ledger, round, settings, updates, before, entropy))

    def _counted(self, round: Round) -> list[Arrival]:
        """Arrivals that the round folds, in their fixed order: by seat, then credits by key."""
        here = {a.seat: a for a in self._ledger.arrivals(place(round)).values()}
        credited = [self._by_key(key) for key in sorted(round.credits)]
        return [here[seat] for seat in sorted(round.arrived)] + credited

    def _by_key(self, key: str) -> Arrival:
        found = self._ledger.arrival(layout.round_of(key), layout.device_of(key))
        if found is None:
            raise Unavailable(f"there is no arrival record of {key}")
        return found[0]

    def _strike(self, round: Round, counted: Sequence[Arrival], unfit: Unfit) -> Event:
        """Updates that the fold's own pass found unfit: recorded and quarantined, then the event."""
        seats, credits = set(), set()
        for arrival in counted:
            if arrival.key in unfit.names:
                quarantine(self._objects, round, arrival.device, unfit.reason)
                if arrival.key in round.credits:
                    credits.add(arrival.key)
                else:
                    seats.add(arrival.seat)
                # In its own round, which for a credit is an earlier one: no later round claims it again.
                refused = replace(arrival, state="refused", reason=unfit.reason)
                self._ledger.save_arrivals(layout.round_of(arrival.key), [refused])
        return Disqualified(frozenset(seats), frozenset(credits))

    def _settle(self, round: Round) -> None:
        """Learn from the round that ended, and let go of what is not needed any more."""
        if round.kind == "train":
            settings = self._run()[0].settings
            if settings.noise:
                take_up(self._ledger, self._objects, round)
            if round.policy.buffered and round.phase is Phase.FAILED:
                give_back(self._ledger, round)
            rounds = heard(self._ledger, round)
            if round.closed_because != STOPPED:
                teach(self._ledger, rounds, self._seats, settings.turnaround_decay, self._stopwatch)
            retire(self._ledger, self._objects, round, settings)

    # Going on

    def _open(self, run: Run) -> bool:
        """Open the run's next round, unless its budget of privacy is spent. If two do it at once, the first
        one's holds. → False where too few devices are there."""
        if run.kind == "train" and (why := stopped(self._ledger, run.name, run.settings, run.round)):
            self._stop(run, why)
            return True
        now, policies, settings = self._clock(), self._policies, run.settings
        fleet = self._ledger.fleet()
        there = eligible(fleet, policies.where, now, offline=settings.offline)
        needed = fewest(settings, len(fleet))
        if len(there) < needed:
            self._wait(run, f"{len(there)} of {needed} devices are there, {len(fleet)} are known")
            return False
        round = next_round(run, there, self._debts(run, now), policies.select, self._objects, now)
        decision = opened(round, round.opened_at)
        committed = replace(decision.round, outbox=decision.effects)
        if self._ledger.save_round(committed, expect=0):
            self._engine.act(committed, 1)
        return True

    def _wait(self, run: Run, why: str) -> None:
        current, version = self._run()
        if current == run and run.reason != (why := f"waiting to open round {run.round}: {why}"):
            self._ledger.save_run(replace(run, reason=why), expect=version)

    def _stop(self, run: Run, why: str) -> None:
        """End the run after the round before the one that it was to open."""
        current, version = self._run()
        if current == run:
            ended = replace(run, round=run.round - 1, state=RunState.DONE, ended_at=self._clock(), reason=why)
            self._ledger.save_run(ended, expect=version)

    def _debts(self, run: Run, now: float) -> Debts:
        """What is owed to the round that `run` is to open; where nobody is waited for, nothing."""
        ended = run.round - 1 if run.kind == "train" else run.round
        if not run.settings.buffered or ended < 1:
            return Debts()
        return debts(self._ledger, known(self._ledger, run.name, ended), self._seats, now)

    def _go_on(self, round: Round) -> None:
        run, version = self._run()
        after = advance(run, round, self._clock(), self._policies.cadence)
        if after != run:
            self._ledger.save_run(after, expect=version)

    # Reading

    def _run(self) -> tuple[Run, int]:
        found = self._ledger.run(self._name)
        if found is None:
            raise Unavailable(f"there is no run {self._name}")
        return found

    def _gate(self, round: Round) -> Gate:
        model = self._header(layout.model(round.run, round.base)) if round.kind == "train" else None
        return training(round, model, self._run()[0].settings)

    def _load_cohort(self, key: str) -> tuple[str, ...]:
        return tuple(msgspec.json.decode(fetch(self._objects, key), type=list[str]))


def _heard(round: Round) -> frozenset[int]:
    """Seats that have answered."""
    return round.arrived | round.refused
