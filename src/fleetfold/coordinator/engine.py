"""Moves a round from where it stands: event ─▶ decide ─▶ commit(expect=version) ─▶ act ─▶ (event) ─▶ decide …

What is decided is committed with what has to be done (the outbox), and leaves it in the commit that follows
the deed. So whoever drives a round may die between any two lines, and the next one goes on from there.
"""

from collections.abc import Callable
from contextlib import nullcontext

from msgspec.structs import replace

from fleetfold.coordinator.turns import CROWD, Turn, no_turn
from fleetfold.errors import Unavailable
from fleetfold.ledger import Ledger, place
from fleetfold.round.decide import Close, Decision, decide
from fleetfold.round.events import Arrived, Effect, Event, Ticked
from fleetfold.round.state import Phase, Round

Perform = Callable[[Effect, Round], Event | None]
"""Does one effect; it may be done twice. → what has happened by that."""
TRIES = 50
"""Lost compare-and-sets in a row after which something is wrong with the store."""


class Engine:
    """`close`: the user's own rule for when to stop waiting. `sole`: nobody else drives these rounds, so what
    a dead one left undone is done at once and not only when its lease is over. `turn`: how many who report at
    once take turns. `clock`: seconds since the epoch."""

    def __init__(
        self, ledger: Ledger, clock: Callable[[], float], perform: Perform, close: Close | None = None, *,
        sole: bool = False, turn: Turn = no_turn,
    ) -> None:  # fmt: skip
        self._ledger, self._clock, self._perform, self._close = ledger, clock, perform, close
        self._sole, self._turn = sole, turn

    def tend(self, round: Round, version: int) -> float | None:
        """Do what is due in a round that has not ended, or not done all. → when to look again, in seconds
        since the epoch; None: at once, for something has changed."""
        lease_over = round.leased_at + round.policy.lease
        if round.outbox and not (self._sole or self._clock() >= lease_over):
            return lease_over  # whoever decided this is at work on it
        if round.outbox:
            self.act(round, version)
        elif self.feed(round, Ticked()).phase is round.phase:
            return lease_over if round.phase is Phase.FOLDING else round.deadline_at
        return None

    def feed(self, round: Round, event: Event) -> Round:
        """Let `event` happen to the round as it is now, commit what was decided, and do it."""
        many = isinstance(event, Arrived) and len(event.seats) >= CROWD
        for lost in range(TRIES):
            with self._turn(place(round)) if many or lost else nullcontext():
                current, version = self.read(round)
                decision = decide(current, event, self._clock(), self._close)
                if not decision.effects and replace(decision.round, reason=current.reason) == current:
                    return current
                committed = self._commit(current, decision, version)
            if committed is not None:
                return self.act(committed, version + 1) if committed.outbox else committed
        raise Unavailable(f"lost {TRIES} compare-and-sets on {place(round)}")

    def act(self, round: Round, version: int) -> Round:
        """Do what the outbox says, in order. An effect leaves it in the commit that follows the deed."""
        while round.outbox:
            effect, *rest = round.outbox
            event = self._perform(effect, round)
            decision = Decision(round)
            if event is not None:
                decision = decide(round, event, self._clock(), self._close)
            after = replace(decision.round, outbox=(*rest, *decision.effects))
            if not self._ledger.save_round(after, version):
                return self.read(round)[0]  # somebody else has gone on from here
            round, version = after, version + 1
        return round

    def read(self, round: Round) -> tuple[Round, int]:
        """The round as it is now, and its record's version."""
        found = self._ledger.round(round.run, round.number, round.kind)
        if found is None:
            raise Unavailable(f"there is no {place(round)}")
        return found

    def _commit(self, before: Round, decision: Decision, version: int) -> Round | None:
        waiting = tuple(effect for effect in before.outbox if effect not in decision.effects)
        after = replace(decision.round, outbox=waiting + decision.effects)
        return after if self._ledger.save_round(after, version) else None
