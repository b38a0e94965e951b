"""fleetfold run: train an app over devices on this machine, or go on where a run stood."""

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec.structs import replace

from fleetfold.agent.app import App, find_app
from fleetfold.cli.board import EVERY, Board, number, terminal
from fleetfold.cli.hub import installed
from fleetfold.cli.places import existing, shown
from fleetfold.cli.settings import Flags, explained, settings_of
from fleetfold.coordinator.opening import extend
from fleetfold.errors import BadConfig, Unavailable, typed
from fleetfold.local import run as local_run
from fleetfold.local.run import Watch
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place


def run(
    app: str | None = None,
    /,
    *,
    hub: Annotated[
        bool, Parameter(help="on the devices of the hub in FLEETFOLD_HOME, which drives it", negative="")
    ] = False,
    detach: Annotated[bool, Parameter(help="with --hub: do not watch it", negative="")] = False,
    resume: Annotated[str | None, Parameter(help="go on with this run, or the `latest`")] = None,
    json: Annotated[
        bool, Parameter(help="print one JSON object a round instead of the table", negative="")
    ] = False,
    explain: Annotated[
        bool, Parameter(help="print every setting and where it came from; train nothing", negative="")
    ] = False,
    flags: Flags = Flags(),  # noqa: B008 - a dataclass of None, made once
) -> int:
    """Train APP over simulated devices on this machine, or with --hub over those of a hub; every device keeps
    its data to itself.

    APP is a folder with an app.py, a .py file, or module:name. The run lives in
    `FLEETFOLD_HOME/runs/NAME` (default: `.fleetfold` in the current folder), and survives kill -9 of any
    of its processes: `--resume latest` goes on where it stood.

    **Examples**

    - `fleetfold run examples/digits`
    - `fleetfold run my-app --devices 40 --cohort 10 --rounds 50 --deadline 30s`
    - `fleetfold run my-app --select all --quorum 0.8 --json`
    - `fleetfold run --resume latest --rounds 60`
    - `fleetfold run my-app --hub --cohort 20 --where 'battery > 0.5' --rounds 50`
    - `fleetfold run my-app --explain`
    """
    if resume is not None:
        if explain:
            raise BadConfig("--explain is for a run that has not begun", next=f"fleetfold show {resume}")
        return _resume(resume, app, flags, json)
    if app is None:
        raise BadConfig("which app?", next="fleetfold run APP, or fleetfold run --resume latest")
    found = find_app(app)
    settings, places = settings_of(found, flags)
    if explain:
        terminal().print(explained(settings, places))
        return 0
    return on_hub(found, settings, json, detach) if hub else started(found, settings, json)


def _resume(name: str, app: str | None, flags: Any, json: bool) -> int:
    place = existing(name)
    given = {k: v for k, v in vars(flags).items() if v is not None}
    rounds = given.pop("rounds", None)
    if given:
        raise BadConfig(
            f"--{next(iter(given)).replace('_', '-')} cannot be changed "
            "in a run that has begun; only --rounds can",
            next=f"fleetfold run --resume {place.run}",
        )
    found: App | None = find_app(app) if app else None
    wanted = settings_of(App("", "", "/"), Flags(rounds=rounds))[0].rounds if rounds else None
    if wiring.is_hubs(place):
        return _resume_on_hub(place, wanted, json)
    return driven(place, json, lambda watch: local_run.resume(place, found, wanted, watch))


def _resume_on_hub(place: Place, rounds: int | None, json: bool) -> int:
    """A run that stands is driven by the hub anyway; one that has ended is given more to do."""
    installed()
    from fleetfold.hub import opening

    extend(wiring.ledger(place), place.run, rounds)
    opening.again(place)
    return watched(place, json)


def started(app: App, settings: Settings, json: bool) -> int:
    """Prepare, then take a place: an app that cannot run leaves nothing behind. → exit code."""
    prepared = local_run.prepare(app, settings)
    place = local_run.new_place(wiring.home(), app.name)
    return driven(place, json, lambda watch: local_run.start(prepared, place, watch))


def on_hub(app: App, settings: Settings, json: bool, detach: bool) -> int:
    """Prepare, give it to the hub, and watch; leaving off to watch changes nothing. → exit code."""
    installed()
    from fleetfold.hub import opening

    opening.check(wiring.home())
    prepared = local_run.prepare(app, settings)
    place = local_run.new_place(wiring.home(), app.name)
    opening.submit(app, settings, prepared.model, place)
    if detach:
        print(f"{place.run} is in the hub's queue\n  next: {typed(f'fleetfold show {place.run}')}")
        return 0

    return watched(place, json)


def watched(place: Place, json: bool) -> int:
    """Watch a run that the hub drives; leaving off to watch changes nothing. → exit code."""
    from fleetfold.hub import opening

    def watch_it(watch: Watch) -> Run:
        ledger = wiring.ledger(place)
        while True:
            found = ledger.run(place.run)
            assert found is not None
            run, _ = found
            standing = "" if run.reason or run.state is not RunState.RUNNING else opening.standing(place.home)
            watch(replace(run, reason=standing) if standing else run, 0)
            if run.state is not RunState.RUNNING:
                return run
            time.sleep(EVERY)

    return driven(place, json, watch_it, f"fleetfold show {place.run}; the hub goes on with it")


def driven(place: Place, json: bool, drive: Callable[[Watch], Run], then: str = "") -> int:
    """Watch a run to its end and conclude; or to a Ctrl-C, and say how it goes on (`then`). → exit code."""
    console = terminal()
    style = "json" if json else "table" if console.is_terminal else "lines"
    try:
        with Board(place, console, style) as board:
            ended = drive(board)
    except KeyboardInterrupt:
        print(
            f"stopped; nothing is lost\n  next: {typed(then or f'fleetfold run --resume {place.run}')}",
            file=sys.stderr,
        )
        return 130
    return conclude(ended, place, board, json)


def conclude(run: Run, place: Place, board: Board, json: bool) -> int:
    """Where the run is, what to try next, and the last line: the figures."""
    if run.state is RunState.FAILED:
        raise Unavailable(f"run {run.name} failed: {run.reason}", next=f"fleetfold show {run.name}")
    early = run.round < run.settings.rounds
    if json:
        if early:
            print(run.reason, file=sys.stderr)
        return 0
    console = terminal()
    last = [row for row in board.rows if row.accuracy is not None or row.loss is not None][-1:]
    score = "accuracy –"
    if last:
        name = "accuracy" if last[0].accuracy is not None else "loss"
        score = f"{name} {number(getattr(last[0], name))}"
    path = shown(place.folder)
    if early:
        console.print(run.reason, markup=False, soft_wrap=True)
    again = f"fleetfold run --resume {run.name} --rounds {run.settings.rounds + 10}"
    console.print(
        f"\nmodel   {path}/models/{run.version:06}.safetensors\n"
        f"next    {typed(f'fleetfold show {run.name}')}\n"
        f"        {typed(f'fleetfold export {run.name} --out model.safetensors')}\n"
        + ("" if early else f"        {typed(again)}\n"),
        markup=False,
        soft_wrap=True,
    )
    seconds = (run.ended_at or 0) - run.started_at
    told = [row.epsilon for row in board.rows if row.epsilon is not None]
    score += f" · ε {number(told[-1])}" if told else ""
    console.print(
        f"{score} · rounds {run.round} · seconds {seconds:.0f} · run {path}", markup=False, soft_wrap=True
    )
    return 0
