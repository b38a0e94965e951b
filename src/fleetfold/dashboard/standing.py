"""Who drives a run, and why nothing happens, where nothing does."""

import time
from functools import lru_cache

from fleetfold.adapters.lock import is_held
from fleetfold.errors import FleetfoldError
from fleetfold.hub import desk
from fleetfold.round.run import Run, RunState
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place


def standing(place: Place, run: Run) -> str:
    """What stands in the way of a run that is to go on; "" where nothing does, or where nobody can tell."""
    if run.state is not RunState.RUNNING:
        return ""
    match wiring.where(place):
        case "here":
            held = is_held(place.folder)
            return "" if held else "no process drives it: it stands where it was left, and can be resumed"
        case "hub":
            return _of_hub(place)
        case "cloud":
            return ""


_records = lru_cache(maxsize=1)(wiring.hub_records)


def _of_hub(place: Place) -> str:
    try:
        records = _records(place.home)
        status, waiting = desk.status(records), desk.queued(records)
    except FleetfoldError as error:
        return error.sentence
    if status is None or time.time() - status.told_at > 3 * desk.TELL:
        return "no hub is running here"
    names = [each.run for each in waiting]
    if place.run in names[1:]:
        return f"run {names[0]} has the devices; this one is number {names.index(place.run) + 1} in the queue"
    return status.saying
