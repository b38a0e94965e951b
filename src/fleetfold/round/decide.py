"""The round's state machine: everything that moves a round from one phase to another is in this file.

Delivery is at-least-once and unordered, so an event that a phase does not expect is *ignored* with a
reason, never an error, and replaying any event is harmless. Every decision says why, or why not yet.
The table TRANSITIONS is data: `diagram()` draws the picture in docs/design.md from it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from fleetfold.messages import Kind
from fleetfold.round.events import (
    Arrived,
    Disqualified,
    Effect,
    Event,
    Fold,
    Folded,
    GiveUp,
    Invite,
    Publish,
    Refused,
    Resumed,
    Stopped,
    Ticked,
    WakeAt,
    Withheld,
)
from fleetfold.round.state import Phase, Round

STOPPED = "the run was stopped"
"""Why such a round closed: nothing can be learnt from it about its devices."""
Close = Callable[[Round, float], str]
"""The user's own rule for when to stop waiting: (round, now) → why the round is to be folded, or ""."""


class Decision(Struct, frozen=True):
    round: Round
    effects: tuple[Effect, ...] = ()
    reason: str = ""  # one line for a person: why this, or why not yet


def opened(round: Round, now: float) -> Decision:
    """The first decision of a round: invite its cohort, and be woken at the deadline."""
    owed = f", {_updates(len(round.owed))} owed" if round.owed else ""
    why = f"invited {round.invited} devices{owed}"
    asked = replace(round, asked_at=now, leased_at=now, reason=why)
    return Decision(asked, (Invite(), WakeAt(asked.deadline_at)), why)


def decide(round: Round, event: Event, now: float, close: Close | None = None) -> Decision:
    """What `round` becomes when `event` happens at `now` (seconds), what must be done, and why."""
    transition = TRANSITIONS.get((round.phase, type(event)))
    if transition is None:
        return Decision(round, reason=f"ignored: {type(event).__name__} while {round.phase}")
    return transition.rule(round, event, now, close)


def _collect(round: Round, event: Arrived, now: float, close: Close | None) -> Decision:
    arrived = round.arrived | (event.seats - round.refused)
    after = replace(
        round, arrived=arrived, credits=round.credits | event.credits, owed=round.owed - event.answered
    )
    return _close_if_ready(after, now, close)


def _strike(round: Round, event: Refused, now: float, close: Close | None) -> Decision:
    """A refusal while the round is open. Whoever has arrived stays arrived: first come, first served."""
    return _close_if_ready(replace(round, refused=round.refused | (event.seats - round.arrived)), now, close)


def _tick(round: Round, event: Ticked, now: float, close: Close | None) -> Decision:
    return _close_if_ready(round, now, close)


def _ask_again(round: Round, event: Resumed, now: float, close: Close | None) -> Decision:
    if round.silent <= 0:
        return Decision(round, reason="ignored: every device has answered")
    again = opened(round, now)
    why = f"resumed: {round.unanswered} of {round.invited} devices asked again"
    return Decision(replace(again.round, reason=why), again.effects, why)


def _close_if_ready(round: Round, now: float, close: Close | None) -> Decision:
    have, policy = round.counted, round.policy
    ready = have >= policy.quorum
    if have >= policy.target and close is None:
        return _send_folder(round, now, f"target {policy.target} reached")
    if close is not None and ready and (why := close(round, now)):
        return _send_folder(round, now, why)
    if round.silent <= 0:
        why = f"every device has answered, {len(round.refused)} refused"
        why = why if round.invited else "nobody is at work"
        return _send_folder(round, now, why) if ready else _fail(round, now, why)
    if now >= round.deadline_at:
        why = "deadline passed"
        return _send_folder(round, now, why) if ready else _fail(round, now, why)
    why = f"waiting: {have} of {_updates(policy.target)}, {round.deadline_at - now:.0f} s left"
    return Decision(replace(round, reason=why), reason=why)


def _send_folder(round: Round, now: float, why: str) -> Decision:
    reason = f"folding {_tally(round)}: {why}"
    closed_at = round.closed_at or now
    folding = replace(
        round, phase=Phase.FOLDING, closed_at=closed_at, leased_at=now, closed_because=why, reason=reason
    )
    return Decision(folding, (Fold(),), reason)


def _fail(round: Round, now: float, why: str) -> Decision:
    reason = f"{_tally(round)}, quorum {round.policy.quorum}: {why}"
    closed_at = round.closed_at or now
    failed = replace(round, phase=Phase.FAILED, closed_at=closed_at, ended_at=now, reason=reason)
    return Decision(failed, (GiveUp(),), reason)


def _take_out(round: Round, event: Disqualified, now: float, close: Close | None) -> Decision:
    """The fold's own pass found updates that must not count: fold again without them."""
    arrived, credits = round.arrived - event.seats, round.credits - event.credits
    if (arrived, credits) == (round.arrived, round.credits):
        return Decision(round, reason="ignored: already taken out")
    rest = replace(round, arrived=arrived, credits=credits, refused=round.refused | event.seats)
    out = len(round.arrived) + len(round.credits) - len(arrived) - len(credits)
    why = f"{round.closed_because}; {out} refused in the fold"
    return _send_folder(rest, now, why) if rest.counted >= round.policy.quorum else _fail(rest, now, why)


def _withhold(round: Round, event: Withheld, now: float, close: Close | None) -> Decision:
    return _fail(round, now, event.reason)


def _give_up(round: Round, event: Stopped, now: float, close: Close | None) -> Decision:
    return _fail(replace(round, closed_because=STOPPED), now, STOPPED)


def _renew(round: Round, event: Ticked, now: float, close: Close | None) -> Decision:
    if now < round.leased_at + round.policy.lease:
        return Decision(round, reason=round.reason)
    return _send_folder(round, now, round.closed_because)  # the folder went silent: send another


_VERBS: Mapping[Kind, str] = {"train": "folded", "evaluate": "evaluated from", "message": "answered with"}


def _publish(round: Round, event: Folded, now: float, close: Close | None) -> Decision:
    if (event.seats, event.credits) != (round.arrived, round.credits):
        return Decision(round, reason="ignored: that fold was of another set of updates")
    why = f"{_VERBS[round.kind]} {_tally(round)}: {round.closed_because}"
    done = replace(
        round, phase=Phase.DONE, ended_at=now, reason=why,
        model=event.model, digest=event.digest, metrics=event.metrics, release=event.release,
    )  # fmt: skip
    return Decision(done, (Publish(),), why)


def _tally(round: Round) -> str:
    late = len(round.credits)
    if round.policy.buffered:
        return _updates(round.counted) + (f", {late} of earlier rounds" if late else "")
    return _updates(len(round.arrived)) + (f" and {late} late" if late else "")


def _updates(n: int) -> str:
    return f"{n} update" if n == 1 else f"{n} updates"


class Transition(NamedTuple):
    rule: Callable[..., Decision]
    to: tuple[Phase, ...]  # where it may lead


_CLOSES = (Phase.OPEN, Phase.FOLDING, Phase.FAILED)

TRANSITIONS: dict[tuple[Phase, type[Event]], Transition] = {
    (Phase.OPEN, Arrived): Transition(_collect, _CLOSES),
    (Phase.OPEN, Refused): Transition(_strike, _CLOSES),
    (Phase.OPEN, Ticked): Transition(_tick, _CLOSES),
    (Phase.OPEN, Stopped): Transition(_give_up, (Phase.FAILED,)),
    (Phase.OPEN, Resumed): Transition(_ask_again, (Phase.OPEN,)),
    (Phase.FOLDING, Disqualified): Transition(_take_out, (Phase.FOLDING, Phase.FAILED)),
    (Phase.FOLDING, Withheld): Transition(_withhold, (Phase.FAILED,)),
    (Phase.FOLDING, Ticked): Transition(_renew, (Phase.FOLDING,)),
    (Phase.FOLDING, Folded): Transition(_publish, (Phase.FOLDING, Phase.DONE)),
}


def diagram() -> str:
    """The table as a Mermaid state diagram; a phase that an event may leave as it is has no arrow."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), transition in TRANSITIONS.items():
        for to in transition.to:
            if to != phase:
                arrows.setdefault((phase, to), []).append(event.__name__)
    lines = [f"    {a.name} --> {b.name}: {', '.join(events)}" for (a, b), events in arrows.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> OPEN: Opened", *lines])
