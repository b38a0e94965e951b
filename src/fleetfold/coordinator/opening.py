"""Opening a run and its rounds: what the record speaks of is written first, the record last, for it
makes the run or the round exist."""

import hashlib
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.late import Debts
from fleetfold.coordinator.policy import closing, mask_of, unit, wanted
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import header_in
from fleetfold.ledger import Ledger
from fleetfold.ports import Objects
from fleetfold.round.fleet import Device, in_run
from fleetfold.round.run import Run, RunState, Wish
from fleetfold.round.select import Rule, choose
from fleetfold.round.state import Round
from fleetfold.settings import Settings


def open_run(
    name: str, app: str, settings: Settings, model: bytes, devices: Sequence[str],
    ledger: Ledger, objects: Objects, now: float,
) -> Run:  # fmt: skip
    """Version 0 of the model, the registry, the run. Raises BadConfig if there is a run of that name, or if
    the settings do not fit the model."""
    mask_of(header_in(model), settings)
    objects.put(layout.model(name, 0), [model])
    ledger.enlist(devices)
    digest = hashlib.sha256(model).hexdigest()
    run = Run(name=name, app=app, settings=settings, started_at=now, opens_at=now, digest=digest)
    if not ledger.save_run(run, expect=0):
        raise BadConfig(f"there is a run {name} already", next=f"fleetfold run --resume {name}")
    return run


def next_round(
    run: Run, fleet: Sequence[Device], debts: Debts, rule: Rule, objects: Objects, now: float
) -> Round:
    """The round that `run` is to open: its cohort chosen from those of `fleet` who owe nothing, and written
    down under a name of its own digest, so that of two that are chosen at once neither spoils the other."""
    cohort, invited = wanted(run.settings, len(fleet))
    busy = len(debts.devices) if run.kind == "train" else 0  # who trains on does not evaluate meanwhile
    free = [in_run(device, run.name) for device in fleet if device.name not in debts.devices]
    draws = [unit(run.settings.seed, run.kind, run.round, device.name) for device in free]
    names = choose(rule, free, invited - busy, draws, run.round)
    if not names and not debts.updates:
        raise BadConfig(f"run {run.name}: no device to invite to round {run.round}")
    key = cohort_of(objects, layout.round(run.name, run.round, run.kind), names)
    # A rule may choose more than were asked for ("all") or fewer: the quorum follows who is at work.
    working = len(names) + busy
    policy = closing(run.settings, working if working > invited else min(cohort, working), working)
    return Round(
        run=run.name, number=run.round, kind=run.kind, base=run.version, cohort=key, invited=len(names),
        policy=policy, opened_at=now, owed=debts.updates if run.kind == "train" else frozenset(),
    )  # fmt: skip


def wish(ledger: Ledger, name: str, what: Wish) -> Run:
    """Ask of the run what whoever drives it is to do; "" takes that back. → the run as it is then. Raises
    BadConfig if there is none."""
    while True:
        found = ledger.run(name)
        if found is None:
            raise BadConfig(f"there is no run {name}", next="fleetfold runs")
        run = replace(found[0], wish=what if found[0].state is RunState.RUNNING else "")
        if run == found[0] or ledger.save_run(run, found[1]):
            return run


def cohort_of(objects: Objects, where: str, names: Sequence[str]) -> str:
    """Write down the cohort of the round with that key. → the cohort's own key, by its digest."""
    text = msgspec.json.encode(names)
    key = layout.cohort(where, hashlib.sha256(text).hexdigest()[:16])
    objects.put(key, [text])
    return key


def open_messages(
    name: str, app: str, settings: Settings, devices: Sequence[str], ledger: Ledger, now: float
) -> Run:
    """A run of an app that sends messages of its own: the registry, the run. Raises BadConfig if there is a
    run of that name."""
    ledger.enlist(devices)
    run = Run(
        name=name, app=app, settings=settings, started_at=now, opens_at=now, round=0, kind="message",
        messages=True,
    )  # fmt: skip
    if not ledger.save_run(run, expect=0):
        raise BadConfig(f"there is a run {name} already", next="fleetfold runs")
    return run


def extend(ledger: Ledger, name: str, rounds: int | None) -> None:
    """Give the run more to do: rounds up to that many, what it failed at, or what it was paused or stopped
    before. Raises BadConfig."""
    while True:
        found = ledger.run(name)
        assert found is not None
        again = _again(found[0], rounds)
        if again == found[0] or ledger.save_run(again, found[1]):  # else a hub has driven it on meanwhile
            return


def _again(run: Run, rounds: int | None) -> Run:
    """The run as it goes on: to another number of rounds, or after it had failed."""
    if rounds is not None:
        if rounds < run.round:
            raise BadConfig(f"run {run.name} stands at round {run.round}; --rounds {rounds} is behind it")
        run = replace(run, settings=replace(run.settings, rounds=rounds))
    if run.state in (RunState.PAUSED, RunState.STOPPED):
        settings = replace(run.settings, rounds=max(run.settings.rounds, run.round))
        return replace(run, settings=settings, state=RunState.RUNNING, wish="", ended_at=0.0, reason="")
    due = run.state is RunState.FAILED or (run.state is RunState.DONE and run.round < run.settings.rounds)
    if not due:
        return replace(run, wish="")
    # The round where it stands has ended: the next one is due, even if it was to have been the last.
    settings = replace(run.settings, rounds=max(run.settings.rounds, run.round + 1))
    return replace(
        run, settings=settings, state=RunState.RUNNING, round=run.round + 1, failed=0, ended_at=0.0, reason=""
    )
