"""A run of a Flower app, from its opening or from where it stood, to the end of its main().

open ─▶ ServerApp(grid, context) ─▶ ┌ exchange ─▶ watch ─▶ wait for a hint or the deadline ┐ ─▶ end
                                    └─────────────────────────◀───────────────────────────┘
The app's process is this one. Devices are workers here, those of a hub, or those of a stack on AWS.
"""

import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.adapters.lock import held
from fleetfold.agent.app import App
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import open_messages
from fleetfold.coordinator.policy import policies
from fleetfold.errors import BadConfig, FleetfoldError, blame
from fleetfold.flower import app as flower
from fleetfold.flower import private
from fleetfold.flower.app import FlowerApp
from fleetfold.flower.checkpoint import Shelf
from fleetfold.flower.client import seed
from fleetfold.flower.grid import FleetGrid, Idle
from fleetfold.flower.start import Durable, install
from fleetfold.local.devices import simulated
from fleetfold.local.run import Watch, at_work
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.tell.teller import Teller
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

private.quiet()
from flwr.app import Context, RecordDict  # noqa: E402

ROUNDS = "num-server-rounds"
"""The key of a run config by which most apps say how many rounds they do."""
LOG = "server.log"
"""In the run's folder: what Flower says, and the whole of an error of the app's."""
ABOUT = "app.json"
"""Beside it: what the run was opened with, never written again."""
SOON, LOOK = 0.05, 1.0
"""Seconds between two looks at what others have taken in, and where each is paid for."""
Give = Callable[[App, Settings, Place], object]
"""Opens a run that others take in for."""


class Prepared(Struct, frozen=True, kw_only=True):
    """An app that is ready to run: everything that can be wrong with it beforehand has been tried."""

    flower: FlowerApp
    server: Any  # its ServerApp
    settings: Settings
    fingerprint: str
    fold: bool = True  # ours is used where it is exact


def prepare(app: FlowerApp, config: Mapping[str, Any], settings: Settings, *, fold: bool = True) -> Prepared:
    """Load the app, find its functions and its data. Raises BadConfig."""
    rounds = config.get(ROUNDS)
    known = isinstance(rounds, int) and rounds > 0
    settings = replace(settings, app=dict(config), rounds=rounds if known else 1)
    policies(settings)
    simulated(settings)
    seed(settings.seed)
    server = flower.server_app(app)
    return Prepared(
        flower=app,
        server=server,
        settings=settings,
        fingerprint=flower.fingerprint(app.app.folder),
        fold=fold,
    )


def start(prepared: Prepared, place: Place, watch: Watch, give: Give | None = None) -> Run:
    """Open a new run in its place and drive it to its end: on devices of this machine, or on those of whom
    `give` gives it to. A run whose devices cannot load the app leaves nothing behind."""
    app, settings = prepared.flower.app, prepared.settings
    with held(place.folder, f"run {place.run}"):
        _describe(prepared, place)
        if give is not None:
            give(app, settings, place)
            return _drive(prepared, place, watch, found(place), resumed=True)
        run = Run(
            name=place.run, app=app.place, settings=settings, started_at=time.time(), round=0, kind="message",
            messages=True,
        )  # fmt: skip
        try:
            return _drive(prepared, place, watch, run, resumed=False)
        except BadConfig:
            if wiring.ledger(place).run(place.run) is None:
                shutil.rmtree(place.folder, ignore_errors=True)
            raise


def resume(place: Place, watch: Watch) -> Run:
    """Go on with a run whose app's process has ended before its time, or has failed."""
    with held(place.folder, f"run {place.run}"):
        run = found(place)
        app = flower.find(run.app)
        about = msgspec.json.decode((place.folder / ABOUT).read_bytes())
        prepared = prepare(app, run.settings.app, run.settings, fold=about["fold"])
        if run.state is RunState.FAILED:
            _again(place)
        return _drive(prepared, place, watch, found(place), resumed=True)


def found(place: Place) -> Run:
    """The run as it is. Raises BadConfig where there is none of a Flower app."""
    known = wiring.ledger(place).run(place.run)
    if known is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold flower run FOLDER")
    if not known[0].messages:
        raise BadConfig(f"run {place.run} is not of a Flower app", next=f"fleetfold run --resume {place.run}")
    return known[0]


def _again(place: Place) -> None:
    ledger = wiring.ledger(place)
    while known := ledger.run(place.run):
        after = replace(known[0], state=RunState.RUNNING, reason="", ended_at=0.0)
        if ledger.save_run(after, known[1]):
            return


def _describe(prepared: Prepared, place: Place) -> None:
    about = {
        "app": prepared.flower.app.place, "serverapp": prepared.flower.serverapp,
        "clientapp": prepared.flower.clientapp, "config": prepared.settings.app,
        "fingerprint": prepared.fingerprint, "fold": prepared.fold, "flwr": private.installed(),
    }  # fmt: skip
    (place.folder / ABOUT).write_bytes(msgspec.json.encode(about))


def _drive(prepared: Prepared, place: Place, watch: Watch, run: Run, *, resumed: bool) -> Run:
    if run.state is not RunState.RUNNING:
        watch(run, 0)
        return run
    if wiring.where(place) != "here":  # else whoever takes in for it tells of it
        return _driven(prepared, place, watch, run, resumed=resumed)
    teller = Teller(place.folder, wiring.ledger(place), wiring.objects(place), place.run)
    with closing(teller):
        return _driven(prepared, place, teller.beside(watch), run, resumed=resumed)


def _driven(prepared: Prepared, place: Place, watch: Watch, run: Run, *, resumed: bool) -> Run:
    with logged(place.folder / LOG), _exchanges(prepared, place, watch, run) as (messenger, idle):
        ledger = wiring.ledger(place)
        if wiring.where(place) == "here":
            if resumed:
                messenger.resume()
            else:
                names = [device.name for device in simulated(run.settings)]
                open_messages(run.name, run.app, run.settings, names, ledger, time.time())
        grid = FleetGrid(
            messenger, wiring.objects(place), place.run, prepared.settings,
            fingerprint=prepared.fingerprint, fleet=lambda: [device.name for device in ledger.fleet()],
            idle=idle,
        )  # fmt: skip
        shelf = Shelf(
            place.run, wiring.objects(place), wiring.records(place), alone=wiring.where(place) != "cloud"
        )
        undo = install(Durable(shelf, fold=prepared.fold, keep=run.settings.keep))
        try:
            _main(prepared, messenger, grid)
        finally:
            undo()
        run = found(place)
        watch(run, 0)
    return run


def _main(prepared: Prepared, messenger: Messenger, grid: FleetGrid) -> None:
    """The app from its beginning to its end. Raises BadConfig for what it raises, naming the line."""
    context = Context(
        run_id=grid.letters.run_id, node_id=private.SERVER, node_config={}, state=RecordDict(),
        run_config=dict(prepared.settings.app),
    )  # fmt: skip
    seed(prepared.settings.seed)
    place = f"serverapp = {prepared.flower.serverapp!r}"
    try:
        prepared.server(grid, context)
    except FleetfoldError as error:
        _note(error)
        if isinstance(error, BadConfig) or messenger.hopeless():
            messenger.end(RunState.FAILED, error.sentence)
        if not messenger.hopeless():
            raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            messenger.end(RunState.DONE, "the app has ended")
            return
        _note(error)
        why = f"{place}: {blame(error, prepared.flower.app.root)}"
        messenger.end(RunState.FAILED, why)
        raise BadConfig(why, next=f"fleetfold flower run --resume {messenger.run().name}") from error
    else:
        messenger.end(RunState.DONE, "the app has ended")


def _note(error: BaseException) -> None:
    logging.getLogger("flwr").error("".join(traceback.format_exception(error)))


@contextmanager
def _exchanges(prepared: Prepared, place: Place, watch: Watch, run: Run) -> Iterator[tuple[Messenger, Idle]]:
    """The run's messenger, and what passes the time while the app waits."""
    ledger = wiring.ledger(place)

    def shown(ready: int, wait: Callable[[float], None]) -> Idle:
        def idle(seconds: float) -> None:
            known = ledger.run(place.run)
            watch(known[0] if known else run, ready)
            wait(seconds)

        return idle

    match wiring.where(place):
        case "here":
            with at_work(prepared.flower.app, place, run, watch) as (workers, control):
                messenger = wiring.messenger(place, run.settings, control, time.time)
                yield messenger, shown(workers.ready, workers.wait)
        case "hub":
            messenger = wiring.messenger(place, run.settings, None, time.time)
            yield messenger, shown(0, lambda seconds: time.sleep(min(seconds, SOON)))
        case "cloud":
            from fleetfold.aws import opening

            yield opening.messenger(place), shown(0, lambda seconds: time.sleep(min(seconds, LOOK)))


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What Flower logs goes to that file: the terminal is the table's, and the app's own prints'."""
    logger = logging.getLogger("flwr")
    before, propagated = list(logger.handlers), logger.propagate
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers, logger.propagate = [file], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagated
        file.close()
