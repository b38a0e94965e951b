"""fleetfold run: train an app over devices on this machine, or go on where a run stood."""

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.agent.app import App, find_app
from fleetfold.cli.board import EVERY, Board, number, terminal
from fleetfold.cli.hub import installed
from fleetfold.cli.places import existing, shown
from fleetfold.cli.progress import uploading
from fleetfold.cli.settings import Flags, explained, settings_of
from fleetfold.coordinator.opening import extend
from fleetfold.errors import BadConfig, Unavailable, typed
from fleetfold.local import run as local_run
from fleetfold.local.run import Watch
from fleetfold.log import Log, Shape
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.view import trained
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

Telling = bool | Shape
"""What is printed of a run: the table, or a line a round in a pipe (False), rows as JSON (True), or a log."""


def run(
    app: str | None = None,
    /,
    *,
    hub: Annotated[
        bool, Parameter(help="on the devices of the hub in FLEETFOLD_HOME, which drives it", negative="")
    ] = False,
    aws: Annotated[
        bool, Parameter(help="on the devices of a stack on AWS, whose functions drive it", negative="")
    ] = False,
    stack: Annotated[str, Parameter(help="with --aws: which stack, if this machine knows several")] = "",
    detach: Annotated[bool, Parameter(help="with --hub or --aws: do not watch it", negative="")] = False,
    resume: Annotated[str | None, Parameter(help="go on with this run, or the `latest`")] = None,
    like: Annotated[
        str | None, Parameter(help="with the settings of this run, and its app unless one is named")
    ] = None,
    json: Annotated[
        bool, Parameter(help="print one JSON object a round instead of the table", negative="")
    ] = False,
    log_format: Annotated[
        Shape | None, Parameter(help="print a log of rounds and refused devices instead of the table")
    ] = None,
    explain: Annotated[
        bool, Parameter(help="print every setting and where it came from; train nothing", negative="")
    ] = False,
    flags: Flags = Flags(),  # noqa: B008 - a dataclass of None, made once
) -> int:
    """Train APP over simulated devices on this machine, with --hub over those of a hub, or with --aws over
    those of a stack on AWS; every device keeps its data to itself.

    APP is a folder with an app.py, a .py file, or module:name. The run lives in
    `FLEETFOLD_HOME/runs/NAME` (default: `.fleetfold` in the current folder), and survives kill -9 of any
    of its processes: `--resume latest` goes on where it stood.

    **Examples**

    - `fleetfold run examples/digits`
    - `fleetfold run my-app --devices 40 --cohort 10 --rounds 50 --deadline 30s`
    - `fleetfold run my-app --select all --quorum 0.8 --json`
    - `fleetfold run my-app --log-format json`
    - `fleetfold run --resume latest --rounds 60`
    - `fleetfold run my-app --hub --cohort 20 --where 'battery > 0.5' --rounds 50`
    - `fleetfold run my-app --aws --rounds 50 --deadline 1h`
    - `fleetfold run --like my-app-1 --rounds 100`
    - `fleetfold run my-app --explain`
    """
    if resume is not None:
        if explain:
            raise BadConfig("--explain is for a run that has not begun", next=f"fleetfold show {resume}")
        return _resume(resume, app, flags, log_format or json)
    base = _known(like) if like is not None else None
    app = base.app if base and app is None else app
    if app is None:
        raise BadConfig("which app?", next="fleetfold run APP, or fleetfold run --resume latest")
    found = find_app(app)
    if found.loader:
        raise BadConfig(f"{app} is a Flower app", next=f"fleetfold flower run {app}")
    settings, places = settings_of(found, flags, like=base)
    if explain:
        terminal().print(explained(settings, places))
        return 0
    if hub and aws:
        raise BadConfig("a run is on a hub or on AWS, not on both", next="fleetfold run APP --aws")
    if aws:
        return on_aws(found, settings, stack, log_format or json, detach)
    telling = log_format or json
    return on_hub(found, settings, telling, detach) if hub else started(found, settings, telling)


def resumed(name: str) -> int:
    """Go on with that run, as it was told. → exit code."""
    return _resume(name, None, Flags(), json=False)


def _known(name: str) -> Run:
    place = existing(name)
    found = wiring.ledger(place).run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    return found[0]


def _resume(name: str, app: str | None, flags: Any, json: Telling) -> int:
    place = existing(name)
    known = wiring.ledger(place).run(place.run)
    if known and known[0].messages:
        raise BadConfig(
            f"run {place.run} is of a Flower app", next=f"fleetfold flower run --resume {place.run}"
        )
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
    match wiring.where(place):
        case "hub":
            return _resume_on_hub(place, wanted, json)
        case "cloud":
            return _resume_on_aws(place, wanted, json)
        case "here":
            return driven(
                place, json, lambda board: local_run.resume(place, found, wanted, board, board.wrote)
            )


def _resume_on_hub(place: Place, rounds: int | None, json: Telling) -> int:
    """A run that stands is driven by the hub anyway; one that has ended is given more to do."""
    installed()
    from fleetfold.hub import opening

    extend(wiring.ledger(place), place.run, rounds)
    opening.again(place)
    return _watched_on_hub(place, json)


def _resume_on_aws(place: Place, rounds: int | None, json: Telling) -> int:
    """A run that stands is driven by its execution; one that has ended, or whose execution has failed, by
    another one."""
    installed_aws()
    from fleetfold.aws import opening

    extend(wiring.ledger(place), place.run, rounds)
    opening.again(place)
    return watched(place, json, f"{ON_AWS} goes on with it")


def started(app: App, settings: Settings, json: Telling) -> int:
    """Prepare, then take a place: an app that cannot run leaves nothing behind. → exit code."""
    prepared = local_run.prepare(app, settings)
    place = local_run.new_place(wiring.home(), app.name)
    return driven(place, json, lambda board: local_run.start(prepared, place, board, board.wrote))


def on_hub(app: App, settings: Settings, json: Telling, detach: bool) -> int:
    """Prepare, give it to the hub, and watch; leaving off to watch changes nothing. → exit code."""
    installed()
    from fleetfold.hub import opening

    opening.check(wiring.home())
    prepared = local_run.prepare(app, settings)
    place = local_run.new_place(wiring.home(), app.name)
    with uploading("the first model", len(prepared.model)) as wrote:
        opening.submit(app, settings, prepared.model, place, wrote)
    if detach:
        print(f"{place.run} is in the hub's queue\n  next: {typed(f'fleetfold show {place.run}')}")
        return 0
    return _watched_on_hub(place, json)


def _watched_on_hub(place: Place, json: Telling) -> int:
    from fleetfold.hub import opening

    return watched(place, json, "the hub goes on with it", lambda: opening.standing(place.home), EVERY)


def on_aws(app: App, settings: Settings, stack: str, json: Telling, detach: bool) -> int:
    """Prepare, give it to the stack, and watch; leaving off to watch changes nothing. → exit code."""
    installed_aws()
    from fleetfold.aws import opening

    found = opening.check(wiring.home(), stack)
    prepared = local_run.prepare(app, settings)
    place = free_place(app.name, lambda run: opening.is_taken(found, run))
    with uploading("the first model", len(prepared.model)) as wrote:
        opening.submit(found, app, settings, prepared.model, place, wrote)
    if detach:
        print(f"{place.run} is on AWS\n  next: {typed(f'fleetfold show {place.run}')}")
        return 0
    return watched(place, json, f"{ON_AWS} goes on with it")


def free_place(app: str, is_taken: Callable[[str], bool]) -> Place:
    """A place here whose name is free elsewhere too."""
    passed = list[Place]()
    while is_taken((place := local_run.new_place(wiring.home(), app)).run):
        passed.append(place)
    for other in passed:
        other.folder.rmdir()
    return place


def installed_aws() -> None:
    """Raises BadConfig without the library of AWS, which is imported only where it is used."""
    if find_spec("boto3") is None:
        raise BadConfig("AWS needs boto3", next="pip install 'fleetfold[aws]'")


ON_AWS = "the stack on AWS"
LOOK = 1.0
"""Seconds between two looks at a table that is paid for by the look."""


def watched(
    place: Place, json: Telling, then: str, standing: Callable[[], str] = lambda: "", every: float = LOOK
) -> int:
    """Watch a run that others drive; leaving off to watch changes nothing. `standing`: why nothing happens.
    → exit code."""

    def watch_it(watch: Watch) -> Run:
        ledger = wiring.ledger(place)
        while True:
            found = ledger.run(place.run)
            assert found is not None
            run, _ = found
            why = "" if run.reason or run.state is not RunState.RUNNING else standing()
            watch(replace(run, reason=why) if why else run, 0)
            if run.state is not RunState.RUNNING:
                return run
            time.sleep(every)

    return driven(place, json, watch_it, f"fleetfold show {place.run}; {then}")


def driven(place: Place, json: Telling, drive: Callable[[Board], Run], then: str = "") -> int:
    """Watch a run to its end and conclude; or to a Ctrl-C, and say how it goes on (`then`). → exit code."""
    console = terminal()
    style = "json" if json else "table" if console.is_terminal else "lines"
    telling = Log(json) if isinstance(json, str) else style
    try:
        with Board(place, console, telling) as board:
            ended = drive(board)
    except KeyboardInterrupt:
        print(
            f"stopped; nothing is lost\n  next: {typed(then or f'fleetfold run --resume {place.run}')}",
            file=sys.stderr,
        )
        return 130
    return conclude(ended, place, board, json)


def conclude(run: Run, place: Place, board: Board, json: Telling) -> int:
    """Where the run is, what to try next, and the last line: the figures."""
    if run.state is RunState.FAILED:
        raise Unavailable(f"run {run.name} failed: {run.reason}", next=f"fleetfold show {run.name}")
    stands = run.state is not RunState.DONE
    early = stands or (run.round < run.settings.rounds and not run.messages)
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
    path = wiring.address(place) or shown(place.folder)
    if early:
        console.print(run.reason, markup=False, soft_wrap=True)
    again = f"fleetfold run --resume {run.name}"
    again += "" if stands else f" --rounds {run.settings.rounds + 10}"
    model = layout.model(run.name, run.version)
    said = [f"model   {path}/{model.partition(f'{run.name}/')[2]}"] if run.digest else []
    if run.messages:
        said.append(f"log     {shown(place.folder / 'server.log')}, of what Flower says")
    said.append(f"next    {typed(f'fleetfold show {run.name}')}")
    if run.digest:
        said.append(f"        {typed(f'fleetfold export {run.name} --out model.safetensors')}")
    if (stands or not early) and not run.messages:
        said.append(f"        {typed(again)}")
    console.print("\n" + "\n".join(said) + "\n", markup=False, soft_wrap=True)
    seconds = (run.ended_at or 0) - run.started_at
    told = [row.epsilon for row in board.rows if row.epsilon is not None]
    score += f" · ε {number(told[-1])}" if told else ""
    rounds = trained(board.rows) if run.messages else run.round
    console.print(
        f"{score} · rounds {rounds} · seconds {seconds:.0f} · run {path}", markup=False, soft_wrap=True
    )
    return 0
