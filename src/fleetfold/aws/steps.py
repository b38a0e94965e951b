"""What the six functions do. Each one takes in what it was called with, and ends with one turn of its run:

initiate  collect  status  tick ─▶ turn: step ─▶ where does the run stand? ─▶ tell the workflow, or be woken
fold_shard: a part of a model     publish: the model, and where the run stands then

A turn may die between any two lines, come twice and run beside itself: everything lies in the records.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, reduce
from itertools import product
from typing import Any, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters import poll_bus
from fleetfold.adapters.posting import LIFETIME
from fleetfold.aws import mail, workflow
from fleetfold.aws.mail import Message
from fleetfold.aws.workflow import PhaseOfRun, Standing, Wait
from fleetfold.coordinator import Coordinator, cutting, errands
from fleetfold.coordinator.cutting import Told, Unfinished
from fleetfold.coordinator.granting import grant
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import extend
from fleetfold.coordinator.policy import policies
from fleetfold.errors import BadConfig, Unavailable, blame, shown
from fleetfold.fold.recipe import Unfit
from fleetfold.ledger import Folding, Ledger, place
from fleetfold.messages import Kind, encode
from fleetfold.ports import Letter
from fleetfold.round.fleet import Device, Sighting, sighted
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.view import row
from fleetfold.wiring.aws import Cloud

MINUTE = 60.0
"""Seconds from now at least to the next look at a run: schedules are no more exact."""
OVER = ("ended", "failed")
"""Phases in which a run has no more rounds."""
ENDLESS = 1_000_000
"""Rounds from which on an execution has no number of its own: it goes on as long as its run does."""


def initiate(
    cloud: Cloud, run: str, rounds: int = ENDLESS, token: str = "", execution: str = ""
) -> None:  # fmt: skip
    """Open the round that is due, and keep the token of who waits for it. `rounds`: so many more of a run
    that has ended, once in an `execution`. Raises BadConfig if there is no such run."""
    ledger = cloud.ledger
    wait, _ = workflow.read(cloud.records, run)
    by = execution if rounds < ENDLESS else wait.extended
    if rounds < ENDLESS and not (execution and wait.extended == execution):
        _extend(ledger, run, rounds)
    now = _known(ledger, run)
    if token:
        at = cloud.clock()
        due = max(now.opens_at - at, 0.0) + now.settings.deadline
        until = at + workflow.patience(due) + workflow.FOLDING
        kept = Wait(token=token, round=now.round, kind=now.kind, at=at, until=until, extended=by)
        workflow.keep(cloud.records, run, lambda old: old if old.token == token else kept)
    turn(cloud, run, urgent=True, opening=True)


def collect(cloud: Cloud, messages: Sequence[Message]) -> list[str]:
    """Objects were created. → ids of the messages that have to come again."""
    failed = _deliver(cloud, mail.created(messages, cloud.objects, cloud.ignored))
    for message, key in mail.words(messages):
        failed += _tried(cloud, [message.id], partial(_polled, cloud, message, key))
    return list(dict.fromkeys(failed))


def status(cloud: Cloud, messages: Sequence[Message]) -> list[str]:
    """Devices have spoken, come or left. → ids of the messages that have to come again."""
    said = mail.said(messages, cloud.ignored)
    failed = _deliver(cloud, said.letters)
    failed += _tried(cloud, [id for id, _ in said.sightings], partial(_see, cloud, said.sightings))
    for id, ask in said.asks:
        failed += _tried(cloud, [id], partial(_grant, cloud, ask))
    answers = [answer for _, answer in said.answers]
    failed += _tried(cloud, [id for id, _ in said.answers], partial(_answer, cloud, answers))
    return list(dict.fromkeys(failed))


def tick(cloud: Cloud, run: str) -> None:
    """Time has passed."""
    turn(cloud, run, woken=True)


def fold_shard(cloud: Cloud, run: str, round: int, fold: str, shard: int) -> dict[str, Any]:
    """Fold one shard of a plan. → nothing, or the updates that are unfit, and why. Of a plan that was
    replaced there is nothing to do."""
    try:
        plan = cutting.load(cloud.objects, layout.round(run, round, "train"), fold)
        cutting.fold_part(cloud.objects, cloud.uploads, plan, shard)
    except KeyError:
        return {}
    except Unfit as unfit:
        return {"unfit": list(unfit.names), "reason": unfit.reason}
    return {}


def publish(cloud: Cloud, told: Standing, folded: Sequence[Mapping[str, Any]]) -> Standing:
    """Make the model of what was folded, and conclude the round. → where the run stands then."""
    ledger = cloud.ledger
    run, over = _known(ledger, told.run), (told.round, told.kind)
    try:
        coordinator = _coordinator(cloud, run, (), urgent=True, found=_found(told.fold, folded))
        if (run.round, run.kind) == over:
            with suppress(Unfinished):  # its shards are folded again
                coordinator.fold()
        coordinator.step(opening=False)
    except BadConfig as error:
        _fail(ledger, told.run, error.sentence, cloud.clock())
    stands = _stands(cloud, told.run, over)
    if stands is None:
        raise Unavailable(f"round {told.round} of run {told.run} is not over yet")
    _measure(cloud, ledger, run)
    if stands.phase in OVER:
        _next_in_turn(cloud, told.run)
    return stands


# A turn


def turn(
    cloud: Cloud, name: str, letters: Sequence[Letter] = (), *,
    urgent: bool = False, opening: bool = False, woken: bool = False,
) -> None:  # fmt: skip
    """Everything that can be done for a run now, and then what the workflow waits for, or the next look.
    `urgent`: what a dead one left undone is done at once; `opening`: although nothing waits for the round;
    `woken`: the alarm that was set has rung."""
    ledger = cloud.ledger
    found = ledger.run(name) if layout.valid_name(name) else None
    if found is None:
        for _ in range(max(1, len(letters))):
            cloud.ignored(f"message for run {shown(name, 80)!r}, which is not here")
        return
    if found[0].messages:
        wake = _messenger(cloud, found[0], letters).step()
        _measure(cloud, ledger, found[0])
        if woken and wake != float("inf"):
            cloud.alarm.wake_at(name, max(wake, cloud.clock() + MINUTE))
        return
    wake = float("inf")
    try:
        coordinator = _coordinator(cloud, found[0], letters, urgent=urgent)
        wake = coordinator.step(opening=False)
        # Read after the step: who waits from now on finds what the step has done.
        wait = workflow.waiting(cloud.records, name)
        if _is_due(ledger, name, wait, opening):
            other = _ahead(cloud, ledger, name)
            wake = _postponed(ledger, name, other, cloud.clock()) if other else coordinator.step(opening=True)
    except BadConfig as error:
        _fail(ledger, name, error.sentence, cloud.clock())
        wait = workflow.waiting(cloud.records, name)
    _measure(cloud, ledger, found[0])
    if wait is None:
        return
    stands = _stands(cloud, name, (wait.round, wait.kind))
    if stands is not None:
        workflow.tell(cloud.records, cloud.workflow, wait, stands)
        if stands.phase in OVER:
            _next_in_turn(cloud, name)
    elif wake != float("inf") and (woken or not _is_awaited(ledger, name)):
        cloud.alarm.wake_at(name, max(wake, cloud.clock() + MINUTE))


def _messenger(cloud: Cloud, run: Run, letters: Sequence[Letter]) -> Messenger:
    """Of a run whose app, elsewhere, opens exchanges and reads the answers."""
    return Messenger(
        run.name, cloud.ledger, cloud.objects, cloud.bus(letters), cloud.alarm, policies(run.settings),
        cloud.clock, merges=False, site=cloud.site, ignored=cloud.ignored, turn=cloud.turn,
    )  # fmt: skip


def _coordinator(
    cloud: Cloud, run: Run, letters: Sequence[Letter], *, urgent: bool, found: Sequence[Told] = ()
) -> Coordinator:
    """`found`: what the shards' functions did. Raises BadConfig where the run's settings name what is not
    here."""
    elsewhere = partial(cutting.prepare, cloud.ledger, cloud.objects, cloud.uploads, cloud.site)
    made = partial(cutting.assemble, cloud.ledger, cloud.uploads, cloud.site, found)
    return Coordinator(
        run.name, cloud.ledger, cloud.objects, cloud.bus(letters), cloud.alarm, policies(run.settings),
        cloud.clock, sole=urgent, site=replace(cloud.site, folders=1), elsewhere=elsewhere, made=made,
        ignored=cloud.ignored, turn=cloud.turn,
    )  # fmt: skip


def _is_due(ledger: Ledger, name: str, wait: Wait | None, opening: bool) -> bool:
    """Whether the run stands before the very round that somebody waits for."""
    run = _known(ledger, name)
    if run.messages:
        return False  # its app opens it
    asked = opening if wait is None else (wait.round, wait.kind) == (run.round, run.kind)
    return asked and run.state is RunState.RUNNING and ledger.round(name, run.round, run.kind) is None


def _ahead(cloud: Cloud, ledger: Ledger, name: str) -> str:
    """The run that has the fleet's devices, "" if none has: a device does one task at a time. One whose round
    is open has them, and then the one that was begun first."""
    own = _known(ledger, name)
    others = [
        ledger.run(other) for other in workflow.under_way(cloud.records, cloud.clock()) if other != name
    ]
    running = [found[0] for found in others if found and found[0].state is RunState.RUNNING]
    for run in sorted(running, key=lambda run: (run.started_at, run.name)):
        round = ledger.round(run.name, run.round, run.kind)
        if (run.started_at, run.name) < (own.started_at, name) or (round and round[0].phase is Phase.OPEN):
            return run.name
    return ""


def _postponed(ledger: Ledger, name: str, other: str, now: float) -> float:
    """Say what the run waits for. → when to look again."""
    found = ledger.run(name)
    if found:
        run, version = found
        why = f"waiting to open round {run.round}: run {other} has the devices"
        if run.reason != why:
            ledger.save_run(replace(run, reason=why), version)
    return now + MINUTE


def _next_in_turn(cloud: Cloud, ended: str) -> None:
    """The devices are free: runs that wait for them may have them. What fails there is not the ended run's
    trouble, and is tried again when the waiting run looks by itself."""
    for run in workflow.runs(cloud.records):
        if run != ended and _is_due(cloud.ledger, run, workflow.waiting(cloud.records, run), opening=False):
            _tried(cloud, [run], partial(turn, cloud, run))


def _is_awaited(ledger: Ledger, name: str) -> bool:
    """Whether the run's round is open, with everything done: then an alarm was set for its deadline."""
    run = _known(ledger, name)
    found = ledger.round(name, run.round, run.kind)
    return found is not None and found[0].phase is Phase.OPEN and not found[0].outbox


def _stands(cloud: Cloud, name: str, over: tuple[int, Kind]) -> Standing | None:
    """What is told to who waits for the end of round `over`; None: it is not over."""
    ledger, now = cloud.ledger, cloud.clock()
    run = _known(ledger, name)
    number, kind = over
    if run.state is not RunState.RUNNING:
        phase: PhaseOfRun = "failed" if run.state is RunState.FAILED else "ended"  # or it stands
        return Standing(run=name, phase=phase, round=run.round, reason=run.reason)
    found = ledger.round(name, run.round, run.kind)
    round = found[0] if found else None
    due = round.deadline_at if round else max(run.opens_at, now) + run.settings.deadline
    patience = workflow.patience(due - now)
    if round is not None and round.phase is Phase.FOLDING and round.kind == "train":
        plan = _plan(ledger, round)
        if plan is not None:
            return Standing(
                run=name, phase="folding", round=round.number, fold=plan.plan,
                shards=list(range(plan.shards)), patience=patience, reason=round.reason,
            )  # fmt: skip
    if (run.round, run.kind) != over:
        return Standing(run=name, phase="next", round=number, kind=kind, due=run.kind, patience=patience)
    return None


def _found(plan: str, folded: Sequence[Mapping[str, Any]]) -> list[Told]:
    told = [msgspec.convert(each, _Folded) for each in folded]
    return [Told(plan, each.unfit, each.reason) for each in told if each.unfit]


class _Folded(Struct, frozen=True):
    unfit: tuple[str, ...] = ()
    reason: str = ""


def _plan(ledger: Ledger, round: Round) -> Folding | None:
    """By which the round's set is to be folded, once somebody has made it: a later set is a smaller one."""
    found = ledger.folding(place(round))
    return found[0] if found and found[0].count == len(round.arrived) + len(round.credits) else None


# What devices say


def _deliver(cloud: Cloud, letters: Sequence[Letter]) -> list[str]:
    """A turn of each run that letters have come for. → ids of those that failed."""
    failed = list[str]()
    for run, own in mail.by_run(letters).items():
        failed += _tried(cloud, [mail.message_of(letter) for letter in own], partial(turn, cloud, run, own))
    return list(dict.fromkeys(failed))


def _tried(cloud: Cloud, ids: Sequence[str], work: Callable[[], None]) -> list[str]:
    """Do it. → `ids`, if that failed: they come again, and nobody else's do."""
    if not ids:
        return []
    try:
        work()
    except Exception as error:  # noqa: BLE001 - of one run, or one device: others go on
        cloud.troubled(error.sentence if isinstance(error, Unavailable) else blame(error))
        return list(ids)
    return []


def _polled(cloud: Cloud, message: Message, key: str) -> None:
    """What a device without a connection says is what any other says; then it gets its next addresses."""
    heard = cloud.polled.hear(key) if cloud.polled else "words of a device that polls"
    if cloud.polled is None or isinstance(heard, str):
        cloud.ignored(str(heard))
        return
    said = [Message(f"{message.id}.{n}", body, message.at) for n, body in enumerate(poll_bus.messages(heard))]
    if status(cloud, said):
        raise Unavailable(f"what {heard.device} says by mail is not all taken yet")
    cloud.polled.renew(heard)


def _see(cloud: Cloud, sightings: Sequence[tuple[str, Sighting]]) -> None:
    """Into the registry, of those who are in it; then runs that wait for devices may have them."""
    by_device = dict[str, list[Sighting]]()
    for _, sighting in sightings:
        by_device.setdefault(sighting.device, []).append(sighting)
    ledger = cloud.ledger
    after = ledger.amend(by_device, lambda device: reduce(sighted, by_device[device.name], device))
    if fresh := _enlist(ledger, sightings, {device.name for device in after}):
        after += ledger.amend(fresh, lambda device: reduce(sighted, by_device[device.name], device))
    for _ in range(len(by_device) - len(after)):
        cloud.ignored("word of a device that does not belong to the fleet")
    spoke = {s.device for _, s in sightings if s.online and (s.says or s.session is not None)}
    if any(d.name in spoke and d.says and d.says.online and d.says.available for d in after):
        for run in workflow.runs(cloud.records):
            if _is_due(ledger, run, workflow.waiting(cloud.records, run), opening=False):
                turn(cloud, run)


def _enlist(ledger: Ledger, sightings: Sequence[tuple[str, Sighting]], known: set[str]) -> list[str]:
    """Put into the registry who is not in it and says on the fleet's own topics that it is there: the broker
    lets only those speak there who came by a claim, or are cores of the fleet's group."""
    fresh = dict.fromkeys(s.device for _, s in sightings if s.says and s.online and s.device not in known)
    for name in fresh:
        ledger.register(Device(name=name))
    return list(fresh)


def _grant(cloud: Cloud, ask: Any) -> None:
    cloud.bus(()).grant(grant(ask, cloud.ledger, cloud.objects, cloud.signer, LIFETIME))


def _answer(cloud: Cloud, answers: Sequence[Any]) -> None:
    for _ in errands.answered(cloud.records, [errands.bounded(answer) for answer in answers]):
        cloud.ignored("answer to a command that nobody waits for")


# Of runs


def _known(ledger: Ledger, name: str) -> Run:
    found = ledger.run(name) if layout.valid_name(name) else None
    if found is None:
        raise BadConfig(f"there is no run {shown(name, 80)!r} here", next="fleetfold run APP --aws")
    return found[0]


def _extend(ledger: Ledger, name: str, rounds: int) -> None:
    run = _known(ledger, name)
    if run.state is not RunState.RUNNING:
        extend(ledger, name, run.round + max(1, rounds))


def _fail(ledger: Ledger, name: str, why: str, now: float) -> None:
    while (found := ledger.run(name)) and found[0].state is RunState.RUNNING:
        ledger.save_run(replace(found[0], state=RunState.FAILED, reason=why, ended_at=now), found[1])


def _measure(cloud: Cloud, ledger: Ledger, before: Run) -> None:
    """Tell of the rounds that have ended since, each of them once."""
    run = _known(ledger, before.name)
    first = max(0, before.round - 1) if before.messages else before.round
    if not before.messages and (run.round, run.kind, run.state) == (before.round, before.kind, before.state):
        return
    for number, kind in product(range(first, run.round + 1), get_args(Kind)):
        found = ledger.round(run.name, number, kind)
        if found is not None and found[0].phase in ENDED and _is_first(cloud, found[0]):
            from fleetfold.aws.cost import pricing  # once a round: nothing that a cold start has to wait for

            cloud.measured(run.name, row(ledger, cloud.objects, found[0], cloud.clock(), pricing(ledger)))


def _is_first(cloud: Cloud, round: Round) -> bool:
    return cloud.records.swap(f"{place(round)}/told", encode(Wait(at=cloud.clock())), 0)
