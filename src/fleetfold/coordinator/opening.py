"""Opening a run and its rounds: what the record speaks of is written first, the record last, for it
makes the run or the round exist."""

import hashlib
from collections.abc import Sequence

import msgspec

from fleetfold import layout
from fleetfold.coordinator.late import Debts
from fleetfold.coordinator.policy import closing, mask_of, unit, wanted
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import header_in
from fleetfold.ledger import Ledger
from fleetfold.ports import Objects
from fleetfold.round.fleet import Device, in_run
from fleetfold.round.run import Run
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
    text = msgspec.json.encode(names)
    where = layout.round(run.name, run.round, run.kind)
    key = layout.cohort(where, hashlib.sha256(text).hexdigest()[:16])
    objects.put(key, [text])
    # A rule may choose more than were asked for ("all") or fewer: the quorum follows who is at work.
    working = len(names) + busy
    policy = closing(run.settings, working if working > invited else min(cohort, working), working)
    return Round(
        run=run.name, number=run.round, kind=run.kind, base=run.version, cohort=key, invited=len(names),
        policy=policy, opened_at=now, owed=debts.updates if run.kind == "train" else frozenset(),
    )  # fmt: skip
