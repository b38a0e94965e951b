"""What is learned: scikit-learn's 1797 digits, by a small network in numpy or by trees.

Nothing here draws a number that is not seeded, and what a device does follows from its partition or from
the round, never from its node id: whoever runs the app comes to the same arrays.
"""

from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

SIZES = (64, 32, 10)
HELD = 360
"""Digits that no device has."""
EPOCHS, RATE = 5, 0.5


@cache
def digits():
    """(x [n, 64] in 0…1, y [n]), shuffled; from scikit-learn's file, since importing it takes seconds."""
    folder = Path(find_spec("sklearn").origin).parent
    table = np.loadtxt(folder / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64)


def share(partition, partitions):
    """The digits of one device; their numbers differ, so that weights matter."""
    x, y = digits()
    ends = np.cumsum(np.arange(partitions) + partitions) / np.sum(np.arange(partitions) + partitions)
    ends = [0, *(ends * (len(x) - HELD)).astype(int)]
    here = slice(HELD + ends[partition], HELD + ends[partition + 1])
    return x[here], y[here]


def held_out():
    x, y = digits()
    return x[:HELD], y[:HELD]


def first_model(seed):
    """[weights, bias, weights, bias] in float32."""
    chance = np.random.default_rng(seed)
    arrays = []
    for ins, outs in pairwise(SIZES):
        arrays.append((chance.normal(size=(ins, outs)) / np.sqrt(ins)).astype(np.float32))
        arrays.append(np.zeros(outs, np.float32))
    return arrays


def forward(arrays, x):
    hidden = np.maximum(x @ arrays[0] + arrays[1], 0)
    scores = hidden @ arrays[2] + arrays[3]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def losses(arrays, x, y):
    """(mean cross entropy, accuracy)."""
    chances = forward(arrays, x)[1]
    loss = -np.log(chances[np.arange(len(y)), y] + 1e-9).mean()
    return float(loss), float((chances.argmax(axis=1) == y).mean())


def train(arrays, x, y, mu=0.0):
    """(arrays, mean loss) after some epochs of gradient descent on all of x; mu as FedProx has it."""
    start, now, seen = arrays, [array.copy() for array in arrays], []
    truth = np.eye(10, dtype=np.float32)[y]
    for _ in range(EPOCHS):
        seen.append(losses(now, x, y)[0])
        hidden, chances = forward(now, x)
        error = (chances - truth) / np.float32(len(x))
        back = (error @ now[2].T) * (hidden > 0)
        slopes = [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        for array, slope, first in zip(now, slopes, start, strict=True):
            array -= np.float32(RATE) * (slope + np.float32(mu) * (array - first))
    return now, float(np.mean(seen))


PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "base_score": 0.5, "nthread": 1}
"""Whether a digit is odd: Flower's bagging takes one tree of each device and round."""


def grow(model, x, y, only_new):
    """An xgboost model as JSON bytes, one tree further; b"" is none. `only_new`: that tree alone."""
    import xgboost

    data = xgboost.DMatrix(x, label=y % 2)
    if not model:
        return bytes(xgboost.train(PARAMS, data, num_boost_round=1).save_raw("json"))
    trees = xgboost.Booster(params=PARAMS)
    trees.load_model(bytearray(model))
    trees.update(data, trees.num_boosted_rounds())
    end = trees.num_boosted_rounds()
    return bytes((trees[end - 1 : end] if only_new else trees).save_raw("json"))


def predictions(model, x):
    """[n] chances of being odd, as trees see it."""
    import xgboost

    trees = xgboost.Booster(params=PARAMS)
    trees.load_model(bytearray(model))
    return trees.predict(xgboost.DMatrix(x))
