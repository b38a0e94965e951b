"""The same Flower app by Flower and by us: seconds a round over a network, the server's memory, a simulation.

    rounds      N devices × 5 MB   SuperLink and SuperNodes   ┐ each side afresh, one after the other, with
    memory      8 devices × 50 MB  the same                   ├ all processes on this machine
    simulation  100 devices        run_simulation             ┘ ours: hub and MQTT; local workers

Training adds one, in the simulation nothing (apps/flower). Both sides run in one environment, which
`make test-flower` makes: .venv-flower.
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

from bench.overhead import FLOWER, OFFLINE

ROOT = Path(__file__).parents[1]


class Work(Struct, frozen=True):
    """One comparison: what runs on either side, and what at most ours may be of Flower's."""

    name: str
    theirs: str
    ours: str
    devices: int
    megabytes: float
    figure: str
    unit: str
    wanted: float
    add: int = 1
    times: int = 1  # as many rounds as were asked for


WORKS = (
    Work("a round, 2 devices × 5 MB", "superlink", "hub", 2, 5, "seconds", "s", 1 / 10),
    Work("a round, 10 devices × 5 MB", "superlink", "hub", 10, 5, "seconds", "s", 1 / 10),
    Work("memory, 8 devices × 50 MB", "superlink", "hub", 8, 50, "app_mb", "MB", 1 / 5),
    Work(
        "simulated round, 100 devices × 0.44 MB",
        "simulation",
        "local",
        100,
        0.44,
        "seconds",
        "s",
        1 / 8,
        add=0,
        times=4,  # they are short
    ),
)


class Row(Struct, frozen=True):
    work: str
    unit: str
    flower: float
    fleetfold: float
    ratio: float
    """Of Flower's figure to ours."""
    wanted: float
    flower_server_mb: float | None
    """The SuperLink's peak, beside the process of the app."""
    fleetfold_server_mb: float | None
    """The hub's."""


def flower(
    *,
    only: Annotated[str, Parameter(help="measure only what has this in its name")] = "",
    rounds: Annotated[int, Parameter(validator=Number(gte=3), help="the first is not counted")] = 5,
    flower_python: Annotated[
        str | None,
        Parameter(help=f"a Python with flwr[simulation] and fleetfold; else this one, else ${FLOWER}"),
    ] = None,
    json: Annotated[bool, Parameter(help="print one JSON object a row", negative="")] = False,
) -> None:
    """Seconds a round against a SuperLink, the server's memory, and a simulation, with Flower's own beside.

    Seconds: the median from one round's end to the next one's. Memory: of the process that runs the
    ServerApp, at its highest, above what importing the app took.
    """
    python = flower_python or (sys.executable if find_spec("flwr") else os.environ.get(FLOWER))
    if not python:
        sys.exit(
            "flwr is not installed here: make test-flower, and then "
            f"--flower-python .venv-flower/bin/python, or ${FLOWER}"
        )
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {_version(python)}",
        file=sys.stderr,
        flush=True,
    )
    rows = []
    for work in WORKS:
        if only not in work.name:
            continue
        rows.append(_row(work, *(_measured(python, side, work, rounds) for side in (work.theirs, work.ours))))
        if json:
            print(msgspec.json.encode(rows[-1]).decode(), flush=True)
    if not json:
        Console().print(_table(rows))


def _row(work: Work, theirs: dict[str, float], ours: dict[str, float]) -> Row:
    flower, fleetfold = theirs[work.figure], ours[work.figure]
    servers = theirs.get("server_mb"), ours.get("server_mb")
    return Row(work.name, work.unit, flower, fleetfold, flower / fleetfold, 1 / work.wanted, *servers)


def _measured(python: str, side: str, work: Work, rounds: int) -> dict[str, float]:
    words = [side, str(work.devices), str(work.times * rounds), str(work.megabytes), str(work.add)]
    command = [python, "-m", "bench.flower_sides", *words]
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with code {done.returncode}:\n{done.stderr[-4000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, float])


def _version(python: str) -> str:
    ask = "import flwr, sys; print('flwr', flwr.__version__, 'Python', sys.version.partition(' ')[0])"
    environment = {**os.environ, **OFFLINE}
    return subprocess.run([python, "-c", ask], env=environment, capture_output=True, text=True).stdout.strip()


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for column in ("Flower", "fleetfold", "", "ratio", "wanted", "SuperLink MB", "hub MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        beside = (
            "–" if mb is None else f"{mb:.0f}" for mb in (row.flower_server_mb, row.fleetfold_server_mb)
        )
        numbers = f"{row.flower:.3g}", f"{row.fleetfold:.3g}", row.unit
        table.add_row(row.work, *numbers, f"{row.ratio:.1f}×", f"{row.wanted:.0f}×", *beside)
    return table
