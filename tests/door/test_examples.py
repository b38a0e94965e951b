"""Every example runs as it is, from the command line, and says what it lacks before it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.images import write_cifar10, write_mnist

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_torch = pytest.mark.needs_torch


def fleetfold(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """As a user would call it, in a folder of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLEETFOLD_") and not k.endswith("_DIR")}
    return subprocess.run(
        [sys.executable, "-m", "fleetfold", *arguments],
        cwd=home, env={**kept, "FLEETFOLD_HOME": str(home / "runs of mine"), **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def rounds(home: Path, example: str, *flags: str, rounds: int = 2, **variables: str) -> list[dict[str, Any]]:
    """The rows of a run of `rounds` rounds over three devices, all of which answered every time."""
    told = ["--rounds", str(rounds), "--devices", "3", "--json", *flags]
    ended = fleetfold(home, "run", str(EXAMPLES / example), *told, **variables)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    for row in rows:
        assert (row["phase"], row["arrived"], row["refused"]) == ("done", 3, 0), row["reason"]
        assert row["scored_by"] == "test"
    return rows


def model(home: Path, run: str) -> dict[str, np.ndarray]:
    """The newest global model of a run."""
    return load_file(max((home / "runs of mine/runs" / run / "models").iterdir()))


def test_digits_in_numpy_learns_to_read(tmp_path: Path) -> None:
    rows = rounds(tmp_path, "digits-numpy", rounds=6)
    assert rows[-1]["accuracy"] > 0.8
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_digits_in_numpy_is_the_same_to_the_byte_with_the_same_seed(tmp_path: Path) -> None:
    rounds(tmp_path, "digits-numpy", "--workers", "1")
    rounds(tmp_path, "digits-numpy", "--workers", "2")
    rounds(tmp_path, "digits-numpy", "--seed", "1")
    first, again, other = (model(tmp_path, f"digits-numpy-{number}") for number in (1, 2, 3))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


@needs_torch
def test_digits_in_torch_learns_to_read(tmp_path: Path) -> None:
    assert rounds(tmp_path, "digits")[-1]["accuracy"] > 0.8


@needs_torch
def test_mnist_trains_from_the_files_as_they_come(tmp_path: Path) -> None:
    first, last = rounds(tmp_path, "mnist", MNIST_DIR=str(write_mnist(tmp_path / "idx", 600, gz=True)))
    assert last["loss"] < first["loss"]
    assert sum(array.size for array in model(tmp_path, "mnist-1").values()) == 109_386


@needs_torch
def test_cifar10_trains_from_the_files_in_the_current_folder(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", 600)
    first, last = rounds(tmp_path, "cifar10")
    assert last["loss"] < first["loss"]
    assert sum(array.size for array in model(tmp_path, "cifar10-1").values()) == 62_006


@needs_torch
def test_a_device_trains_on_the_share_that_it_was_given(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", 60)
    split = fleetfold(tmp_path, "split", "mnist", "--out", "shares", "--devices", "3", "--test", "0.5")
    assert split.returncode == 0, split.stderr
    rounds(tmp_path, "mnist", "--data", "shares", rounds=1)
    shown = fleetfold(tmp_path, "show", "latest", "--round", "1", "--json")
    assert shown.returncode == 0, shown.stderr
    assert {line["examples"] for line in map(json.loads, shown.stdout.splitlines())} == {10}


@needs_torch
@pytest.mark.parametrize(("example", "variable"), [("mnist", "MNIST_DIR"), ("cifar10", "CIFAR10_DIR")])
def test_files_that_are_not_there_are_one_sentence_before_any_training(
    tmp_path: Path, example: str, variable: str
) -> None:
    ended = fleetfold(tmp_path, "run", str(EXAMPLES / example), **{variable: "nowhere"})
    assert ended.returncode == 2
    assert ended.stdout == ""
    sentence, next = ended.stderr.splitlines()
    assert sentence.startswith(f"error: {tmp_path / 'nowhere'}: there is no ")
    assert sentence.endswith(f"({variable} names the folder)")
    assert next.startswith(f"  next: {variable}=FOLDER fleetfold run examples/{example}")
    assert not list(tmp_path.rglob("ledger.db"))


@pytest.mark.parametrize("example", ["digits", "digits-numpy", "mnist", "cifar10"])
def test_the_settings_of_an_example_are_explained_without_its_data(tmp_path: Path, example: str) -> None:
    ended = fleetfold(tmp_path, "run", str(EXAMPLES / example), "--explain")
    assert ended.returncode == 0, ended.stderr
    assert "learning_rate" in ended.stdout
