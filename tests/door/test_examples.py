"""Every example runs as it is, from the command line, and says what it lacks before it trains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fleetfold.cli.main import main
from tests.images import write_cifar10, write_mnist

EXAMPLES = Path(__file__).parents[2] / "examples"
Capture = pytest.CaptureFixture[str]
needs_torch = pytest.mark.needs_torch


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and in it the runs."""
    for name in os.environ:
        if name.startswith("FLEETFOLD_") or name in ("MNIST_DIR", "CIFAR10_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(example: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleetfold", "run", str(EXAMPLES / example), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rounds(example: str, *flags: str, rounds: int = 2) -> list[dict[str, Any]]:
    """The rows of a run of `rounds` rounds over three devices, all of which answered every time."""
    ended = run(example, "--rounds", str(rounds), "--devices", "3", "--json", *flags)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    for row in rows:
        assert (row["phase"], row["arrived"], row["refused"]) == ("done", 3, 0), row["reason"]
        assert row["scored_by"] == "test"
    return rows


def here(*arguments: str) -> int:
    """The command line in this process → its exit code."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def newest(run: Path) -> dict[str, np.ndarray]:
    """The newest global model of a run."""
    return load_file(max((run / "models").iterdir()))


def test_digits_in_numpy_learns_to_read_and_its_seed_decides_every_byte(home: Path) -> None:
    rows = rounds("digits-numpy", "--workers", "2", rounds=6)
    assert rows[-1]["accuracy"] > 0.8
    assert rows[-1]["loss"] < rows[0]["loss"]
    rounds("digits-numpy", "--workers", "1", rounds=6)
    first, again = newest(home / "runs/digits-numpy-1"), newest(home / "runs/digits-numpy-2")
    assert all(np.array_equal(first[name], again[name]) for name in first)


@needs_torch
def test_digits_in_torch_learns_to_read() -> None:
    assert rounds("digits", "--workers", "1")[-1]["accuracy"] > 0.8


def changed(example: str, **app: object) -> str:
    """A copy of the example in the current folder, with other settings of its own."""
    shutil.copytree(EXAMPLES / example, example)
    settings = "\n".join(f"{name} = {value}" for name, value in app.items())
    Path(example, "fleetfold.toml").write_text(f"[app]\n{settings}\n")
    return str(Path(example).absolute())


@pytest.mark.fleet
def test_digits_in_numpy_stays_nearer_to_its_first_model_with_a_large_proximal(home: Path) -> None:
    def went(run: str) -> float:
        first, last = (
            load_file(home / f"runs/{run}/models/00000{version}.safetensors") for version in (0, 1)
        )
        return sum(float(np.square(last[name] - first[name]).sum()) for name in first)

    rounds("digits-numpy", "--workers", "1", rounds=1)
    rounds(changed("digits-numpy", proximal=5.0), "--workers", "1", rounds=1)
    assert went("digits-numpy-2") < went("digits-numpy-1") / 4


@pytest.mark.parametrize(
    ("example", "value"),
    [
        ("digits-numpy", "-0.5"),
        ("digits-numpy", "'strong'"),
        pytest.param("digits", "-0.5", marks=needs_torch),
    ],
)
def test_a_proximal_that_is_no_strength_is_one_sentence_before_any_training(
    example: str, value: str, home: Path
) -> None:
    ended = run(changed(example, proximal=value))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[0] == f"error: proximal = {value} is not a number from 0 up"
    assert not home.exists()


@needs_torch
@pytest.mark.fleet
def test_mnist_trains_from_the_files_as_they_come(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_DIR", str(write_mnist(Path("idx"), 600, gz=True)))
    first, last = rounds("mnist")
    assert last["loss"] < first["loss"]
    assert sum(array.size for array in newest(home / "runs/mnist-1").values()) == 109_386


@needs_torch
@pytest.mark.fleet
def test_cifar10_trains_from_the_files_in_the_current_folder(home: Path) -> None:
    write_cifar10(Path("cifar-10-batches-py"), 600)
    first, last = rounds("cifar10", "--workers", "1")
    assert last["loss"] < first["loss"]
    assert sum(array.size for array in newest(home / "runs/cifar10-1").values()) == 62_006


@needs_torch
def test_a_device_trains_on_the_share_that_it_was_given(capsys: Capture) -> None:
    write_mnist(Path("mnist"), 60)
    assert here("split", "mnist", "--out", "shares", "--devices", "3", "--test", "0.5") == 0
    rounds("mnist", "--data", "shares", "--workers", "1", rounds=1)
    capsys.readouterr()
    assert here("show", "latest", "--round", "1", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["examples"] for line in lines] == [10, 10, 10]


@needs_torch
@pytest.mark.parametrize(("example", "variable"), [("mnist", "MNIST_DIR"), ("cifar10", "CIFAR10_DIR")])
def test_files_that_are_not_there_are_one_sentence_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "nowhere")
    ended = run(example)
    assert ended.returncode == 2
    assert ended.stdout == ""
    sentence, next = ended.stderr.splitlines()
    assert sentence.startswith(f"error: {tmp_path / 'nowhere'}: there is no ")
    assert sentence.endswith(f"({variable} names the folder)")
    assert next.startswith(f"  next: {variable}=FOLDER fleetfold run examples/{example}")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("example", ["digits", "digits-numpy", "mnist", "cifar10"])
def test_the_settings_of_an_example_are_explained_without_its_data(example: str, capsys: Capture) -> None:
    assert here("run", str(EXAMPLES / example), "--explain") == 0
    assert "learning_rate" in capsys.readouterr().out
