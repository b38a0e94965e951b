"""What a round *is*: plain frozen data, no behaviour.

The value is one record, however large the cohort: devices are seats (numbers), their names lie in the
cohort's own object, their updates' particulars in one small arrival record each.
"""

from enum import StrEnum

from msgspec import Struct

from fleetfold.messages import Kind, Metrics
from fleetfold.round.events import Credits, Effect, Owed, Seats


class Phase(StrEnum):
    OPEN = "open"  # devices are training; updates may arrive
    FOLDING = "folding"  # the set of updates is fixed; a folder holds the lease
    DONE = "done"  # a new model is durable
    FAILED = "failed"  # closed without a model; the old one stands


ENDED = frozenset({Phase.DONE, Phase.FAILED})


class Policy(Struct, frozen=True, kw_only=True):
    """When a round may close: numbers of updates, and seconds."""

    target: int  # enough: fold at once
    quorum: int  # fewest worth folding
    deadline: float  # stop waiting after this long
    lease: float = 60.0  # a folder silent this long has died
    buffered: bool = False  # credits count as arrivals do


class Round(Struct, frozen=True, kw_only=True):
    """One pass: invite a cohort, collect updates, fold them into the next global model."""

    run: str
    number: int
    kind: Kind = "train"
    base: int  # version of the model that the cohort was given
    cohort: str  # key of the object that names the devices, in the order of their seats
    batch: str = ""  # of messages: key of the object that says what is sent to whom
    label: str = ""  # what the app calls it, for people: "train"
    turn: int = 0  # the app's own number of the round that it belongs to; 0: it has none
    sent: int = 0  # bytes that each device is sent, on average
    invited: int  # seats in it
    policy: Policy
    opened_at: float
    asked_at: float = 0.0  # when the cohort was last invited: at opening, and again after a standstill
    phase: Phase = Phase.OPEN
    arrived: Seats = frozenset()
    refused: Seats = frozenset()
    credits: Credits = frozenset()
    owed: Owed = frozenset()  # by earlier rounds, and waited for here; shrinks as they answer
    closed_at: float = 0.0  # when the set of updates was fixed
    closed_because: str = ""
    leased_at: float = 0.0  # when the newest folder was sent
    ended_at: float = 0.0
    model: str = ""
    digest: str = ""
    release: int = 0  # which of the run's private releases the model is
    metrics: dict[str, Metrics] = {}
    reason: str = ""  # of the newest change, for people
    outbox: tuple[Effect, ...] = ()  # decided, committed, not yet known to be done

    @property
    def deadline_at(self) -> float:
        return self.asked_at + self.policy.deadline

    @property
    def counted(self) -> int:
        """Updates that count towards target and quorum."""
        return len(self.arrived) + (len(self.credits) if self.policy.buffered else 0)

    @property
    def unanswered(self) -> int:
        """Devices that were invited and have not answered."""
        return self.invited - len(self.arrived) - len(self.refused)

    @property
    def silent(self) -> int:
        """Answers that may still come: of those who were invited here, and of those who owe one."""
        return self.unanswered + len(self.owed)
