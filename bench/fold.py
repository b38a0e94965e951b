"""What aggregation costs: updates from files in the page cache into one model, in a fresh process each.

    work ─▶ files ─▶ fold_engines.py, one process an engine ─▶ a row;  the limit: the same bytes only read

Ratios are to what was measured in the same run: the machine's speed drifts, the ratios hold.
"""

import os
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
SHAPES = {"20x100MB": (20, 50, 500_000), "100x100MB": (100, 50, 500_000), "10000x438KB": (10_000, 6, 18_231),
          "4x2GB": (4, 50, 10_000_000)}  # fmt: skip
"""Name, of the size in fp32 → (updates, tensors in each, elements in each tensor)."""
CODECS = ("fp32", "bf16", "int8")
WORKS = tuple(f"{shape}-{codec}" for codec in CODECS for shape in SHAPES)
ENGINES = (
    "limit", "fleetfold", "fleetfold, 1 thread", "fleetfold, numpy", "fleetfold, with sha256", "numpy naive",
    "list of state dicts", "list, once per example",
)  # fmt: skip
IN_MEMORY = ("list of state dicts", "list, once per example", "flower")
"""Engines that hold all updates at once."""


class Row(Struct, frozen=True):
    """`ratio_to_limit`: of the speed at which the same files are only read. Peak: of the process's memory,
    above what it was before the work began."""

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
    work: Annotated[tuple[str, ...], Parameter(help="names of works; default: the first; all: every one")] = (
        WORKS[0],
    ),
    runs: Annotated[int, Parameter(help="times that each engine runs; medians are shown")] = 5,
    flower_python: Annotated[
        str | None,
        Parameter(help="a Python that has flwr, for Flower's row", env_var="FLEETFOLD_BENCH_FLOWER"),
    ] = None,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Speed and memory of the fold against naive numpy, the forerunners' way, Flower, and only reading."""
    names = WORKS if "all" in work else work
    if unknown := [name for name in names if name not in WORKS]:
        sys.exit(f"there is no work {unknown[0]!r}; there are {', '.join(WORKS)}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    rows: list[Row] = []
    for name in names:
        with _files(name) as folder:
            found = _measured(name, folder, runs, flower_python)
        rows += found
        for row in found if json else ():
            print(msgspec.json.encode(row).decode(), flush=True)
    if not json:
        console.print(_table(rows))


def _measured(name: str, folder: Path, runs: int, flower_python: str | None) -> list[Row]:
    shape, codec = name.rsplit("-", 1)
    updates, tensors, elements = SHAPES[shape]
    engines = [(engine, sys.executable) for engine in ENGINES]
    if flower_python:
        engines.append(("flower", flower_python))
    size = sum(path.stat().st_size for path in folder.iterdir())
    engines = [(e, python) for e, python in engines if _fair(e, codec, updates, size)]
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
    middle = {engine: median(found) for engine, found in seconds.items()}
    flower = middle.get("flower")
    return [
        Row(
            engine, name, size / spent / 1e9, total / spent, middle["limit"] / spent,
            flower / spent if flower else None, peaks[engine],
        )
        for engine, spent in middle.items()
    ]  # fmt: skip


def _fair(engine: str, codec: str, updates: int, size: int) -> bool:
    """Whether the engine can do that work here: the others know fp32 only, and some hold everything."""
    if codec != "fp32" and not engine.startswith(("limit", "fleetfold")):
        return False
    if engine == "list, once per example" and updates > 100:
        return False  # as many additions as there are examples: hours
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    left = int(memory["MemAvailable"].split()[0]) * 1024 - size  # the files are to stay in the page cache
    return engine not in IN_MEMORY or 1.3 * size < left


@contextmanager
def _files(name: str) -> Iterator[Path]:
    """The updates of that work in the page cache, just written, and the model that they are from: a run's
    folders in a home of their own. → the updates' folder."""
    import numpy as np

    from fleetfold import layout
    from fleetfold.fold.codecs import encode
    from fleetfold.fold.tensors import header_in, write
    from fleetfold.messages import Form, UpdateHeader
    from fleetfold.messages import encode as encoded

    shape, codec = name.rsplit("-", 1)
    updates, tensors, elements = SHAPES[shape]
    form = Form("full" if codec == "fp32" else codec, codec == "int8")
    chance = np.random.default_rng(0)
    values = chance.standard_normal(tensors * elements, np.float32)
    with TemporaryDirectory(prefix="fleetfold-bench-") as home:
        model = {f"t{i}": part for i, part in enumerate(np.split(values, tensors))}
        place = Path(home) / layout.model("b", 0)
        place.parent.mkdir(parents=True)
        head = write(model)
        place.write_bytes(head)
        header = header_in(head)
        del head
        folder = Path(home) / layout.updates(layout.round("b", 1, "train"))
        folder.mkdir(parents=True)
        kept: dict[str, np.ndarray] = {}
        for k in range(updates):
            if k % 20 == 0:  # a codec's work is not what is measured: a few different ones will do
                moved = {n: part + np.float32(0.01 * (k + 1)) for n, part in model.items()}
                kept = encode(moved, model, header, form, [k]).tensors
                del moved
            about = UpdateHeader(run="b", round=1, kind="train", device=f"d{k}", examples=k + 1, form=form)
            (folder / f"d{k:06}.safetensors").write_bytes(write(kept, encoded(about)))
        os.sync()  # or the disk is still at work on these while the model is written
        yield folder


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("engine", "work"):
        table.add_column(column, no_wrap=True)
    for column in ("GB/s", "G elements/s", "of limit", "of Flower", "peak MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in rows:
        flower = "–" if r.ratio_to_flower is None else f"{r.ratio_to_flower:.1f}×"
        table.add_row(
            r.engine, r.work, f"{r.gb_per_s:.1f}", f"{r.elements_per_s / 1e9:.2f}",
            f"{r.ratio_to_limit:.2f}", flower, f"{r.peak_mb:.0f}",
        )  # fmt: skip
    return table
