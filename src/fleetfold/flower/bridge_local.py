"""The devices of a bridge that are simulated on this machine: for trials, without a hub."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from fleetfold.adapters.lock import held
from fleetfold.agent.app import App
from fleetfold.coordinator.opening import open_messages
from fleetfold.errors import BadConfig
from fleetfold.flower.bridge_lines import Forward, rounds
from fleetfold.flower.bridge_post import Fleet
from fleetfold.local.devices import simulated
from fleetfold.local.run import at_work
from fleetfold.ports import Control
from fleetfold.round.run import Run
from fleetfold.settings import Settings
from fleetfold.wiring import local
from fleetfold.wiring.local import Place


def names(settings: Settings, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the simulated devices that are wanted, all if none is named. Raises BadConfig."""
    known = [device.name for device in simulated(settings)]
    for name in wanted:
        if name not in known:
            raise BadConfig(
                f"of {len(known)} devices that are simulated none is {name[:80]}: they are {known[0]} to "
                f"{known[-1]}",
                next="leave the names out, or --count",
            )
    return tuple(wanted or known)


def fleet(home: Path, superlink: str, app: App, settings: Settings) -> Fleet:
    """Workers of this machine run the app, from a run's first message on to its end."""
    everybody = [device.name for device in simulated(settings)]

    def open(place: Place, forward: Forward) -> Run:
        own = replace(settings, app=forward.settings, rounds=rounds(forward))
        return open_messages(place.run, superlink, own, everybody, local.ledger(place), time.time())

    @contextmanager
    def drive(place: Place, run: Run) -> Iterator[tuple[Control | None, Callable[[], None]]]:
        with (
            held(place.folder, f"run {place.run}"),
            at_work(app, place, run, lambda *_: None) as (
                workers,
                control,
            ),
        ):
            yield control, lambda: workers.wait(0.0)

    return Fleet(home=home, where="here", open=open, drive=drive, waiting=lambda run: False)
