"""How much sooner a fleet of mixed speed has folded so many updates when nobody waits for the slow.

The real coordinator and agents under a virtual clock, forty devices in five classes of speed, ten at work at
once, real training on digits (numpy). The figures in docs/policies.md come from here.
"""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
AT_WORK = 10
TARGETS = (10, 5, 3, 1)
"""Updates that a buffered round folds."""


class Row(Struct, frozen=True):
    """Means over the seeds: virtual seconds until the last of `updates` was folded, the ratio to rounds that
    wait for a random cohort, the accuracy on the held-out fifth over the last tenth of the rounds."""

    name: str
    updates: float
    seconds: float
    ratio: float
    accuracy: float


def buffered(
    *,
    updates: int = 1_000,
    seeds: int = 3,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Virtual time until so many updates are folded, in rounds that wait and in rounds that do not.

    Forty devices in five classes of speed (examples/fleets/five-classes.toml), ten at work at once.
    """
    from fleetfold.agent.app import find_app, load_trainer
    from fleetfold.settings import Settings
    from fleetfold.sim.profile import load_profile
    from fleetfold.sim.run import Simulated, simulate

    profile = load_profile(ROOT / "examples/fleets/five-classes.toml")
    app = find_app(str(ROOT / "examples/digits-numpy"))
    waiting = Settings(
        rounds=-(-updates // AT_WORK), cohort=AT_WORK, devices=len(profile.members()), evaluate="off",
        select="random",
    )  # fmt: skip
    policies = {"rounds, random": waiting, "rounds, turnaround": replace(waiting, select="turnaround")}
    for target in TARGETS:
        name = f"buffered, target {target}"
        policies[name] = replace(waiting, mode="buffered", target=target, rounds=-(-updates // target))
    runs: dict[str, list[Simulated]] = {name: [] for name in policies}
    jobs = [(name, seed) for seed in range(seeds) for name in policies]
    for name, seed in track(jobs, "simulating", console=Console(stderr=True), transient=True):
        runs[name].append(simulate(profile, app, load_trainer(app), replace(policies[name], seed=seed)))
    slowest = fmean(run.seconds for run in runs["rounds, random"])
    rows = []
    for name, found in runs.items():
        seconds = fmean(run.seconds for run in found)
        folded = fmean(sum(row.arrived + row.credited for row in run.rows) for run in found)
        last = [row.accuracy for run in found for row in run.rows[-len(run.rows) // 10 :]]
        accuracy = fmean(score for score in last if score is not None)
        rows.append(Row(name, folded, seconds, seconds / slowest, accuracy))
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
    else:
        Console().print(_table(rows))


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("mode")
    for column in ("updates", "seconds", "ratio", "accuracy"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name, f"{row.updates:,.0f}", f"{row.seconds:,.0f}", f"{row.ratio:.2f}", f"{row.accuracy:.3f}"
        )
    return table
