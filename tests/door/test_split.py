"""fleetfold split: one data set goes in, a file for every device comes out, and nothing is lost between."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleetfold.cli.main import main
from fleetfold.datasets.files import load
from tests.images import images, write_cifar10, write_mnist

Split = Callable[..., int]


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """`fleetfold split …` in an empty folder → its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(["split", *arguments])
        return int(left.value.code or 0)

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """data.npz: 200 examples, x is 0 … 199, and y the labels, ten of each in turn."""
    np.savez(tmp_path / "data.npz", x=np.arange(200), y=np.arange(200) // 10 % 10)
    return tmp_path / "data.npz"


def shares(folder: str = "shares") -> list[dict[str, np.ndarray]]:
    return [load(path) for path in sorted(Path(folder).glob("device-*.npz"))]


def seen(folder: str = "shares") -> list[int]:
    return sorted(np.concatenate([share["x"] for share in shares(folder)]).tolist())


@pytest.mark.parametrize("rule", ["iid", "dirichlet:0.3", "dirichlet", "shards:2", "shards"])
def test_the_shares_of_each_rule_add_up_to_the_whole(split: Split, data: Path, rule: str) -> None:
    assert split("data.npz", "--out", "shares", "--devices", "7", "--by", rule) == 0
    names = sorted(path.name for path in Path("shares").iterdir())
    assert names == [f"device-{i:03}.npz" for i in range(7)]
    assert seen() == list(range(200))
    assert all(np.array_equal(share["y"], share["x"] // 10 % 10) for share in shares())


def test_what_was_made_and_what_to_run_next_is_said(
    split: Split, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split("data.npz", "--out", "shares", "--devices", "8", "--test", "0.2")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "shares: 8 devices with 20 to 20 of 160 examples, 40 held out in test.npz",
        "  next: fleetfold run APP --data shares --devices 8",
    ]


def test_what_is_held_out_is_on_no_device(split: Split, data: Path) -> None:
    assert split("data.npz", "--out", "shares", "--devices", "4", "--test", "0.25") == 0
    held_out = load(Path("shares/test.npz"))["x"].tolist()
    assert len(held_out) == 50
    assert sorted(held_out + seen()) == list(range(200))


def test_the_same_seed_splits_alike_and_another_does_not(split: Split, data: Path) -> None:
    for out, seed in (("first", "3"), ("again", "3"), ("other", "4")):
        split("data.npz", "--out", out, "--by", "dirichlet:0.5", "--seed", seed)
    first, again, other = (
        [share["x"].tolist() for share in shares(out)] for out in ("first", "again", "other")
    )
    assert first == again
    assert first != other


def test_shards_leave_each_device_few_labels(split: Split, data: Path) -> None:
    split("data.npz", "--out", "shares", "--devices", "10", "--by", "shards:2")
    assert all(len(set(share["y"])) <= 2 for share in shares())


def test_the_labels_may_be_in_a_column_of_any_name(split: Split) -> None:
    np.savez("data.npz", x=np.arange(100), digit=np.arange(100) % 10)
    assert split("data.npz", "--out", "shares", "--by", "shards:1", "--labels", "digit") == 0
    assert all(len(set(share["digit"])) == 1 for share in shares())


def test_every_value_of_a_column_is_a_device_and_the_names_are_kept(split: Split) -> None:
    Path("patients.csv").write_text("age,hospital\n" + "61,North\n47,South\n33,North\n" * 3)
    assert split("patients.csv", "--out", "shares", "--by", "column:hospital") == 0
    names = json.loads(Path("shares/names.json").read_text())
    assert names == {"device-000": "North", "device-001": "South"}
    north, south = shares()
    assert north["age"].tolist() == [61, 33] * 3
    assert set(south["hospital"]) == {"South"}


def test_a_column_may_have_any_name(split: Split) -> None:
    Path("scans.csv").write_text("file,allow_pickle,x/y\na.png,1,2\nb.png,3,4\n")
    assert split("scans.csv", "--out", "shares", "--devices", "1") == 0
    (share,) = shares()
    assert {name: column.tolist() for name, column in share.items()} == {
        "file": ["a.png", "b.png"],
        "allow_pickle": [1, 3],
        "x/y": [2, 4],
    }


def test_mnist_and_cifar10_are_split_from_their_folders(split: Split, tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", 30, gz=True)
    write_cifar10(tmp_path / "cifar", 50)
    assert split("mnist", "--out", "digits", "--devices", "3") == 0
    assert split("cifar", "--out", "things", "--devices", "5", "--by", "dirichlet:1") == 0
    assert [share["x"].shape for share in shares("digits")] == [(10, 28, 28)] * 3
    assert sum(len(share["y"]) for share in shares("things")) == 50
    x, _ = images(30, 28, 28)
    assert sum(int(share["x"].sum()) for share in shares("digits")) == int(x.sum())


REFUSED: dict[str, tuple[str, str]] = {
    "none.npz": ("none.npz", "none.npz: there is no such file or folder"),
    "folder": ("empty", "empty: a folder with neither"),
    "rule": ("data.npz --by random", "--by random: not one of iid"),
    "alpha": ("data.npz --by dirichlet:x", "'x' is not a number"),
    "no alpha": ("data.npz --by dirichlet:-1", "alpha must be a number above 0"),
    "shards": ("data.npz --by shards:0", "shards:0: each device needs at least 1"),
    "column": ("data.npz --by column:who", "there is no column 'who'; there are x, y"),
    "labels": ("data.npz --by shards:2 --labels who", "there is no column 'who'"),
    "devices": ("data.npz --devices 0", "--devices 0: at least 1"),
    "too many": ("data.npz --devices 201", "200 examples cannot be shared out 201 ways"),
    "test": ("data.npz --test 1", "--test 1.0: a share, from 0 up to 1"),
    "all held out": ("data.npz --by column:y --test 0.999", "nothing of 200 examples would be left"),
    "seed": ("data.npz --seed -1", "--seed -1: from 0 up"),
    "out": ("data.npz --out full", "--out full is there already and not empty"),
    "out is a file": ("data.npz --out data.npz", "--out data.npz is there already and not empty"),
    "out cannot be": ("data.npz --out data.npz/shares", "--out data.npz/shares: Not a directory"),
    "flag": ("data.npz --device 3", "--device"),
    "source": ("", "source"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    split: Split, data: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    line, sentence = REFUSED[what]
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    arguments = line.split() + ([] if "--out" in line else ["--out", "shares"])
    assert split(*arguments) == 2
    said = capsys.readouterr()
    first, *rest = said.err.splitlines()
    assert first.startswith("error: ")
    assert sentence.lower() in first.lower()
    assert all(line.startswith("  next: ") for line in rest)
    assert said.out == ""
    assert sorted(Path().rglob("*")) == before
