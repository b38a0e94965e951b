"""MNIST over ten devices: a net of three layers, 109,386 parameters, and the images dealt out evenly.

The four idx files, as they come or gzipped, lie in the folder that MNIST_DIR names (without it: ./mnist).
Run it: MNIST_DIR=~/mnist fleetfold run examples/mnist
Or unevenly, each device with a file of its own:
    fleetfold split ~/mnist --out shares --by dirichlet:0.5 --devices 10
    MNIST_DIR=~/mnist fleetfold run examples/mnist --data shares --devices 10
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fleetfold import Device, TorchTrainer, Work
from fleetfold.datasets import iid
from fleetfold.datasets.files import load, mnist
from fleetfold.errors import BadConfig

FOLDER = Path(os.environ.get("MNIST_DIR") or "mnist").expanduser().absolute()
Examples = tuple[torch.Tensor, torch.Tensor]


@cache
def images(part: str) -> dict[str, np.ndarray]:
    try:
        return mnist(FOLDER, part)
    except BadConfig as error:
        raise BadConfig(
            f"{error.sentence} (MNIST_DIR names the folder)",
            next="MNIST_DIR=FOLDER fleetfold run examples/mnist, with the four idx files of MNIST in FOLDER",
        ) from None


def model() -> nn.Module:
    images("train"), images("t10k")  # what is missing is said here, before anything is trained
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128), nn.ReLU(),
        nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def data(device: Device) -> Examples:
    if device.data:
        return tensors(load(device.data))
    train = images("train")
    mine = iid(len(train["y"]), device.count, seed=0)[device.index]
    return tensors({name: column[mine] for name, column in train.items()})


def tensors(columns: dict[str, np.ndarray]) -> Examples:
    x = torch.tensor(columns["x"], dtype=torch.float32) / 255
    return (x - 0.1307) / 0.3081, torch.tensor(columns["y"], dtype=torch.int64)  # MNIST's mean and deviation


def fit(model: nn.Module, data: Examples, work: Work) -> dict[str, float]:
    told = work.settings
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), told["learning_rate"], told["momentum"])
    for _ in range(told["epochs"]):
        for batch in torch.randperm(len(y)).split(told["batch"]):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    return {"examples": len(y), "loss": loss.item()}


def evaluate(model: nn.Module, data: Examples) -> dict[str, float]:
    x, y = data
    scores = model(x)
    accuracy = (scores.argmax(1) == y).float().mean()
    return {"loss": F.cross_entropy(scores, y).item(), "accuracy": accuracy.item()}


def test() -> Examples:
    return tensors(images("t10k"))


trainer = TorchTrainer(model, data, fit, evaluate, test)
