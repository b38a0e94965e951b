"""What a run is, and what comes after a round: the next one, an evaluation, the end.

    RUNNING ──rounds done──▶ DONE
     ▲ ├────too many failed rounds in a row──▶ FAILED
     │ └────as is wished of it──▶ PAUSED, STOPPED ─┐
     └──────────────────resumed────────────────────┘

A run stands at one round; `advance` moves it on when that round has ended, and only then, so that
the same ended round twice changes nothing.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from fleetfold.messages import Kind
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.settings import Settings


class RunState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"  # between two rounds; nobody drives it until it is resumed
    STOPPED = "stopped"  # the same, and the round that was open was given up for it
    DONE = "done"
    FAILED = "failed"


Wish = Literal["", "pause", "stop"]
"""What people ask of a run, and whoever drives it obeys: to pause when the open round has ended, or to give
that round up and stop now."""


class Run(Struct, frozen=True, kw_only=True):
    """The training of one model: its settings, the round where it stands, its newest model."""

    name: str
    app: str  # where the app was loaded from
    settings: Settings
    started_at: float
    state: RunState = RunState.RUNNING
    round: int = 1  # open, or to be opened next
    kind: Kind = "train"
    opens_at: float = 0.0
    version: int = 0  # of the newest model
    digest: str = ""  # sha256 of it
    failed: int = 0  # rounds in a row
    messages: bool = False  # its rounds are opened by an app of another framework, which sends messages
    ended_at: float = 0.0
    reason: str = ""
    wish: Wish = ""  # what has not been obeyed yet


Cadence = Callable[[float], float]
"""How long from one round's start to the next, in seconds, given how long the last one took."""


def advance(run: Run, round: Round, now: float, cadence: Cadence) -> Run:
    """`run` after `round` has ended; unchanged if the round has not, or if the run has passed it: after its
    last round it stays where it is, and does not pass it twice."""
    passed = run.state is not RunState.RUNNING or (round.number, round.kind) != (run.round, run.kind)
    if round.phase not in ENDED or passed:
        return run
    if round.kind == "evaluate":
        return _next(run, round, now, cadence)
    if round.phase is Phase.FAILED and run.wish == "stop":
        return halted(replace(run, round=round.number + 1), now)
    if round.phase is Phase.FAILED:
        failed = run.failed + 1
        if failed >= run.settings.patience:
            why = f"{failed} rounds in a row failed; the last: {round.reason}"
            return replace(run, state=RunState.FAILED, failed=failed, ended_at=now, reason=why)
        return _next(replace(run, failed=failed), round, now, cadence)
    run = replace(run, version=run.version + 1, digest=round.digest, failed=0)
    if run.settings.evaluate == "cohort" and round.number % run.settings.evaluate_every == 0:
        return replace(run, kind="evaluate", opens_at=now, reason=f"evaluating after round {round.number}")
    return _next(run, round, now, cadence)


def _next(run: Run, round: Round, now: float, cadence: Cadence) -> Run:
    if round.number >= run.settings.rounds:
        why = f"{run.settings.rounds} rounds done"
        return replace(run, kind="train", state=RunState.DONE, ended_at=now, reason=why)
    opens_at = max(now, round.opened_at + cadence(now - round.opened_at))
    return replace(run, kind="train", round=round.number + 1, opens_at=opens_at, reason="")


def halted(run: Run, now: float) -> Run:
    """`run` after what was wished of it: it stands before a round that is not opened until it is resumed."""
    state = RunState.STOPPED if run.wish == "stop" else RunState.PAUSED
    what = f"round {run.round}" if run.kind == "train" else f"the evaluation after round {run.round}"
    return replace(run, state=state, ended_at=now, reason=f"{state} before {what}", wish="")
