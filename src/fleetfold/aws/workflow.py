"""What the state machine waits for: a token that is kept, and told once how the run stands.

initiate ─▶ waits/{run} (token, the round that it waits for) ─▶ any turn that brings the run there ─▶ told

The record is emptied after the token was told. Who dies in between leaves it to the next turn; of two who
tell at once the second one is not heard; a token of which nobody knows is forgotten.
"""

from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.errors import Unavailable
from fleetfold.messages import Kind, encode
from fleetfold.ports import Records
from fleetfold.wiring.aws import Workflow

WAITS = "waits/"
SHORTEST, LONGEST = 60.0, 31_536_000.0
"""Seconds of patience, at least and at most: a state may wait for a year."""
GRACE = 90.0
"""Seconds after a round's deadline in which what is due happens by itself: a schedule's minute, and some."""
FOLDING = 900.0
"""Seconds that a fold takes at most: a function's own limit."""
TRIES = 50
"""Lost compare-and-sets in a row after which something is wrong with the store."""
PhaseOfRun = Literal["folding", "next", "ended", "failed"]


class Standing(Struct, frozen=True, kw_only=True):
    """Where a run stands, for the workflow: the round's set is fixed and has to be folded, in those shards
    (none: it is not cut); the round is over; or the run is. `patience`: seconds to wait for what is next."""

    run: str
    phase: PhaseOfRun
    round: int
    kind: Kind = "train"
    due: Kind = "train"  # of phase "next": what the next round is for
    fold: str = ""  # digest of the plan
    shards: list[int] = []
    patience: int = int(SHORTEST)
    reason: str = ""


class Wait(Struct, frozen=True, kw_only=True):
    """`token`: of a task which waits until `round` is over or has to be folded, "" for none. `at`: since
    when, in seconds since the epoch, `until`: when an execution that goes on has asked anew. `extended`: the
    execution that has given the run more to do."""

    token: str = ""
    round: int = 0
    kind: Kind = "train"
    at: float = 0.0
    until: float = 0.0
    extended: str = ""


_WAIT = msgspec.json.Decoder(Wait)


def key(run: str) -> str:
    return f"{WAITS}{run}"


def waiting(records: Records, run: str) -> Wait | None:
    """What waits for the run; None: nothing does."""
    found, _ = read(records, run)
    return found if found.token else None


def read(records: Records, run: str) -> tuple[Wait, int]:
    """What is known of who waits for the run, and the record's version."""
    found = records.get(key(run))
    return (_WAIT.decode(found.value), found.version) if found else (Wait(), 0)


def runs(records: Records) -> list[str]:
    """Those that something waits for."""
    found = records.scan(WAITS)
    return [name.removeprefix(WAITS) for name, record in found if _WAIT.decode(record.value).token]


def under_way(records: Records, now: float) -> list[str]:
    """Those that an execution drives, as far as can be told: it has asked for a round, and may be folding."""
    found = records.scan(WAITS)
    return [name.removeprefix(WAITS) for name, record in found if _WAIT.decode(record.value).until > now]


def keep(records: Records, run: str, change: Callable[[Wait], Wait]) -> None:
    for _ in range(TRIES):
        old, version = read(records, run)
        new = change(old)
        if new == old or records.swap(key(run), encode(new), version):
            return
    raise Unavailable(f"lost {TRIES} compare-and-sets on {key(run)}")


def tell(records: Records, workflow: Workflow, wait: Wait, standing: Standing) -> None:
    """Answer what waits. Not heard where somebody else was first, or where it does not wait any more."""
    workflow.tell(wait.token, encode(standing))
    keep(records, standing.run, lambda now: replace(now, token="") if now.token == wait.token else now)


def patience(seconds: float) -> int:
    """Whole seconds of waiting for something that is due in so many."""
    return int(min(max(seconds + GRACE, SHORTEST), LONGEST))
