"""What ten hostile devices of fifty do to the model under each fold: digits, under the virtual clock.

They send what they trained turned round and ten times as far. The table in docs/robust.md comes from here.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from cyclopts import Parameter
from msgspec import Struct
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
FOLDS = ("mean", "median", "trimmed_mean", "krum", "multi_krum")


class Row(Struct, frozen=True):
    """Accuracy on the held-out fifth, mean of the last five rounds."""

    fold: str
    honest: float
    attacked: float


class Turncoats:
    """A trainer some of whose devices turn their update round and stretch it."""

    def __init__(self, trainer: Any, hostile: int, stretch: float) -> None:
        self._trainer, self._hostile, self._stretch = trainer, hostile, stretch
        self.init, self.test = trainer.init, trainer.test

    def train(self, model: dict[str, Any], work: Any) -> Any:
        trained = self._trainer.train(model, work)
        if work.device.index >= self._hostile:
            return trained
        turned = {
            name: model[name] - np.float32(self._stretch) * (array - model[name])
            for name, array in trained.tensors.items()
        }
        return msgspec.structs.replace(trained, tensors=turned, metrics={})


def attack(
    *,
    devices: int = 50,
    hostile: int = 10,
    stretch: float = 10.0,
    rounds: int = 20,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Accuracy on digits under each fold, with and without hostile devices."""
    from fleetfold.agent.app import find_app, load_trainer
    from fleetfold.settings import Settings
    from fleetfold.sim.profile import DeviceClass, Profile
    from fleetfold.sim.run import simulate

    profile = Profile((DeviceClass(name="any", devices=devices, compute=1.0),))
    app = find_app(str(ROOT / "examples/digits-numpy"))
    jobs = [(fold, liars) for fold in FOLDS for liars in (0, hostile)]
    found: dict[tuple[str, int], float] = {}
    for fold, liars in track(jobs, "simulating", console=Console(stderr=True), transient=True):
        settings = Settings(
            rounds=rounds, devices=devices, evaluate="off", select="all", fold=fold, byzantine=hostile
        )
        trainer = Turncoats(load_trainer(app), liars, stretch)
        run = simulate(profile, app, trainer, settings)
        found[fold, liars] = float(np.mean([row.accuracy or 0.0 for row in run.rows[-5:]]))
    rows = [Row(fold, found[fold, 0], found[fold, hostile]) for fold in FOLDS]
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("fold", "no attack", f"{hostile} of {devices} hostile"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.fold, f"{row.honest:.3f}", f"{row.attacked:.3f}")
    Console().print(table)
