"""fleetfold sim: how a policy would do on a fleet like yours, in virtual time."""

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from fleetfold.agent.app import App, check, find_app, import_paths, load_trainer
from fleetfold.agent.trainer import Trainer
from fleetfold.cli.board import plain_table, terminal
from fleetfold.cli.progress import progress
from fleetfold.cli.settings import Flags, settings_of
from fleetfold.errors import BadConfig
from fleetfold.settings import NAMES, Settings
from fleetfold.sim.profile import Profile, load_profile
from fleetfold.sim.run import Simulated, simulate
from fleetfold.sim.trainer import AddOne
from fleetfold.view import last


def sim(
    profile: Path,
    app: str | None = None,
    /,
    *,
    vary: Annotated[str | None, Parameter(help="one row for each value: select=turnaround,all")] = None,
    json: Annotated[bool, Parameter(help="print JSON, one object a row", negative="")] = False,
    flags: Flags = Flags(),  # noqa: B008 - a dataclass of None, made once
) -> None:
    """Simulate a fleet like PROFILE under a virtual clock: the real coordinator and agents, no waiting.

    PROFILE says how fast, how far and how reliable the devices are. With APP they really train it; without,
    only time passes. A thousand rounds take seconds.

        [[class]]              # in PROFILE.toml, one for each kind of device
        name = "slow"
        devices = 8
        compute = 20.0         # seconds of training, the median
        spread = 0.3           # of its lognormal distribution
        dropout = 0.05         # share of invitations never answered
        up = 2.0               # Mbit/s
        down = 10.0

    **Examples**

    - `fleetfold sim examples/fleets/five-classes.toml --rounds 1000 --cohort 10`
    - `fleetfold sim fleet.toml --cohort 10 --vary select=turnaround,all,random`
    - `fleetfold sim fleet.toml examples/digits-numpy --vary over_select=0,0.3,0.5 --target 0.8`
    """
    fleet = load_profile(profile)
    name, values = _varied(vary)
    found = find_app(app) if app else App("sim", "sim", str(Path.cwd()))
    import_paths(found)
    trainer = load_trainer(found) if app else AddOne({"weight": (100,)})
    table = plain_table(*_COLUMNS)
    for value in values:
        settings, _ = settings_of(found, Flags(**{**vars(flags), **({name: value} if name else {})}))
        settings = msgspec.structs.replace(settings, devices=len(fleet.members()))
        check(found, trainer, settings.app)
        result = _watched(fleet, found, trainer, settings)
        figures = _figures(result)
        policy = f"{name} = {value}" if name else f"select = {settings.select}"
        if json:
            print(msgspec.json.encode({"policy": policy, **figures}).decode(), flush=True)
        table.add_row(policy, *map(_shown, figures.values()))
    if not json:
        terminal().print(table)


def _shown(value: float | int | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


_COLUMNS = ("policy", "rounds", "failed", "s/round", "p90", "updates", "s/update", "loss", "accuracy")


def _figures(result: Simulated) -> dict[str, float | int | None]:
    lengths = sorted(row.seconds for row in result.rows)
    updates = sum(row.arrived + row.credited for row in result.rows if row.phase == "done")
    return {
        "rounds": len(lengths),
        "failed": sum(row.phase == "failed" for row in result.rows),
        "seconds_per_round": result.round_seconds,
        "p90_seconds": lengths[int(0.9 * (len(lengths) - 1))],
        "updates": updates,
        "seconds_per_update": result.seconds / max(1, updates),
        "loss": last(result.rows, "loss"),
        "accuracy": last(result.rows, "accuracy"),
    }


def _varied(vary: str | None) -> tuple[str, list[str]]:
    """The setting and its values; "" and one value where nothing is varied."""
    if vary is None:
        return "", [""]
    name, equals, values = vary.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in NAMES or not values:
        raise BadConfig(f"--vary {vary!r} is not SETTING=VALUE,VALUE", next="fleetfold sim --help")
    return name, [value.strip() for value in values.split(",")]


def _watched(fleet: Profile, app: App, trainer: Trainer, settings: Settings) -> Simulated:
    with progress("simulating", unit="rounds") as told:
        return simulate(fleet, app, trainer, settings, lambda round: told(round - 1, settings.rounds))
