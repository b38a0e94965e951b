"""fleetfold flower: Flower's apps, as they are, on devices of ours."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any

from cyclopts import App, Parameter

from fleetfold.cli.board import terminal
from fleetfold.cli.flower_bridge import bridge
from fleetfold.cli.hub import installed
from fleetfold.cli.places import existing
from fleetfold.cli.run import driven, free_place, installed_aws
from fleetfold.cli.settings import explained, flags_of, settings_of
from fleetfold.errors import BadConfig
from fleetfold.local.run import Watch, new_place
from fleetfold.round.run import Run
from fleetfold.settings import NAMES
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

flower = App(
    name="flower",
    help="""Run Flower's apps, as they are, on devices of ours: no SuperLink, no SuperNodes, no Ray.

    - `fleetfold flower run FOLDER`, of an app that `flwr new` has made, or one of your own
    - `fleetfold flower bridge`, where there is a SuperLink already: devices of ours as its SuperNodes""",
    help_format="markdown",
)
flower.command(bridge)

SETTINGS = (
    "devices", "workers", "seed", "cohort", "over_select", "select", "where", "available", "offline",
    "turnaround_decay", "target", "quorum", "deadline", "close", "lease", "patience", "wait", "wait_most",
    "data", "keep", "durability",
)  # fmt: skip
"""Of all settings those that have a meaning where the app has a strategy of its own."""
Flags: Any = flags_of(SETTINGS, "FlowerFlags")
Others: Any = flags_of([n for n in NAMES if n not in (*SETTINGS, "app")], "OtherFlags", shown=False)
"""The rest, to say where such a thing is said."""


@flower.command
def run(
    folder: str | None = None,
    /,
    *,
    run_config: Annotated[
        list[str] | None,
        Parameter(
            help="changes to [tool.flwr.app.config]: 'key=1 other=\"text\"', or a .toml file", negative=""
        ),
    ] = None,
    hub: Annotated[bool, Parameter(help="on the devices of the hub in FLEETFOLD_HOME", negative="")] = False,
    aws: Annotated[bool, Parameter(help="on the devices of a stack on AWS", negative="")] = False,
    stack: Annotated[str, Parameter(help="with --aws: which stack, if this machine knows several")] = "",
    resume: Annotated[str | None, Parameter(help="go on with this run, or the `latest`")] = None,
    no_fast_path: Annotated[
        bool, Parameter(help="aggregate as Flower does, also where our fold comes to the same", negative="")
    ] = False,
    suspend: Annotated[
        bool, Parameter(help="end the app's process while devices train, and start it again", negative="")
    ] = False,
    keep_process: Annotated[
        bool, Parameter(help="store nothing of the strategy: the run needs its process", negative="")
    ] = False,
    json: Annotated[
        bool, Parameter(help="print one JSON object an exchange instead of the table", negative="")
    ] = False,
    explain: Annotated[
        bool, Parameter(help="print every setting and where it came from; run nothing", negative="")
    ] = False,
    flags: Flags = Flags(),  # noqa: B008 - a dataclass of None, made once
    others: Others = Others(),  # noqa: B008
) -> int:
    """Run the Flower app in FOLDER, unchanged, over simulated devices on this machine, with --hub over those
    of a hub, or with --aws over those of a stack on AWS.

    FOLDER has a pyproject.toml with `[tool.flwr.app]`. Its ServerApp runs in this process, its ClientApp on
    the devices. The run lives in `FLEETFOLD_HOME/runs/NAME` and survives kill -9 of any of its processes:
    `--resume latest` goes on, and no device trains again what it had delivered.

    **Examples**

    - `fleetfold flower run my-app`
    - `fleetfold flower run my-app --run-config 'num-server-rounds=5 learning-rate=0.05'`
    - `fleetfold flower run my-app --run-config fast.toml --devices 40 --deadline 30s`
    - `fleetfold flower run my-app --quorum 0.5 --over-select 0.3 --json`
    - `fleetfold flower run my-app --hub --cohort 20 --where 'battery > 0.5'`
    - `fleetfold flower run --resume latest`
    """
    _installed()
    if resume is not None:
        return _resumed(resume, folder, run_config, flags, json)
    if folder is None:
        raise BadConfig("which app?", next="fleetfold flower run FOLDER, or --resume latest")
    from fleetfold.flower import app as flower_app
    from fleetfold.flower import opening

    found = flower_app.find(folder)
    place: Place | None = None
    ways = opening.Ways(fold=not no_fast_path, process=keep_process, suspend=suspend)
    for name, value in vars(others).items():
        if value is not None:
            key = opening.ROUNDS if name == "rounds" else "key"
            raise BadConfig(
                f"--{name.replace('_', '-')} is for apps of fleetfold's own: here the app's strategy says it",
                next=f"fleetfold flower run {folder} --run-config '{key}={value}'",
            )
    nodes = {"devices": found.nodes} if found.nodes else {}
    settings, places = settings_of(found.app, flags, {"pyproject.toml": nodes})
    if settings.app:
        raise BadConfig(
            f"{places['app']}: [app] is for apps of fleetfold's own: here it is [tool.flwr.app.config]",
            next=f"move it to {found.app.place}, or use --run-config",
        )
    config = flower_app.configured(found, run_config or [])
    if explain:
        terminal().print(explained(settings, places))
        return 0
    drive: Any
    if suspend:
        from fleetfold.flower import turns

        drive = partial(turns.start, found, config, settings, ways)
    else:
        from fleetfold.flower import run as flower_run

        with _apart(json):
            drive = partial(flower_run.start, flower_run.prepare(found, config, settings, ways))
    give = None
    if hub and aws:
        raise BadConfig(
            "a run is on a hub or on AWS, not on both", next=f"fleetfold flower run {folder} --hub"
        )
    if hub:
        installed()
        from fleetfold.hub import opening as on_hub

        on_hub.check(wiring.home())
        give = on_hub.submit_messages
    if aws:
        installed_aws()
        from fleetfold.aws import opening as on_aws

        account = on_aws.check(wiring.home(), stack)
        place = free_place(found.app.name, lambda run: on_aws.is_taken(account, run))
        give = partial(on_aws.submit_messages, account)
    chosen = place or new_place(wiring.home(), found.app.name)
    return _driven(chosen, json, lambda watch: drive(place=chosen, watch=watch, give=give))


def _resumed(name: str, folder: str | None, run_config: list[str] | None, flags: Any, json: bool) -> int:
    given = [name for name, value in vars(flags).items() if value is not None]
    given += ["run_config"] if run_config else []
    if given or folder:
        what = f"--{given[0].replace('_', '-')}" if given else "the app"
        raise BadConfig(
            f"{what} cannot be changed in a run that has begun", next=f"fleetfold flower run --resume {name}"
        )
    from fleetfold.flower import opening as flower_opening

    place = existing(name)
    flower_opening.found(place)
    if wiring.where(place) == "hub":
        installed()
        from fleetfold.hub import opening

        opening.again(place)
    if flower_opening.ways(place).suspend:
        from fleetfold.flower import turns

        return _driven(place, json, partial(turns.resume, place))
    from fleetfold.flower import run as flower_run

    return _driven(place, json, partial(flower_run.resume, place))


def _driven(place: Place, json: bool, drive: Callable[[Watch], Run]) -> int:
    def apart(watch: Watch) -> Run:
        with _apart(json):
            return drive(watch)

    return driven(place, json, apart, f"fleetfold flower run --resume {place.run}")


def _apart(json: bool) -> AbstractContextManager[object]:
    """Where standard output is for programs to read, what the app prints goes beside it."""
    return redirect_stdout(sys.stderr) if json else nullcontext()


def _installed() -> None:
    """Raises BadConfig without Flower, which is imported only where it is used."""
    if find_spec("flwr") is None:
        raise BadConfig(
            "a Flower app needs Flower, which is not installed here", next="pip install 'fleetfold[flower]'"
        )
