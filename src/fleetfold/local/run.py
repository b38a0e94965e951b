"""A run on one machine, from its opening or from where it stood, to its end.

open ─▶ first model ─▶ ┌ step ─▶ watch ─▶ wait for a hint or the deadline ┐ ─▶ end
                       └──────────────────────◀──────────────────────────┘
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from msgspec import Struct

from fleetfold import layout
from fleetfold.adapters.counted import Wrote, unwatched
from fleetfold.adapters.lock import held
from fleetfold.agent.app import App, check, import_paths, load_trainer, tester, users_code
from fleetfold.agent.trainer import Trainer
from fleetfold.coordinator.opening import extend, open_run
from fleetfold.coordinator.policy import policies
from fleetfold.errors import BadConfig, BadUpdate, Unavailable
from fleetfold.fold.tensors import read, write
from fleetfold.ledger import Ledger
from fleetfold.local.devices import simulated
from fleetfold.local.worker import Orders
from fleetfold.local.workers import Hinting, Workers
from fleetfold.ports import Control
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.tell.teller import Teller
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

Watch = Callable[[Run, int], None]
"""Is shown the run whenever something may have changed, with the number of workers that are ready."""


class Prepared(Struct, frozen=True):
    """An app that is ready to run: everything that can be wrong with it has been tried."""

    app: App
    settings: Settings
    trainer: Trainer
    model: bytes  # the first one, as a file


def prepare(app: App, settings: Settings) -> Prepared:
    """Load the app, make its first model, find its functions and its data. Raises BadConfig."""
    trainer = _loaded(app, settings)
    return Prepared(app, settings, trainer, _first_model(app, trainer, settings))


def start(prepared: Prepared, place: Place, watch: Watch, wrote: Wrote = unwatched) -> Run:
    """Open a new run in its place and drive it to its end. `wrote` hears how far a fold is."""
    app, settings = prepared.app, prepared.settings
    with held(place.folder, f"run {place.run}"):
        durable = wiring.is_durable(settings)
        ledger, objects = wiring.ledger(place, durable=durable), wiring.objects(place, durable=durable)
        names = [device.name for device in simulated(settings)]
        open_run(place.run, app.place, settings, prepared.model, names, ledger, objects, time.time())
        return _to_its_end(app, prepared.trainer, place, ledger, watch, wrote, resumed=False)


def resume(place: Place, app: App | None, rounds: int | None, watch: Watch, wrote: Wrote = unwatched) -> Run:
    """Go on with a run from where it stood. `rounds`: train until that many are done instead."""
    with held(place.folder, f"run {place.run}"):
        ledger = wiring.ledger(place)
        found = ledger.run(place.run)
        if found is None:
            raise BadConfig(
                f"run {place.run} was never opened; there is nothing to resume", next="fleetfold run APP"
            )
        run, _ = found
        ledger = wiring.ledger(place, durable=wiring.is_durable(run.settings))
        if app is None:
            folder = Path(run.app).parent if run.app.endswith(".py") else Path.cwd()
            app = App(place.run.rpartition("-")[0], run.app, str(folder))
        trainer = _loaded(app, run.settings)
        extend(ledger, place.run, rounds)
        return _to_its_end(app, trainer, place, ledger, watch, wrote, resumed=True)


def new_place(home: Path, app: str) -> Place:
    """A place for a new run of `app`, taken at once: its name and the next free number."""
    name = layout.checked_name("".join(c if c.isalnum() or c in "-_" else "-" for c in app), "app")
    for number in itertools.count(1):
        place = Place(home, f"{name}-{number}")
        try:
            place.folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise Unavailable(f"cannot make {place.folder}: {error.strerror}") from error
    return place


def _loaded(app: App, settings: Settings) -> Trainer:
    """The trainer, and everything that a bad setting would trip over later, tried now."""
    import_paths(app)
    policies(settings)
    simulated(settings)
    trainer = load_trainer(app)
    check(app, trainer, settings.app)
    return trainer


def _first_model(app: App, trainer: Trainer, settings: Settings) -> bytes:
    if settings.init:
        try:
            tensors, _ = read(Path(settings.init).expanduser().read_bytes())
            return write(tensors)
        except OSError as error:
            raise BadConfig(f"init = {settings.init!r}: {error.strerror}") from None
        except BadUpdate as error:
            raise BadConfig(
                f"init = {settings.init!r}: {error.sentence}",
                next="fleetfold export RUN --out model.safetensors writes such a file",
            ) from None
    with users_code(app, "init()"):
        tensors = trainer.init(settings.seed)
    try:
        return write(tensors)
    except BadUpdate as error:
        raise BadConfig(f"{app.place}: init(): {error.sentence}") from None


def _to_its_end(
    app: App, trainer: Trainer, place: Place, ledger: Ledger, watch: Watch, wrote: Wrote, *, resumed: bool
) -> Run:
    """Or to where it is paused or stopped; it goes on if somebody has resumed it before it was left."""
    with telling(place, watch) as beside:
        while True:
            run = _drive(app, trainer, place, ledger, beside, wrote, resumed=resumed)
            found = ledger.run(place.run)
            if found is None or found[0].state is not RunState.RUNNING:
                return run


def _drive(
    app: App, trainer: Trainer, place: Place, ledger: Ledger, watch: Watch, wrote: Wrote, *, resumed: bool
) -> Run:
    found = ledger.run(place.run)
    assert found is not None
    run, _ = found
    if run.state is not RunState.RUNNING:
        watch(run, 0)
        return run
    with at_work(app, place, run, watch) as (workers, control):
        coordinator = wiring.coordinator(place, run.settings, control, time.time, tester(app, trainer), wrote)
        if resumed:
            coordinator.resume()
        while (wake := coordinator.step()) != float("inf"):
            run, _ = ledger.run(place.run) or (run, 0)
            watch(run, workers.ready)
            workers.wait(min(wake - time.time(), 0.25))
    run, _ = ledger.run(place.run) or (run, 0)
    watch(run, 0)
    return run


@contextmanager
def telling(place: Place, watch: Watch) -> Iterator[Watch]:
    """`watch`, beside which is told what ends (tell/teller.py), by the process that drives the run."""
    if wiring.where(place) != "here":
        yield watch  # whoever drives it tells of it
        return
    with closing(Teller(place.folder, wiring.ledger(place), wiring.objects(place), place.run)) as teller:
        yield teller.beside(watch)


@contextmanager
def at_work(app: App, place: Place, run: Run, watch: Watch) -> Iterator[tuple[Workers, Control]]:
    """The run's workers, all of them ready, and the bus by which they are told of tasks."""
    settings = run.settings
    count = min(settings.workers or os.cpu_count() or 1, settings.devices)
    orders = Orders(str(place.home), place.run, app, settings, 0, count, 0, f"{os.getpid()}-{time.time()}")
    control = wiring.control(place, durable=wiring.is_durable(settings))
    with (place.folder / "workers.log").open("ab") as log, Workers(orders, log) as workers:
        while workers.ready < count:  # the deadline is for training, not for loading what trains
            watch(run, workers.ready)
            workers.wait(0.2)
        yield workers, Hinting(control, workers)
