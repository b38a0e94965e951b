"""What a round costs when training costs nothing: time, and the coordinator's memory.

    overhead ─▶ fleetfold_run.py  process, power   ┐ each in a process of its own
             ─▶ flower_sim.py     where there is   ┘ ─▶ a row

The parent stays small on purpose (no numpy): Linux counts the memory of whoever started a process
towards the new process's peak. `-P` keeps bench/ off the path, where select.py would pass for Python's.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
FLOWER = "FLEETFOLD_BENCH_FLOWER"
"""In the environment: a Python that has `flwr[simulation]`, which will not install beside fleetfold."""
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Flower and Ray as they are where there is no network: asking nobody, waiting for nobody."""
DURABILITIES = {"process": "safe against kill -9", "power": "safe against a power cut"}
DEFAULT = "process"


class Figures(Struct, frozen=True):
    """What a measured process prints as its last line."""

    seconds_per_round: float
    peak_mb: float


class Row(Struct, frozen=True):
    name: str
    seconds_per_round: float
    peak_mb: float


def overhead(
    *,
    devices: Annotated[
        int, Parameter(validator=Number(gte=2), help="devices, all of them in each round")
    ] = 100,
    rounds: Annotated[
        int, Parameter(validator=Number(gte=3), help="rounds; the first two are not counted")
    ] = 12,
    workers: Annotated[int, Parameter(validator=Number(gte=1), help="processes that train")] = 2,
    flower_python: Annotated[
        str | None, Parameter(help=f"a Python that has flwr[simulation]; else this one, else ${FLOWER}")
    ] = None,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Seconds a round and peak memory, for a model of 109,386 parameters that training adds one to.

    Time: the median from one round's opening to the next one's. Memory: of the process that coordinates,
    at its highest. Flower's simulation engine does the same work where there is a Python that has it.
    """
    _say(_machine())
    sizes = [str(devices), str(rounds), str(workers)]
    rows: list[Row] = []

    def measure(name: str, python: str, script: str, *more: str) -> None:
        figures = _figures([python, "-P", str(HERE / script), *sizes, *more])
        rows.append(Row(name, figures.seconds_per_round, figures.peak_mb))
        if json:
            print(msgspec.json.encode(rows[-1]).decode(), flush=True)

    for durability, promise in DURABILITIES.items():
        measure(f"fleetfold, {promise}", sys.executable, "fleetfold_run.py", durability)
    if python := _flower(flower_python):
        measure("flower simulation engine", python, "flower_sim.py")
    if not json:
        Console().print(_table(rows))


def _figures(command: list[str]) -> Figures:
    """Of one measured process. Leaves with what it said last when it fails."""
    done = subprocess.run(command, env={**os.environ, **OFFLINE}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with code {done.returncode}:\n{done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Figures)


def _flower(given: str | None) -> str | None:
    """The Python that runs Flower; None, and a sentence, where there is none."""
    if given:
        return given
    if find_spec("flwr") and find_spec("ray"):
        return sys.executable
    if FLOWER in os.environ:
        return os.environ[FLOWER]
    _say(f"no row for Flower: flwr[simulation] is not installed here; --flower-python PATH or ${FLOWER}")
    return None


def _machine() -> str:
    cores, python, load = os.cpu_count(), sys.version.partition(" ")[0], os.getloadavg()[0]
    return f'{cores} cores, load {load:.1f}, Python {python}; fleetfold\'s default durability is "{DEFAULT}"'


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for column in ("s/round", "ratio", "peak MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ratio = row.seconds_per_round / rows[0].seconds_per_round
        table.add_row(row.name, f"{row.seconds_per_round:.3f}", f"{ratio:.1f}×", f"{row.peak_mb:.0f}")
    return table
