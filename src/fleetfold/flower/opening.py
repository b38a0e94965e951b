"""A run of a Flower app before its app is loaded: what it is opened with, and what is written down of it.

Nothing here imports Flower, so that who only waits for devices need not have it in memory.
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.coordinator.policy import policies
from fleetfold.errors import BadConfig
from fleetfold.flower import app as flower
from fleetfold.flower import private
from fleetfold.flower.app import FlowerApp
from fleetfold.local.devices import simulated
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

ROUNDS = "num-server-rounds"
"""The key of a run config by which most apps say how many rounds they do."""
ABOUT = "app.json"
"""In the run's folder: what it was opened with, never written again."""


class Ways(Struct, frozen=True, kw_only=True):
    """How an app's process works. `fold`: our fold is used where it is exact. `process`: nothing of the app
    is stored, its process is kept. `suspend`: it leaves while nothing but waiting is left to do."""

    fold: bool = True
    process: bool = False
    suspend: bool = False

    def __post_init__(self) -> None:
        if self.process and self.suspend:
            raise BadConfig(
                "--keep-process and --suspend are opposites", next="fleetfold flower run FOLDER --suspend"
            )


def configured(config: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings of a run of that config. Raises BadConfig for what would be found out later."""
    rounds = config.get(ROUNDS)
    known = isinstance(rounds, int) and rounds > 0
    settings = replace(settings, app=dict(config), rounds=rounds if known else 1)
    policies(settings)
    simulated(settings)
    return settings


def begun(app: FlowerApp, settings: Settings, run: str) -> Run:
    """The run as it is when nothing has been sent."""
    return Run(
        name=run, app=app.app.place, settings=settings, started_at=time.time(), round=0, kind="message",
        messages=True,
    )  # fmt: skip


def describe(app: FlowerApp, settings: Settings, ways: Ways, place: Place) -> None:
    """Write down what the run is opened with."""
    about = {
        "app": app.app.place, "serverapp": app.serverapp, "clientapp": app.clientapp, "config": settings.app,
        "fingerprint": flower.fingerprint(app.app.folder), "flwr": private.installed(),
        "ways": msgspec.to_builtins(ways),
    }  # fmt: skip
    (place.folder / ABOUT).write_bytes(msgspec.json.encode(about))


def ways(place: Place) -> Ways:
    """How the run was begun."""
    about = msgspec.json.decode((place.folder / ABOUT).read_bytes())
    return msgspec.convert(about["ways"], Ways)


def found(place: Place) -> Run:
    """The run as it is. Raises BadConfig where there is none of a Flower app."""
    known = wiring.ledger(place).run(place.run)
    if known is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold flower run FOLDER")
    if not known[0].messages:
        raise BadConfig(f"run {place.run} is not of a Flower app", next=f"fleetfold run --resume {place.run}")
    return known[0]


def again(place: Place) -> None:
    """A run that has failed goes on."""
    ledger = wiring.ledger(place)
    while known := ledger.run(place.run):
        after = replace(known[0], state=RunState.RUNNING, reason="", ended_at=0.0)
        if ledger.save_run(after, known[1]):
            return
