"""kill -9, for real: each process of a real run dies at each of its writes, one after the other.

The step is named, not drawn: FLEETFOLD_FAULTS has the process send itself SIGKILL just before or just
after its n-th write. What follows must end with the same model, to the byte, as a run that lived.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from fleetfold import layout
from fleetfold.ledger import place
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.round.state import Phase
from fleetfold.wiring import local as wiring
from fleetfold.wiring.faults import FAULTS
from fleetfold.wiring.local import Place

APP = """
import numpy as np
from fleetfold import Trained

class Walk:
    def init(self, seed):
        return {"w": np.zeros(50, np.float32)}

    def train(self, model, work):
        log = open(LOG, "a")
        log.write(f"{work.round} {work.device.name}\\n")
        step = np.random.default_rng(work.seed).normal(size=50).astype(np.float32)
        return Trained(tensors={"w": model["w"] * np.float32(0.9) + step}, examples=work.device.index + 1)

trainer = Walk()
"""
SETTINGS = ["--devices", "3", "--rounds", "2", "--workers", "1", "--evaluate", "off"]
BUFFERED = [
    "--devices",
    "3",
    "--rounds",
    "6",
    "--workers",
    "1",
    "--mode",
    "buffered",
    "--target",
    "2",
    "--keep",
    "0",
]


def fleetfold(home: Path, *arguments: str, faults: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FLEETFOLD_HOME": str(home), FAULTS: faults}
    return subprocess.run(
        [sys.executable, "-m", "fleetfold", *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def app(folder: Path) -> Path:
    (folder / "walk.py").write_text(APP.replace("LOG", repr(str(folder / "trained.log"))))
    return folder / "walk.py"


@cache
def undisturbed() -> tuple[bytes, int]:
    """The model of a run that nobody disturbed, and how many writes its coordinator made, twice."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    result = fleetfold(folder, "run", str(app(folder)), *SETTINGS, "--json")
    assert result.returncode == 0, result.stderr
    return model(folder)


def model(home: Path) -> tuple[bytes, int]:
    place = Place(home, "walk-1")
    found = wiring.ledger(place).run("walk-1")
    assert found is not None
    assert found[0].state is RunState.DONE
    return fetch(wiring.objects(place), layout.model("walk-1", found[0].version)), found[1]


LANES = 12
"""The steps are dealt out to so many tests, that they may run side by side."""


@pytest.mark.fleet
@pytest.mark.parametrize("lane", range(1, LANES + 1))
def test_the_coordinator_is_killed_at_each_step_and_resumed(lane: int, tmp_path: Path) -> None:
    for at in itertools.count(lane, LANES):
        home = tmp_path / str(at)
        home.mkdir()
        killed = fleetfold(home, "run", str(app(home)), *SETTINGS, "--json", faults=f"coordinator:{at}")
        if killed.returncode == 0:
            assert at > 40, "this run makes more than 40 writes"
            return  # it takes fewer steps than that
        assert killed.returncode == -signal.SIGKILL
        resume_and_compare(home)


def resume_and_compare(tmp_path: Path) -> None:
    if wiring.ledger(Place(tmp_path, "walk-1")).run("walk-1") is None:
        again = fleetfold(tmp_path, "run", "--resume", "walk-1")
        assert again.returncode == 2
        assert "was never opened" in again.stderr
        return
    delivered = {p.stem: p.parts[-3] for p in tmp_path.glob("runs/*/rounds/*/updates/*.safetensors")}
    log = tmp_path / "trained.log"
    before = log.read_text().splitlines() if log.exists() else []
    resumed = fleetfold(tmp_path, "run", "--resume", "latest", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert model(tmp_path)[0] == undisturbed()[0]
    for line in log.read_text().splitlines()[len(before) :]:
        number, device = line.split()
        assert delivered.get(device) != f"{int(number):06}", "a finished update was trained again"


@pytest.mark.parametrize("faults", ["coordinator:25", "coordinator:52", "coordinator:79", "worker-0:14"])
def test_a_buffered_run_that_is_killed_counts_each_update_once(faults: str, tmp_path: Path) -> None:
    killed = fleetfold(tmp_path, "run", str(app(tmp_path)), *BUFFERED, "--json", faults=faults)
    if faults.startswith("coordinator"):
        assert killed.returncode == -signal.SIGKILL
        resumed = fleetfold(tmp_path, "run", "--resume", "latest", "--json")
        assert resumed.returncode == 0, resumed.stderr
    ledger = wiring.ledger(Place(tmp_path, "walk-1"))
    rounds = ledger.rounds("walk-1")
    assert [r.phase for r in rounds] == [Phase.DONE] * 6
    counts: Counter[str] = Counter()
    for r in rounds:
        arrivals = {a.seat: a for a in ledger.arrivals(place(r)).values()}
        counts.update([*(arrivals[seat].key for seat in r.arrived), *r.credits])
        came = [a for a in arrivals.values() if a.at < rounds[-1].closed_at]
        assert all(a.state in ("admitted", "credited") for a in came)
    assert counts.total() >= 6 * 2
    assert set(counts.values()) == {1}


STEPS = range(1, 33)
SAMPLED = STEPS[::5]
"""Just before some writes and just after others; the rest die in `make fleet`."""


@pytest.mark.parametrize(
    "at", [at if at in SAMPLED else pytest.param(at, marks=pytest.mark.fleet) for at in STEPS]
)
def test_a_worker_is_killed_at_this_step_and_the_run_goes_on_by_itself(at: int, tmp_path: Path) -> None:
    """Three devices, two rounds: each promises and delivers, then it is settled and reported for all."""
    result = fleetfold(tmp_path, "run", str(app(tmp_path)), *SETTINGS, "--json", faults=f"worker-0:{at}")
    assert result.returncode == 0, result.stderr
    assert model(tmp_path)[0] == undisturbed()[0]
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["phase"], row["arrived"], row["refused"]) for row in rows] == [("done", 3, 0)] * 2
