"""Flower's own example apps, run as they are: only where their data comes from is another (examples.py)."""

from pathlib import Path

import numpy as np
import pytest

from tests.flower import examples
from tests.flower.running import locally

DEVICES = 10


@pytest.mark.fleet
def test_the_pytorch_example_trains_its_network(tmp_path: Path) -> None:
    import torch

    app = examples.write("PyTorch", tmp_path)
    locally(app, tmp_path, DEVICES)
    model = torch.load(tmp_path / "final_model.pt")
    assert next(tuple(tensor.shape) for tensor in model.values()) == (6, 3, 5, 5)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.values())


def test_the_scikit_learn_example_learns_digits(tmp_path: Path) -> None:
    import joblib

    app = examples.write("sklearn", tmp_path)
    locally(app, tmp_path, DEVICES)
    model = joblib.load(tmp_path / "logreg_model.pkl")
    x, y = examples.data("sklearn")
    assert float(np.mean(model.predict(x) == y)) > 0.8


@pytest.mark.fleet
def test_the_xgboost_example_grows_its_trees(tmp_path: Path) -> None:
    import xgboost

    app = examples.write("XGBoost", tmp_path)
    locally(app, tmp_path, DEVICES)
    trees = xgboost.Booster(model_file=tmp_path / "final_model.json")
    x, y = examples.data("XGBoost")
    assert trees.num_boosted_rounds() > 1
    assert float(np.mean((trees.predict(xgboost.DMatrix(x)) > 0.5) == y)) > 0.9


@pytest.mark.fleet
@pytest.mark.parametrize("framework", examples.DATA_SET)
def test_of_an_example_only_what_loads_its_data_is_another(framework: str, tmp_path: Path) -> None:
    theirs = examples.generated(framework, tmp_path / "theirs")
    ours = examples.write(framework, tmp_path / "ours")
    files = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    others = {path for path in files if (theirs / path).read_bytes() != (ours / path).read_bytes()}
    assert others == {Path("example/task.py")}
    kept = examples.without((theirs / "example/task.py").read_text(), examples.DATA_SET[framework])
    assert (ours / "example/task.py").read_text() == kept + examples.ON_DISK[framework]
    about_data = ("train_test_split", "FederatedDataset", "IidPartitioner", "transforms", "load_data", "fds")
    assert not any(word in kept for word in about_data)
