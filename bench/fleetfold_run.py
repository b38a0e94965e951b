"""One row of `overhead`: a whole run of fleetfold, its coordinator in this process.

    python -P bench/fleetfold_run.py DEVICES ROUNDS WORKERS DURABILITY  ─▶  {"seconds_per_round", "peak_mb"}

It is what `fleetfold run` does, with its board printing to nowhere. A round lasts until the next one
opens, so that whatever happens between two rounds is counted too.
"""

import os
import resource
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from rich.console import Console

from fleetfold import layout
from fleetfold.agent.app import find_app
from fleetfold.cli.board import Board
from fleetfold.fold.tensors import read
from fleetfold.local.run import new_place, prepare, start
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

APP = Path(__file__).parent / "apps" / "add_one.py"
WARM_UP = 2
"""Rounds that are not counted: imports, first pages of files, first use of everything."""


def measure(settings: Settings) -> dict[str, float]:
    """Median seconds from a round's opening to the next one's, and this process's own peak in MB.

    Leaves if the model is not what adding one `settings.rounds` times gives.
    """
    with TemporaryDirectory(prefix="fleetfold-bench-") as home:
        place = new_place(Path(home), "overhead")
        run = _finished(settings, place)
        model, _ = read((Path(home) / layout.model(run.name, run.version)).read_bytes())
        openings = [round.opened_at for round in wiring.ledger(place).rounds(place.run)]
    if not all(np.allclose(tensor, settings.rounds, rtol=1e-5) for tensor in model.values()):
        sys.exit("the model is not what adding one in every round gives")
    seconds = [after - before for before, after in pairwise([*openings, run.ended_at])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds_per_round": median(seconds[WARM_UP:]), "peak_mb": peak}


def _finished(settings: Settings, place: Place) -> Run:
    with open(os.devnull, "w") as nowhere, Board(place, Console(file=nowhere), "lines") as board:
        run = start(prepare(find_app(str(APP)), settings), place, board)
    if run.state is not RunState.DONE:
        sys.exit(f"the run did not end well: {run.reason}")
    return run


if __name__ == "__main__":
    devices, rounds, workers = map(int, sys.argv[1:4])
    asked = Settings(devices=devices, rounds=rounds, workers=workers, durability=sys.argv[4])
    print(msgspec.json.encode(measure(asked)).decode())
