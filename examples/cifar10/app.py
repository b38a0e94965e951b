"""CIFAR-10 over ten devices: the small LeNet of PyTorch's own tutorial, and the images dealt out evenly.

The python version's batches lie in the folder that CIFAR10_DIR names (without it: ./cifar-10-batches-py).
Run it: CIFAR10_DIR=~/cifar-10-batches-py fleetfold run examples/cifar10
Or unevenly, each device with a file of its own:
    fleetfold split ~/cifar-10-batches-py --out shares --by shards:2 --devices 10
    CIFAR10_DIR=~/cifar-10-batches-py fleetfold run examples/cifar10 --data shares --devices 10
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
from fleetfold.datasets.files import cifar10, load
from fleetfold.errors import BadConfig

FOLDER = Path(os.environ.get("CIFAR10_DIR") or "cifar-10-batches-py").expanduser().absolute()
Examples = tuple[torch.Tensor, torch.Tensor]


@cache
def images(part: str) -> dict[str, np.ndarray]:
    try:
        return cifar10(FOLDER, part)
    except BadConfig as error:
        raise BadConfig(
            f"{error.sentence} (CIFAR10_DIR names the folder)",
            next="CIFAR10_DIR=FOLDER fleetfold run examples/cifar10, with the six python batches in FOLDER",
        ) from None


def model() -> nn.Module:
    images("train"), images("test")  # what is missing is said here, before anything is trained
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),  # 32x32 → 14x14
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),  # → 5x5
        nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


def data(device: Device) -> Examples:
    if device.data:
        return tensors(load(device.data))
    train = images("train")
    mine = iid(len(train["y"]), device.count, seed=0)[device.index]
    return tensors({name: column[mine] for name, column in train.items()})


def tensors(columns: dict[str, np.ndarray]) -> Examples:
    x = torch.tensor(columns["x"], dtype=torch.float32) / 127.5 - 1  # from -1 to 1
    return x, torch.tensor(columns["y"], dtype=torch.int64)


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
    scores = torch.cat([model(some) for some in x.split(1000)])  # a bounded number of feature maps at once
    accuracy = (scores.argmax(1) == y).float().mean()
    return {"loss": F.cross_entropy(scores, y).item(), "accuracy": accuracy.item()}


def test() -> Examples:
    return tensors(images("test"))


trainer = TorchTrainer(model, data, fit, evaluate, test)
