"""Handwritten digits over ten devices: 1,797 real 8x8 scans (scikit-learn's), a fifth held out.

The rest is split by Dirichlet(0.5) over the labels: each device sees its own mix of digits, and none
sees all. Run it: fleetfold run examples/digits
"""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fleetfold import Device, TorchTrainer, Work
from fleetfold.datasets import dirichlet


@cache
def scans() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]


HELD_OUT = 359  # a fifth


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def data(device: Device) -> TensorDataset:
    x, y = (t[HELD_OUT:] for t in scans())
    mine = dirichlet(y.numpy(), device.count, alpha=0.5, seed=0, least=8)[device.index]
    return TensorDataset(x[mine], y[mine])


def fit(model: torch.nn.Module, data: TensorDataset, work: Work) -> dict[str, float]:
    rate, epochs = work.settings.get("learning_rate", 0.1), work.settings.get("epochs", 5)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return {"examples": len(data), "loss": loss.item()}


def evaluate(model: torch.nn.Module, data: TensorDataset) -> dict[str, float]:
    x, y = data.tensors
    scores = model(x)
    accuracy = (scores.argmax(1) == y).float().mean()
    return {"loss": F.cross_entropy(scores, y).item(), "accuracy": accuracy.item()}


def test() -> TensorDataset:
    x, y = scans()
    return TensorDataset(x[:HELD_OUT], y[:HELD_OUT])


trainer = TorchTrainer(model, data, fit, evaluate, test)
