"""A run whose ServerApp has a process only while there is something for it to do (`--suspend`).

    this process: devices, bus, exchanges  ── something to merge, or nothing open ──▶  server.py: one turn
    (or a hub has them, or functions)      ◀── exit 75: sent, and committed ────────────┘

It never imports Flower: what waits for devices takes the memory of a run of ours.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from fleetfold.adapters.lock import held
from fleetfold.agent.app import App
from fleetfold.coordinator.opening import open_messages
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower import app as flower
from fleetfold.flower.app import FlowerApp
from fleetfold.flower.leaving import EXIT, Words
from fleetfold.flower.opening import Ways, again, begun, configured, describe, found
from fleetfold.local.devices import simulated
from fleetfold.local.run import Watch, at_work, telling
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Phase
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring
from fleetfold.wiring.faults import FAULTS
from fleetfold.wiring.local import Place

AT_WORK, LOOK = 0.02, 0.25
"""Seconds between two looks at the exchanges: while the app is at work, and while it is not."""
ERRORS = "server.err"
"""In the run's folder: what the newest turn has said beside its output."""
IN_VAIN = 5
"""Turns in a row that send nothing, or die, after which something is wrong."""


Give = Callable[[App, Settings, Place], object]
"""Opens a run that others take in for."""


def start(
    app: FlowerApp, config: Mapping[str, Any], settings: Settings, ways: Ways, place: Place, watch: Watch,
    give: Give | None = None,
) -> Run:  # fmt: skip
    """Open a new run and drive it to its end: on devices of this machine, or of whom `give` gives it to."""
    settings = configured(config, settings)
    with held(place.folder, f"run {place.run}"):
        describe(app, settings, ways, place)
        if give is not None:
            give(app.app, settings, place)
            return _drive(app, place, found(place), watch, resumed=True)
        with telling(place, watch) as beside:
            return _drive(app, place, begun(app, settings, place.run), beside, resumed=False)


def resume(place: Place, watch: Watch) -> Run:
    """Go on with a run that was begun so."""
    with held(place.folder, f"run {place.run}"):
        run = found(place)
        if run.state is RunState.FAILED:
            again(place)
        with telling(place, watch) as beside:
            return _drive(flower.find(run.app), place, found(place), beside, resumed=True)


def _drive(app: FlowerApp, place: Place, run: Run, watch: Watch, *, resumed: bool) -> Run:
    if run.state is not RunState.RUNNING:
        watch(run, 0)
        return run
    with _fleet(app, place, run, watch, resumed=resumed) as (step, wait, ready):
        in_vain, environment = 0, dict(os.environ)
        while (run := found(place)).state is RunState.RUNNING:
            step()
            if not _is_due(place):
                watch(run, ready())
                wait(LOOK)
                continue
            with _turn(place, environment) as process:
                while process.poll() is None:
                    step()
                    watch(run, ready())
                    wait(AT_WORK)
            _hear(place, process.returncode)
            environment.pop(FAULTS, None)  # a fault that was asked for strikes once
            in_vain = in_vain + 1 if found(place).round == run.round else 0
            if in_vain >= IN_VAIN:
                raise Unavailable(
                    f"the app's process ended {in_vain} times without sending anything",
                    next=f"fleetfold flower run --resume {place.run}",
                )
    watch(run, 0)
    return run


def _is_due(place: Place) -> bool:
    """Whether there is something for the app to do: to merge what came, or to send what is next."""
    run = found(place)
    newest = wiring.ledger(place).round(run.name, run.round, "message") if run.round else None
    return newest is None or newest[0].phase is not Phase.OPEN


Fleet = tuple[Callable[[], object], Callable[[float], None], Callable[[], int]]
"""Drives the exchanges as far as they go now; lets time pass; says how many workers are ready."""


@contextmanager
def _fleet(app: FlowerApp, place: Place, run: Run, watch: Watch, *, resumed: bool) -> Iterator[Fleet]:
    if wiring.where(place) != "here":  # others drive it
        yield (lambda: None), time.sleep, (lambda: 0)
        return
    with at_work(app.app, place, run, watch) as (workers, control):
        messenger = wiring.messenger(place, run.settings, control, time.time, merges=False)
        if resumed:
            messenger.resume()
        else:
            names = [device.name for device in simulated(run.settings)]
            open_messages(run.name, run.app, run.settings, names, wiring.ledger(place), time.time())
        yield messenger.step, workers.wait, (lambda: workers.ready)


@contextmanager
def _turn(place: Place, environment: dict[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """The app's process, for one turn; it does not outlive what is done meanwhile."""
    wanted, _, step = environment.get(FAULTS, "").partition(":")
    own = {**environment, FAULTS: f"coordinator:{step}" if wanted == "server" else ""}
    sys.stdout.flush()
    with (place.folder / ERRORS).open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleetfold.flower.server", str(place.home), place.run],
            stdin=subprocess.DEVNULL, stdout=sys.stdout, stderr=errors, env=own, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _hear(place: Place, code: int) -> None:
    """Pass on what a turn has said beside its output. Raises what it ended with, if it could not go on."""
    *said, last = (place.folder / ERRORS).read_text(errors="replace").splitlines() or [""]
    try:
        words = msgspec.json.decode(last, type=Words)
    except msgspec.MsgspecError:
        words = None
        said += [last] if last else []
    for line in said:
        print(line, file=sys.stderr)
    if words is not None:
        raise (BadConfig if words.users else Unavailable)(words.sentence, next=words.next)
    if code > 0 and code != EXIT:
        raise Unavailable(f"the app's process ended with {code}: {last}")
