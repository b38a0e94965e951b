"""Opening a run: version 0 of the model first, then the registry, the run's record last: it makes the
run exist, and everything that it speaks of is there by then."""

import hashlib
from collections.abc import Sequence

from fleetfold import layout
from fleetfold.errors import BadConfig
from fleetfold.ledger import Ledger
from fleetfold.ports import Objects
from fleetfold.round.run import Run
from fleetfold.settings import Settings


def open_run(
    name: str, app: str, settings: Settings, model: bytes, devices: Sequence[str],
    ledger: Ledger, objects: Objects, now: float,
) -> Run:  # fmt: skip
    """Raises BadConfig if there is a run of that name."""
    objects.put(layout.model(name, 0), [model])
    ledger.enlist(devices)
    digest = hashlib.sha256(model).hexdigest()
    run = Run(name=name, app=app, settings=settings, started_at=now, opens_at=now, digest=digest)
    if not ledger.save_run(run, expect=0):
        raise BadConfig(f"there is a run {name} already", next=f"fleetfold run --resume {name}")
    return run
