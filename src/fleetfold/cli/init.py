"""fleetfold init: a new app that runs as it is."""

from pathlib import Path

from fleetfold.errors import BadConfig, typed
from fleetfold.layout import valid_name

APP = '''"""{name}: softmax regression in numpy on data that each device makes for itself.

Replace `load` with your data, the model and the mathematics with yours; the rest can stay.
Run it: fleetfold run {folder}
"""

import numpy as np

from fleetfold import Device, Evaluated, Trained, Work

FEATURES, CLASSES = 20, 3


def load(device: Device) -> tuple[np.ndarray, np.ndarray]:
    """What this device has seen: examples [n, FEATURES] and their labels [n].

    With `fleetfold run --data FOLDER`, device.data is this device's own file:
        file = np.load(device.data); return file["x"], file["y"]
    """
    truth = np.random.default_rng(0).normal(size=(FEATURES, CLASSES))
    own = np.random.default_rng(device.index)
    x = own.normal(size=(200, FEATURES)) + own.normal(size=FEATURES)
    return x, (x @ truth + own.normal(size=(200, CLASSES))).argmax(1)


def probabilities(model: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    scores = x @ model["weight"] + model["bias"]
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Softmax:
    def init(self, seed: int) -> dict[str, np.ndarray]:
        return {{"weight": np.zeros((FEATURES, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}}

    def train(self, model: dict[str, np.ndarray], work: Work) -> Trained:
        x, y = load(work.device)
        rate, epochs = work.settings.get("learning_rate", 0.1), work.settings.get("epochs", 5)
        model = {{name: array.copy() for name, array in model.items()}}
        for _ in range(epochs):
            error = probabilities(model, x)
            error[np.arange(len(y)), y] -= 1
            model["weight"] -= (rate * x.T @ error / len(y)).astype(np.float32)
            model["bias"] -= (rate * error.mean(0)).astype(np.float32)
        return Trained(tensors=model, examples=len(y))

    def evaluate(self, model: dict[str, np.ndarray], work: Work) -> Evaluated:
        x, y = load(work.device)
        p = probabilities(model, x)
        loss = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
        return Evaluated(examples=len(y), metrics={{"loss": loss, "accuracy": (p.argmax(1) == y).mean()}})


trainer = Softmax()
'''

SETTINGS = """# Any setting can stand here; `fleetfold run {folder} --explain` shows them all.
rounds = 10
devices = 10

[app] # given to train() as work.settings
epochs = 5
learning_rate = 0.5
"""


def init(folder: Path, /) -> None:
    """Make FOLDER with an app that runs as it is, in numpy alone, and is yours to change.

    **Examples**

    - `fleetfold init my-app`
    """
    if not valid_name(folder.name):
        raise BadConfig(f"{folder}: its name names the runs: letters, digits, '.', '_' and '-'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadConfig(f"{folder} is there already and not empty", next="fleetfold init ANOTHER_FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.py").write_text(APP.format(name=folder.name, folder=folder))
        (folder / "fleetfold.toml").write_text(SETTINGS.format(folder=folder))
    except OSError as error:
        raise BadConfig(f"{folder}: {error.strerror}") from None
    print(f"{folder}/app.py         the model, its data, training: yours to change\n"
          f"{folder}/fleetfold.toml how it is run\n  next: {typed(f'fleetfold run {folder}')}")  # fmt: skip
