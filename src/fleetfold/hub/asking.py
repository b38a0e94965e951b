"""A command from another process on the hub's machine, which the hub passes on (coordinator/asking.py)."""

import time
from pathlib import Path

from fleetfold import layout
from fleetfold.coordinator import asking
from fleetfold.coordinator.asking import Desk, Subject
from fleetfold.errors import BadConfig
from fleetfold.hub import desk
from fleetfold.hub.authority import site
from fleetfold.hub.enrol import credential
from fleetfold.messages import Answer
from fleetfold.ports import Records
from fleetfold.round.run import Run
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place


def ask(home: Path, device: str, what: str, subject: Subject, seconds: float) -> tuple[Answer, bytes]:
    """→ the device's answer, and what `get` got. Raises BadConfig, or Unavailable when none comes."""
    place = site(wiring.folder(home))
    records, (objects, _) = wiring.records(home), wiring.objects(home, place.objects)
    known = credential(records, layout.checked_name(device, "device"))
    if known is None or not known.counts:
        raise BadConfig(f"{device} does not belong to this fleet", next="fleetfold devices")

    def run(name: str) -> Run | None:
        found = wiring.ledger(Place(home, name)).run(name) if wiring.is_run(Place(home, name)) else None
        return found[0] if found else None

    return asking.ask(Desk(records, objects, run, lambda: _silence(records)), device, what, subject, seconds)


def _silence(records: Records) -> tuple[str, str]:
    status = desk.status(records)
    asleep = status is None or time.time() - status.told_at > 3 * desk.TELL
    if asleep:
        return "no hub is running here", "fleetfold hub"
    return "it may be off, or at work", "fleetfold devices"
