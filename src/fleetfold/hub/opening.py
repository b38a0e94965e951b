"""Gives the hub a run to drive: opened in its folder, then put into the queue; from there the hub has it."""

import time
from pathlib import Path

from msgspec.structs import replace

from fleetfold.adapters.counted import Counted, Wrote, unwatched
from fleetfold.agent.app import App
from fleetfold.coordinator.opening import open_messages, open_run
from fleetfold.errors import BadConfig
from fleetfold.hub import desk
from fleetfold.hub.authority import site
from fleetfold.layout import FLEET
from fleetfold.round.run import Run
from fleetfold.settings import Settings
from fleetfold.wiring import hub as wiring
from fleetfold.wiring import local
from fleetfold.wiring.local import Place


def check(home: Path) -> None:
    """Raises BadConfig where there is no hub, or nobody in its fleet."""
    site(wiring.folder(home))
    if not any(True for _ in wiring.records(home).scan(FLEET)):
        raise BadConfig("nobody belongs to this hub's fleet yet", next="fleetfold enroll DEVICE")


def submit(
    app: App, settings: Settings, model: bytes, place: Place,
    wrote: Wrote = unwatched,
) -> Run:  # fmt: skip
    """A new run of the hub's, of all the fleet that there is. It has its place in the queue before it is
    there: should this process die in between, the hub passes over what was never opened. `wrote` hears how
    far its first model is."""
    wiring.attach(place)
    ledger, records = wiring.ledger(place), wiring.records(place.home)
    objects = Counted(local.objects(place, durable=True), wrote)
    settings = replace(settings, devices=max(1, len(ledger.fleet())))
    desk.queue(records, place.run, time.time())
    run = open_run(place.run, app.place, settings, model, [], ledger, objects, time.time())
    desk.queue(records, place.run, time.time())  # if that took so long that the hub has passed it over
    return run


def submit_messages(app: App, settings: Settings, place: Place) -> Run:
    """The same of an app that sends messages of its own from another process: the hub takes in for it."""
    wiring.attach(place)
    ledger, records = wiring.ledger(place), wiring.records(place.home)
    settings = replace(settings, devices=max(1, len(ledger.fleet())), durability="power")
    desk.queue(records, place.run, time.time())
    run = open_messages(place.run, app.place, settings, [], ledger, time.time())
    desk.queue(records, place.run, time.time())
    return run


def again(place: Place) -> None:
    """Into the queue once more: a run that has ended was given more to do."""
    desk.queue(wiring.records(place.home), place.run, time.time())


def standing(home: Path) -> str:
    """Why nothing happens, where nothing does; "" while a hub is at work."""
    found = desk.status(wiring.records(home))
    if found is None or time.time() - found.told_at > 3 * desk.TELL:
        return "no hub is running here: fleetfold hub"
    return found.saying
