"""How much faster a round is when the slow are asked less often, and what that costs in accuracy.

The real coordinator and agents under a virtual clock, forty devices in five classes of speed, real
training on digits (numpy). The figures and the plot in docs/policies.md come from here.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
POLICIES = ("turnaround", "all", "random", "fastest")


class Row(Struct, frozen=True):
    """Means over the seeds: of a round's virtual length, of its ratio to "all", of the last ten rounds'
    accuracy on the held-out fifth."""

    name: str
    seconds_per_round: float
    ratio_to_all: float
    accuracy: float


def select(
    *,
    rounds: int = 100,
    cohort: int = 10,
    seeds: int = 3,
    plot: Annotated[Path | None, Parameter(help="draw accuracy over virtual time into this PNG")] = None,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """A round's length and the accuracy under each selection rule, in virtual time.

    Forty devices in five classes of speed (examples/fleets/five-classes.toml), cohorts of ten; "all"
    invites all forty.
    """
    from fleetfold.agent.app import find_app, load_trainer
    from fleetfold.settings import Settings
    from fleetfold.sim.profile import load_profile
    from fleetfold.sim.run import Simulated, simulate

    profile = load_profile(ROOT / "examples/fleets/five-classes.toml")
    app = find_app(str(ROOT / "examples/digits-numpy"))
    base = Settings(rounds=rounds, cohort=cohort, devices=len(profile.members()), evaluate="off")
    runs: dict[str, list[Simulated]] = {name: [] for name in POLICIES}
    jobs = [(name, seed) for seed in range(seeds) for name in POLICIES]
    for name, seed in track(jobs, "simulating", console=Console(stderr=True), transient=True):
        settings = replace(base, select=name, seed=seed)
        runs[name].append(simulate(profile, app, load_trainer(app), settings))
    everyone = fmean(run.round_seconds for run in runs["all"])
    rows = []
    for name, found in runs.items():
        seconds = fmean(run.round_seconds for run in found)
        late = [row.accuracy for run in found for row in run.rows[-10:] if row.accuracy is not None]
        rows.append(Row(name, seconds, seconds / everyone, fmean(late)))
    if plot is not None:
        _draw({name: found[0] for name, found in runs.items()}, plot)
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
    else:
        Console().print(_table(rows))


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("select")
    for column in ("s/round", "of all", "accuracy"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name, f"{row.seconds_per_round:.1f}", f"{row.ratio_to_all:.2f}", f"{row.accuracy:.3f}"
        )
    return table


def _draw(runs: Mapping[str, Any], path: Path) -> None:
    """Accuracy over virtual time; line styles differ as well as colours."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, run), style in zip(runs.items(), ("-", "--", "-.", ":"), strict=True):
        elapsed, times = 0.0, []
        for row in run.rows:
            elapsed += row.seconds
            times.append(elapsed / 60)
        accuracy = [row.accuracy for row in run.rows]
        axes.plot(times, accuracy, style, label=name, linewidth=1.8)
    axes.set(
        xlabel="virtual minutes", ylabel="accuracy on the held-out fifth", ylim=(0.75, 1.0), xlim=(0, 25)
    )
    axes.grid(alpha=0.3)
    axes.legend(title="select", loc="lower right")
    figure.savefig(path, dpi=110)
