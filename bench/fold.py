"""What aggregation costs: updates from files in the page cache into one model, in a fresh process each.

    work ─▶ files ─▶ fold_engines.py, one process an engine ─▶ a row;  the limit: the same bytes only read

Ratios are to what was measured in the same run: the machine's speed drifts, the ratios hold.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
WORKS = {
    "20x100MB-fp32": (20, 50, 500_000),
    "100x100MB-fp32": (100, 50, 500_000),
    "10000x438KB-fp32": (10_000, 6, 18_231),
}
"""Name → (updates, tensors in each, elements in each tensor)."""
ENGINES = ("limit", "fleetfold", "numpy naive", "list of state dicts")


class Row(Struct, frozen=True):
    """`ratio_to_limit`: of the speed at which the same files are only read. Peak: above the interpreter's."""

    engine: str
    work: str
    gb_per_s: float
    elements_per_s: float
    ratio_to_limit: float
    ratio_to_flower: float | None
    peak_mb: float


class Figures(Struct, frozen=True):
    seconds: float
    peak_mb: float


def fold(
    *,
    work: Annotated[tuple[str, ...], Parameter(help="names of works; default: the first")] = (
        "20x100MB-fp32",
    ),
    runs: Annotated[int, Parameter(help="times that each engine runs; medians are shown")] = 5,
    flower_python: Annotated[str | None, Parameter(help="a Python that has flwr, for Flower's row")] = None,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Speed and memory of the fold against naive numpy, the forerunners' way, Flower, and only reading."""
    rows = []
    for name in work:
        with _files(*WORKS[name]) as folder:
            rows += _measured(name, folder, runs, flower_python)
    if json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
    else:
        Console().print(_table(rows))


def _measured(name: str, folder: Path, runs: int, flower_python: str | None) -> list[Row]:
    updates, tensors, elements = WORKS[name]
    engines = [(engine, sys.executable) for engine in ENGINES]
    if flower_python:
        engines.append(("flower", flower_python))
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(runs):  # in turn, so that a slow minute of the machine meets all of them
        for engine, python in engines:
            command = [python, "-P", str(HERE / "fold_engines.py"), engine, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{engine} failed:\n{done.stderr[-2000:]}")
            figures = msgspec.json.decode(done.stdout.splitlines()[-1], type=Figures)
            seconds.setdefault(engine, []).append(figures.seconds)
            peaks[engine] = max(peaks.get(engine, 0.0), figures.peak_mb)
    total = updates * tensors * elements
    speeds = {engine: total / median(found) for engine, found in seconds.items()}
    flower = speeds.get("flower")
    return [
        Row(
            engine, name, speed * 4 / 1e9, speed, speed / speeds["limit"],
            speed / flower if flower else None, peaks[engine],
        )
        for engine, speed in speeds.items()
    ]  # fmt: skip


@contextmanager
def _files(updates: int, tensors: int, elements: int) -> Iterator[Path]:
    """Update files of that shape, in the page cache: just written."""
    import numpy as np

    from fleetfold.fold.tensors import write
    from fleetfold.messages import UpdateHeader, encode

    chance = np.random.default_rng(0)
    values = chance.normal(size=tensors * elements).astype(np.float32)
    with TemporaryDirectory(prefix="fleetfold-bench-") as folder:
        for k in range(updates):
            header = UpdateHeader(run="b", round=1, kind="train", device=f"d{k}", examples=k + 1)
            parts = np.split(np.roll(values, k), tensors)
            data = write({f"t{i}": part for i, part in enumerate(parts)}, encode(header))
            (Path(folder) / f"{k:06}.safetensors").write_bytes(data)
        yield Path(folder)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("engine", "work"):
        table.add_column(column)
    for column in ("GB/s", "G elements/s", "of limit", "of Flower", "peak MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in rows:
        flower = "–" if r.ratio_to_flower is None else f"{r.ratio_to_flower:.1f}×"
        table.add_row(
            r.engine, r.work, f"{r.gb_per_s:.1f}", f"{r.elements_per_s / 1e9:.2f}",
            f"{r.ratio_to_limit:.2f}", flower, f"{r.peak_mb:.0f}",
        )  # fmt: skip
    return table
