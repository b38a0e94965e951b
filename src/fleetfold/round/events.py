"""What can happen to a round (events, past participles) and what must then be done (effects, imperatives).

A device has a *seat*: its index in the round's cohort. Sets of seats make events idempotent and
commutative: the same arrival twice, or two arrivals in either order, are the same set.
"""

from msgspec import Struct

from fleetfold.messages import Metrics

Seats = frozenset[int]
Credits = frozenset[str]
"""Keys of late updates of earlier rounds that are credited to this one."""
Owed = frozenset[tuple[int, int]]
"""Updates that earlier rounds still owe, as (round, seat)."""


class Arrived(Struct, frozen=True, tag=True):
    """Updates passed the gate. With the credits: late ones of earlier rounds that count here. `answered`:
    what earlier rounds owed and nobody waits for any more, because it is credited, or was refused."""

    seats: Seats = frozenset()
    credits: Credits = frozenset()
    answered: Owed = frozenset()


class Refused(Struct, frozen=True, tag=True):
    """These devices will not contribute: refused by the gate, by themselves, or failed."""

    seats: Seats


class Disqualified(Struct, frozen=True, tag=True):
    """The fold's own pass found these updates unfit, after they had been counted."""

    seats: Seats = frozenset()
    credits: Credits = frozenset()


class Withheld(Struct, frozen=True, tag=True):
    """These updates may not be folded: what that tells would exceed the run's privacy budget."""

    reason: str


class Stopped(Struct, frozen=True, tag=True):
    """Somebody has stopped the run."""


class Ticked(Struct, frozen=True, tag=True):
    """Time has passed."""


class Resumed(Struct, frozen=True, tag=True):
    """Coordinator and devices were both away, and are back: the cohort gets its full time again."""


class Folded(Struct, frozen=True, tag=True):
    """A fold of exactly these updates is durable under `model`."""

    seats: Seats
    credits: Credits = frozenset()
    model: str = ""  # its key; empty after a round that only evaluates
    digest: str = ""
    metrics: dict[str, Metrics] = {}  # by who measured: "trained", "devices", "test"; "privacy"
    release: int = 0  # which private release the model is


Event = Arrived | Refused | Disqualified | Withheld | Stopped | Ticked | Resumed | Folded


class Invite(Struct, frozen=True, tag=True):
    """Publish a task for every seat."""


class WakeAt(Struct, frozen=True, tag=True):
    """Have somebody tick the round at `time`, if nothing else does before."""

    time: float


class Fold(Struct, frozen=True, tag=True):
    """Fold what has arrived into the next model."""


class Publish(Struct, frozen=True, tag=True):
    """Make the round's model the run's newest, and go on."""


class GiveUp(Struct, frozen=True, tag=True):
    """Keep the old model, and go on."""


Effect = Invite | WakeAt | Fold | Publish | GiveUp
