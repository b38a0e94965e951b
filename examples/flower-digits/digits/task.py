"""Digits and a softmax regression."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits


@cache
def examples():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float32), y[order]


def share(partition, partitions):
    """One device's: (x, y) to train with, (x, y) to evaluate with."""
    x, y = (part[partition::partitions] for part in examples())
    end = int(0.8 * len(x))
    return (x[:end], y[:end]), (x[end:], y[end:])


def first_model():
    return [np.zeros((64, 10), np.float32), np.zeros(10, np.float32)]


def chances(model, x):
    scores = x @ model[0] + model[1]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def loss(model, x, y):
    return float(-np.log(chances(model, x)[np.arange(len(y)), y] + 1e-9).mean())


def accuracy(model, x, y):
    return float((chances(model, x).argmax(axis=1) == y).mean())


def train(model, x, y, epochs, rate):
    weights, bias = (array.copy() for array in model)
    for _ in range(epochs):
        error = (chances([weights, bias], x) - np.eye(10, dtype=np.float32)[y]) / len(y)
        weights -= np.float32(rate) * (x.T @ error).astype(np.float32)
        bias -= np.float32(rate) * error.sum(axis=0).astype(np.float32)
    return [weights, bias]
