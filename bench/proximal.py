"""What FedProx's term does where devices drift apart: digits by a skewed Dirichlet split, many local epochs.

The app is examples/digits with another split, its fit unchanged. The table in docs/how-to.md comes from here.
"""

import runpy
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import msgspec
import numpy as np
from cyclopts import Parameter
from msgspec import Struct
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
STRENGTHS = (0.0, 0.01, 0.1, 1.0)


class Row(Struct, frozen=True):
    """Over the seeds: accuracy on the held-out fifth after round five and its mean over the last five rounds,
    each with its standard deviation, and the mean length of what an update adds to its model."""

    proximal: float
    early: float
    early_deviation: float
    accuracy: float
    deviation: float
    delta: float


class Measured:
    """A trainer whose updates' lengths are noted: ‖trained − given‖ over all the tensors of an update."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.init, self.test = trainer.init, trainer.test
        self.lengths: list[float] = []

    def train(self, model: Mapping[str, Any], work: Any) -> Any:
        trained = self._trainer.train(model, work)
        squares = (np.square(array - model[name]).sum() for name, array in trained.tensors.items())
        self.lengths.append(float(np.sqrt(sum(squares))))
        return trained


def proximal(
    *,
    devices: int = 10,
    cohort: int = 10,
    alpha: float = 0.1,
    epochs: int = 10,
    rate: float = 0.1,
    rounds: int = 30,
    seeds: int = 5,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Accuracy on digits and how far devices go, by FedProx's `proximal`. Needs PyTorch.

    Cohorts are drawn at random. A seed decides the split, the first model, the cohorts and the training.
    """
    from fleetfold.settings import Settings

    jobs = [(mu, seed) for seed in range(seeds) for mu in STRENGTHS]
    found: dict[float, list[tuple[list[float], float]]] = {mu: [] for mu in STRENGTHS}
    for mu, seed in track(jobs, "simulating", console=Console(stderr=True), transient=True):
        told = {"epochs": epochs, "learning_rate": rate, "proximal": mu}
        settings = Settings(
            rounds=rounds,
            devices=devices,
            cohort=cohort,
            select="random",
            seed=seed,
            evaluate="off",
            app=told,
        )
        found[mu].append(_run(settings, alpha))
    rows = [_row(mu, runs) for mu, runs in found.items()]
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
    else:
        Console().print(_table(rows))


def _run(settings: Any, alpha: float) -> tuple[list[float], float]:
    """(accuracy after each round, mean length of an update)."""
    from fleetfold.agent.app import App
    from fleetfold.sim.profile import DeviceClass, Profile
    from fleetfold.sim.run import simulate

    profile = Profile((DeviceClass(name="any", devices=settings.devices, compute=1.0),))
    trainer = Measured(_trainer(alpha, settings.seed))
    run = simulate(profile, App("digits", "digits", str(ROOT)), trainer, settings)
    return [row.accuracy or 0.0 for row in run.rows], fmean(trainer.lengths)


def _trainer(alpha: float, seed: int) -> Any:
    """The example's, but for the split."""
    import torch
    from torch.utils.data import TensorDataset

    from fleetfold import Device, TorchTrainer
    from fleetfold.datasets import dirichlet

    torch.set_num_threads(1)
    app = runpy.run_path(str(ROOT / "examples/digits/app.py"))
    x, y = (column[app["HELD_OUT"] :] for column in app["scans"]())

    def data(device: Device) -> Any:
        mine = dirichlet(y.numpy(), device.count, alpha, seed, least=8)[device.index]
        return TensorDataset(x[mine], y[mine])

    return TorchTrainer(app["model"], data, app["fit"], app["evaluate"], app["test"])


def _row(mu: float, runs: list[tuple[list[float], float]]) -> Row:
    late = [fmean(accuracy[-5:]) for accuracy, _ in runs]
    early = [accuracy[min(5, len(accuracy)) - 1] for accuracy, _ in runs]
    delta = fmean(length for _, length in runs)
    return Row(mu, fmean(early), _spread(early), fmean(late), _spread(late), delta)


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("proximal", "accuracy, round 5", "last five rounds", "mean ‖delta‖"):
        table.add_column(column)
    for row in rows:
        early = f"{row.early:.3f} ± {row.early_deviation:.3f}"
        late = f"{row.accuracy:.3f} ± {row.deviation:.3f}"
        table.add_row(f"{row.proximal:g}", early, late, f"{row.delta:.2f}")
    return table
