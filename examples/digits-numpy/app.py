"""Handwritten digits over ten devices, in numpy alone: 1,797 real 8x8 scans (scikit-learn's).

A fifth is held out, the rest split by Dirichlet(0.5) over the labels: each device sees its own mix of
digits, and none sees all. The model has one hidden layer. Run it: fleetfold run examples/digits-numpy
"""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from fleetfold import Device, Evaluated, Trained, Work
from fleetfold.agent.proximal import strength
from fleetfold.datasets import dirichlet

PIXELS, HIDDEN, CLASSES = 64, 64, 10
HELD_OUT = 359  # a fifth


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return (x[order] / 16).astype(np.float32), y[order]


def data(device: Device) -> tuple[np.ndarray, np.ndarray]:
    x, y = (column[HELD_OUT:] for column in scans())
    mine = dirichlet(y, device.count, alpha=0.5, seed=0, least=8)[device.index]
    return x[mine], y[mine]


def forward(model: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the hidden layer says [n, HIDDEN], and the probability of each digit [n, CLASSES]."""
    hidden = np.maximum(x @ model["hidden.weight"] + model["hidden.bias"], 0)
    scores = hidden @ model["output.weight"] + model["output.bias"]
    e = np.exp(scores - scores.max(1, keepdims=True))
    return hidden, e / e.sum(1, keepdims=True)


def gradient(model: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy, layer by layer from the output back."""
    hidden, output = forward(model, x)
    output[np.arange(len(y)), y] -= 1
    output /= len(y)
    back = output @ model["output.weight"].T * (hidden > 0)
    return {
        "hidden.weight": x.T @ back, "hidden.bias": back.sum(0),
        "output.weight": hidden.T @ output, "output.bias": output.sum(0),
    }  # fmt: skip


def score(model: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    _, p = forward(model, x)
    loss = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
    return {"loss": loss, "accuracy": (p.argmax(1) == y).mean()}


class Mlp:
    def check(self, settings: dict[str, object]) -> None:
        strength(settings)  # what is wrong with `proximal` is said before anything is trained

    def init(self, seed: int) -> dict[str, np.ndarray]:
        chance = np.random.default_rng(seed)
        return {
            "hidden.weight": chance.normal(0, 0.18, (PIXELS, HIDDEN)).astype(np.float32),  # sqrt(2 / 64), He
            "hidden.bias": np.zeros(HIDDEN, np.float32),
            "output.weight": chance.normal(0, 0.18, (HIDDEN, CLASSES)).astype(np.float32),
            "output.bias": np.zeros(CLASSES, np.float32),
        }

    def train(self, model: dict[str, np.ndarray], work: Work) -> Trained:
        x, y = data(work.device)
        rate, epochs = work.settings.get("learning_rate", 0.1), work.settings.get("epochs", 5)
        chance = np.random.default_rng(work.seed)
        pull, given = work.proximal, model
        model = {name: array.copy() for name, array in model.items()}
        speed = {name: np.zeros_like(array) for name, array in model.items()}
        for _ in range(epochs):
            for batch in np.array_split(chance.permutation(len(y)), -(-len(y) // 32)):
                for name, slope in gradient(model, x[batch], y[batch]).items():
                    if pull:  # FedProx: the gradient of pull / 2 · ‖model − given‖²
                        slope += pull * (model[name] - given[name])
                    speed[name] = 0.9 * speed[name] + slope
                    model[name] -= rate * speed[name]
        return Trained(tensors=model, examples=len(y), metrics=score(model, x, y))

    def evaluate(self, model: dict[str, np.ndarray], work: Work) -> Evaluated:
        x, y = data(work.device)
        return Evaluated(examples=len(y), metrics=score(model, x, y))

    def test(self, model: dict[str, np.ndarray]) -> dict[str, float]:
        x, y = scans()
        return score(model, x[:HELD_OUT], y[:HELD_OUT])


trainer = Mlp()
