"""The devices of a bridge that are a hub's: its runs are in the hub's queue, and the hub has their bus."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fleetfold.coordinator.opening import open_messages
from fleetfold.errors import BadConfig
from fleetfold.flower.bridge_lines import Forward, rounds
from fleetfold.flower.bridge_post import Fleet
from fleetfold.hub import desk, opening
from fleetfold.hub.authority import site
from fleetfold.hub.enrol import credential
from fleetfold.round.run import Run
from fleetfold.settings import Settings
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place


def fleet(home: Path, superlink: str, devices: Sequence[str], patience: float) -> Fleet:
    """Raises BadConfig where there is no hub, or where a device does not belong to its fleet."""
    site(wiring.folder(home))
    records = wiring.records(home)
    for device in devices:
        found = credential(records, device)
        if found is None or not found.counts:
            raise BadConfig(
                f"device {device[:80]} does not belong to this hub's fleet", next=f"fleetfold enroll {device}"
            )

    @contextmanager
    def drive(place: Place, run: Run) -> Iterator[tuple[None, Callable[[], None]]]:
        desk.queue(records, place.run, time.time())
        yield None, lambda: None

    def open(place: Place, forward: Forward) -> Run:
        wiring.attach(place)
        desk.queue(records, place.run, time.time())  # first: what is never opened is passed over
        settings = Settings(
            devices=len(devices), app=forward.settings, rounds=rounds(forward), deadline=patience,
            durability="power",
        )  # fmt: skip
        return open_messages(place.run, superlink, settings, [], wiring.ledger(place), time.time())

    def waiting(run: str) -> bool:
        return any(each.run != run for each in desk.queued(records))

    return Fleet(home=home, where="hub", open=open, drive=drive, waiting=waiting)


def standing(home: Path) -> str:
    """Why nothing happens at the hub, where nothing does."""
    return opening.standing(home)
