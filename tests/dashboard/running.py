"""A real run in a process of its own, of the app whose devices take their time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetfold.ledger import Ledger
from fleetfold.round.run import Run
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

APP = Path(__file__).parents[2] / "examples/odd-ones"


@contextmanager
def running(home: Path, *flags: str, app: Path = APP) -> Iterator[subprocess.Popen[bytes]]:
    """`fleetfold run` with those flags; ended with the block, if it has not ended."""
    words = [sys.executable, "-m", "fleetfold", "run", str(app), "--json", *flags]
    with (home / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            words, stdout=said, stderr=said, env={**os.environ, "FLEETFOLD_HOME": str(home)}
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def place_of(home: Path, run: str = "odd-ones-1") -> Place:
    return Place(home, run)


def ledger_of(place: Place) -> Ledger:
    return wiring.ledger(place)


def until(place: Place, is_so: Callable[[Run], bool]) -> Run:
    """Waits for the run to be so."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        if (place.folder / "ledger.db").exists():
            found = ledger_of(place).run(place.run)
            if found is not None and is_so(found[0]):
                return found[0]
        time.sleep(0.05)
    raise AssertionError(f"run {place.run} does not come to that")
