"""A run of a Flower app, from its opening or from where it stood, to the end of its main().

open ─▶ ServerApp(grid, context) ─▶ ┌ exchange ─▶ watch ─▶ wait for a hint or the deadline ┐ ─▶ end
                                    └─────────────────────────◀───────────────────────────┘
The app's process is this one. Devices are workers here, those of a hub, or those of a stack on AWS.
"""

import gc
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from fleetfold.adapters.lock import held
from fleetfold.agent.app import App
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import open_messages
from fleetfold.errors import BadConfig, FleetfoldError, blame
from fleetfold.flower import app as flower
from fleetfold.flower import private
from fleetfold.flower.app import FlowerApp
from fleetfold.flower.checkpoint import Shelf
from fleetfold.flower.client import seed
from fleetfold.flower.grid import LOOK, FleetGrid, Idle
from fleetfold.flower.opening import Ways, again, begun, configured, describe, found, ways
from fleetfold.flower.start import Durable, installed
from fleetfold.local.devices import simulated
from fleetfold.local.run import Watch, at_work, telling
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

private.quiet()
from flwr.app import Context, RecordDict  # noqa: E402

LOG = "server.log"
"""In the run's folder: what Flower says, and the whole of an error of the app's."""
SOON, PAID = 0.05, 1.0
"""Seconds between two looks at what others have taken in, and where each is paid for."""
Give = Callable[[App, Settings, Place], object]
"""Opens a run that others take in for."""


class Prepared(Struct, frozen=True, kw_only=True):
    """An app that is ready to run: everything that can be wrong with it beforehand has been tried."""

    flower: FlowerApp
    server: Any  # its ServerApp
    settings: Settings
    fingerprint: str
    ways: Ways = Ways()


def prepare(app: FlowerApp, config: Mapping[str, Any], settings: Settings, ways: Ways = Ways()) -> Prepared:  # noqa: B008
    """Load the app, find its functions and its data. Raises BadConfig."""
    settings = configured(config, settings)
    seed(settings.seed)
    return Prepared(
        flower=app, server=flower.server_app(app), settings=settings,
        fingerprint=flower.fingerprint(app.app.folder), ways=ways,
    )  # fmt: skip


def start(prepared: Prepared, place: Place, watch: Watch, give: Give | None = None) -> Run:
    """Open a new run in its place and drive it to its end: on devices of this machine, or on those of whom
    `give` gives it to. A run whose devices cannot load the app leaves nothing behind."""
    app, settings = prepared.flower.app, prepared.settings
    with held(place.folder, f"run {place.run}"):
        describe(prepared.flower, settings, prepared.ways, place)
        if give is not None:
            give(app, settings, place)
            return _drive(prepared, place, watch, found(place), resumed=True)
        run = begun(prepared.flower, settings, place.run)
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
        prepared = prepare(app, run.settings.app, run.settings, ways(place))
        if run.state is RunState.FAILED:
            again(place)
        return _drive(prepared, place, watch, found(place), resumed=True)


def _drive(prepared: Prepared, place: Place, watch: Watch, run: Run, *, resumed: bool) -> Run:
    with telling(place, watch) as beside:
        return _driven(prepared, place, beside, run, resumed=resumed)


def _driven(prepared: Prepared, place: Place, watch: Watch, run: Run, *, resumed: bool) -> Run:
    if run.state is not RunState.RUNNING:
        watch(run, 0)
        return run
    with logged(place.folder / LOG), _exchanges(prepared, place, watch, run) as (messenger, idle):
        ledger = wiring.ledger(place)
        if wiring.where(place) == "here":
            if resumed:
                messenger.resume()
            else:
                names = [device.name for device in simulated(run.settings)]
                open_messages(run.name, run.app, run.settings, names, ledger, time.time())
        _serve(prepared, place, messenger, idle)
        run = found(place)
        watch(run, 0)
    return run


def turn(place: Place) -> None:
    """One turn of a run that another process drives: everything that the app can do now. Raises Suspend when
    only waiting is left to do; returns when the app has ended."""
    run = found(place)
    prepared = prepare(flower.find(run.app), run.settings.app, run.settings, ways(place))
    with logged(place.folder / LOG):
        if wiring.where(place) == "cloud":
            from fleetfold.aws import opening

            messenger, look = opening.messenger(place), LOOK
        else:
            messenger, look = wiring.messenger(place, run.settings, None, time.time), SOON
        _serve(prepared, place, messenger, lambda seconds: time.sleep(min(seconds, look)))


def _serve(prepared: Prepared, place: Place, messenger: Messenger, idle: Idle) -> None:
    """The app's main(), with a durable start."""
    settings, ways = prepared.settings, prepared.ways
    ledger, durable = wiring.ledger(place), wiring.is_durable(settings)
    objects = wiring.objects(place, durable=durable)
    grid = FleetGrid(
        messenger, objects, place.run, settings, fingerprint=prepared.fingerprint,
        fleet=lambda: [device.name for device in ledger.fleet()], idle=idle,
        look=PAID if wiring.where(place) == "cloud" else LOOK, grows=wiring.where(place) != "here",
    )  # fmt: skip
    if ways.process:
        _main(prepared, messenger, grid)
        return
    shelf = Shelf(
        place.run, objects, wiring.records(place, durable=durable), alone=wiring.where(place) != "cloud"
    )
    with installed(Durable(shelf, grid, fold=ways.fold, keep=settings.keep, leaves=ways.suspend)):
        _main(prepared, messenger, grid)


def _main(prepared: Prepared, messenger: Messenger, grid: FleetGrid) -> None:
    """The app from its beginning to its end. Raises BadConfig for what it raises, naming the line."""
    context = Context(
        run_id=grid.letters.run_id, node_id=private.SERVER, node_config={}, state=RecordDict(),
        run_config=dict(prepared.settings.app),
    )  # fmt: skip
    seed(prepared.settings.seed)
    place = f"serverapp = {prepared.flower.serverapp!r}"
    gc.freeze()  # what was loaded stays: nobody need look for garbage in it again
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

            yield opening.messenger(place), shown(0, time.sleep)


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
