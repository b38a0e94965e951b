"""A command for one device from a person's machine, published at once; the status function brings the answer
(coordinator/asking.py)."""

import time
from functools import partial
from pathlib import Path

from fleetfold import layout
from fleetfold.adapters.posting import LIFETIME
from fleetfold.aws.stack import load
from fleetfold.coordinator import asking, errands
from fleetfold.coordinator.asking import Desk, Subject
from fleetfold.errors import BadConfig
from fleetfold.ledger import Ledger
from fleetfold.messages import Answer, Command
from fleetfold.ports import Signer
from fleetfold.round.run import Run
from fleetfold.wiring import aws as wiring
from fleetfold.wiring.aws import FleetBus


def ask(
    home: Path, stack: str, device: str, what: str, subject: Subject, seconds: float
) -> tuple[Answer, bytes]:
    """→ the device's answer, and what `get` got. Raises BadConfig, or Unavailable when none comes."""
    place = load(home, stack)
    records, store = wiring.records(place.table, place.region), wiring.objects(place.bucket, place.region)
    ledger = Ledger(records, alone=False)
    if not ledger.devices([layout.checked_name(device, "device")]):
        raise BadConfig(f"{device} does not belong to this fleet", next="fleetfold devices")

    def run(name: str) -> Run | None:
        found = ledger.run(name)
        return found[0] if found else None

    bus = wiring.bus(place.fleet, store.signer, place.iot_endpoint, place.region)
    silence = ("it may be off, or at work", "fleetfold devices")
    desk = Desk(records, store.objects, run, lambda: silence, partial(_pass_on, bus, store.signer))
    for old in errands.expired(records, time.time() - LIFETIME):
        for key in errands.files(old):
            store.objects.delete(key)
    return asking.ask(desk, device, what, subject, seconds)


def _pass_on(bus: FleetBus, signer: Signer, command: Command) -> None:
    bus.command(errands.signed(command, signer, LIFETIME))
