"""What each codec costs and saves on digits: bytes of an update, accuracy at the end, over several seeds.

The app is examples/digits as it is. The table in docs/codecs.md comes from here.
"""

from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "bf16": {"codec": "bf16"},
    "fp16": {"codec": "fp16"},
    "int8": {"codec": "int8"},
    "int8, no feedback": {"codec": "int8", "feedback": False},
    "topk 10 %": {"codec": "topk", "topk": 0.1},
    "topk 1 %": {"codec": "topk", "topk": 0.01},
    "topk 1 %, no feedback": {"codec": "topk", "topk": 0.01, "feedback": False},
}


class Row(Struct, frozen=True):
    """`bytes`: of an update's file. Accuracy: on the held-out fifth, mean of the last five rounds, over the
    seeds, with its standard deviation; `change`: its mean difference to `full` with the same seed."""

    codec: str
    bytes: float
    ratio: float
    accuracy: float
    deviation: float
    change: float


def codecs(
    *,
    devices: int = 10,
    rounds: int = 30,
    seeds: int = 5,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Bytes and accuracy on digits by codec. Needs PyTorch."""
    jobs = [(way, seed) for seed in range(seeds) for way in WAYS]
    accuracy: dict[str, list[float]] = {way: [] for way in WAYS}
    size: dict[str, float] = {}
    for way, seed in track(jobs, "simulating", console=Console(stderr=True), transient=True):
        found, size[way] = _run(WAYS[way], devices, rounds, seed)
        accuracy[way].append(found)
    rows = [
        Row(
            way, size[way], size[way] / size["full"], fmean(found), stdev(found) if seeds > 1 else 0.0,
            fmean(a - b for a, b in zip(found, accuracy["full"], strict=True)),
        )
        for way, found in accuracy.items()
    ]  # fmt: skip
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
    else:
        Console().print(_table(rows))


def _run(told: dict[str, Any], devices: int, rounds: int, seed: int) -> tuple[float, float]:
    """(accuracy, bytes of an update)."""
    import torch

    from fleetfold.agent.app import find_app, load_trainer
    from fleetfold.settings import Settings
    from fleetfold.sim.profile import DeviceClass, Profile
    from fleetfold.sim.run import simulate

    torch.set_num_threads(1)
    profile = Profile((DeviceClass(name="any", devices=devices, compute=1.0),))
    app = find_app(str(ROOT / "examples/digits"))
    settings = Settings(rounds=rounds, devices=devices, seed=seed, evaluate="off", select="all", **told)
    rows = simulate(profile, app, load_trainer(app), settings).rows
    return fmean(row.accuracy or 0.0 for row in rows[-5:]), rows[-1].bytes_up / devices


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("codec", "bytes", "of full", "accuracy", "change"):
        table.add_column(column, justify="left" if column == "codec" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.codec, f"{row.bytes:,.0f}", f"{row.ratio:.3f}", f"{row.accuracy:.4f} ± {row.deviation:.4f}",
            f"{row.change:+.4f}",
        )  # fmt: skip
    return table
