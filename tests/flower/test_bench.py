"""`python -m bench flower` runs both sides and prints what it says; how fast is no test's business."""

import json
import subprocess
import sys

import pytest

from tests.flower.environments import ROOT


@pytest.mark.fleet
def test_the_bench_prints_a_row_with_both_sides_of_each_work() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "flower", "--json", "--rounds", "3", "--only", "2 devices"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["work"].startswith("a round, 2 devices")
    assert min(row["flower"], row["fleetfold"], row["ratio"]) > 0
    assert min(row["flower_server_mb"], row["fleetfold_server_mb"]) > 0
