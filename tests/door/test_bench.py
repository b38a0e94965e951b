"""The benchmarks run and print what they say they print; how fast is no test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetfold.settings import default

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k != "FLEETFOLD_BENCH_FLOWER"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> "subprocess.CompletedProcess[str]":
    return bench("overhead", "--json", "--devices", "3", "--rounds", "3")


def test_overhead_prints_a_row_for_each_durability(small: "subprocess.CompletedProcess[str]") -> None:
    assert small.returncode == 0, small.stderr
    rows = [json.loads(line) for line in small.stdout.splitlines()]
    assert all(row.keys() == {"name", "seconds_per_round", "peak_mb"} for row in rows)
    assert all(row["seconds_per_round"] > 0 and row["peak_mb"] > 0 for row in rows)
    names = [row["name"] for row in rows]
    assert names[:2] == ["fleetfold, safe against kill -9", "fleetfold, safe against a power cut"]


def test_overhead_says_on_which_machine_and_how_durably(small: "subprocess.CompletedProcess[str]") -> None:
    assert f"{os.cpu_count()} cores" in small.stderr
    assert f'"{default("durability")}"' in small.stderr


def test_privacy_prints_a_row_for_each_noise_and_more_noise_spends_less() -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("sklearn")
    done = bench("privacy", "--json", "--rounds", "1", "--seeds", "1", "--devices", "10")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    spent = [row["epsilon"] for row in rows[1:]]
    assert rows[0]["epsilon"] is None
    assert spent == sorted(spent, reverse=True)
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


@pytest.mark.fleet
@pytest.mark.needs_torch
def test_proximal_prints_a_row_for_each_strength_and_the_stronger_goes_less_far() -> None:
    done = bench("proximal", "--json", "--rounds", "1", "--seeds", "1", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["proximal"] for row in rows] == [0.0, 0.01, 0.1, 1.0]
    lengths = [row["delta"] for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert all(0 < row["accuracy"] <= 1 for row in rows)


@pytest.mark.fleet
def test_fleet_prints_what_devices_at_a_real_hub_cost_it() -> None:
    few = {"devices": 12, "enrolled": 20, "cohort": 5, "rounds": 1, "small": 2, "idle": 1}
    done = bench("fleet", "--json", *(f"--{name}={count}" for name, count in few.items()))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["devices"], found["enrolled"]) == (12, 20)
    assert all(figure > 0 for name, figure in found.items() if name != "idle_core"), found
    assert "0 connections were lost; 0 times something was unavailable" in done.stderr


@pytest.mark.fleet
def test_agent_prints_what_waiting_costs_a_device_and_that_it_imports_nothing_heavy() -> None:
    done = bench("agent", "--json", "--starts", "1", "--rest", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dependencies"] == 4
    assert found["heavy"] == []
    assert all(found[name] > 0 for name in ("start_s", "first_line_s", "resident_mb", "worker_mb"))


@pytest.mark.fleet
def test_lambda_prints_what_a_fold_by_functions_takes_and_makes_the_bytes_of_one() -> None:
    small = {"functions": 2, "updates": 3, "megabytes": 11, "bandwidth": 200, "latency": 5, "runs": 1}
    done = bench("lambda", "--json", "--no-zip", *(f"--{name}={count}" for name, count in small.items()))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["functions"], found["updates"]) == (2, 3)
    assert found["wall_s"] == pytest.approx(found["parts_s"] + found["publish_s"])
    assert 0 < found["share"] <= 1.1
    assert all(figure > 0 for name, figure in found.items() if not name.startswith("zip")), found
