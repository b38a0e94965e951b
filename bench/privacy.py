"""What privacy costs: accuracy on digits by noise, and the ε that it buys, under the virtual clock.

Every device is in every round, and the clip follows the median length. The table in docs/privacy.md comes
from here. Needs dp-accounting (the extra `dp`).
"""

from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
NOISES = (0.0, 1.0, 2.0, 4.0, 8.0)


class Row(Struct, frozen=True):
    """Accuracy on the held-out fifth, mean of the last five rounds, over the seeds; ε of the whole run, None
    without noise."""

    noise: float
    epsilon: float | None
    accuracy: float
    deviation: float


def privacy(
    *,
    devices: int = 150,
    rounds: int = 20,
    dp_delta: float = 1e-3,
    seeds: int = 3,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Accuracy on digits, and ε, for several noise multipliers."""
    jobs = [(noise, seed) for noise in NOISES for seed in range(seeds)]
    found: dict[float, list[Any]] = {noise: [] for noise in NOISES}
    for noise, seed in track(jobs, "simulating", console=Console(stderr=True), transient=True):
        found[noise].append(_run(devices, rounds, noise, dp_delta, seed))
    rows = [_row(noise, runs) for noise, runs in found.items()]
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("noise", f"ε at δ = {dp_delta:g}", "accuracy"):
        table.add_column(column)
    for row in rows:
        epsilon = "∞" if row.epsilon is None else f"{row.epsilon:.2f}"
        table.add_row(f"{row.noise:g}", epsilon, f"{row.accuracy:.3f} ± {row.deviation:.3f}")
    Console().print(table)


def _run(devices: int, rounds: int, noise: float, dp_delta: float, seed: int) -> Any:
    """The rows of one run's rounds."""
    from fleetfold.agent.app import find_app, load_trainer
    from fleetfold.settings import Settings
    from fleetfold.sim.profile import DeviceClass, Profile
    from fleetfold.sim.run import simulate

    settings = Settings(
        rounds=rounds, devices=devices, evaluate="off", select="all", seed=seed, weight="uniform"
    )
    if noise:
        settings = replace(settings, noise=noise, clip=1.0, clip_quantile=0.5, dp_delta=dp_delta)
    app = find_app(str(ROOT / "examples/digits-numpy"))
    profile = Profile((DeviceClass(name="any", devices=devices, compute=1.0),))
    return simulate(profile, app, load_trainer(app), settings).rows


def _row(noise: float, runs: list[Any]) -> Row:
    scores = [fmean(row.accuracy or 0.0 for row in rows[-5:]) for rows in runs]
    return Row(noise, runs[0][-1].epsilon, fmean(scores), stdev(scores) if len(scores) > 1 else 0.0)
