"""Server optimizers: the way from a model to its updates' mean is a gradient, to be followed with memory.

    model ─┐
    mean  ─┼─ step ─▶ next model           delta = mean - model
    state ─┘      └─▶ next state           beside the model, one tensor of its size for each name

Each coordinate alone, in 64 bits, rounded once: no cut of the model changes a byte. Reddi et al., "Adaptive
Federated Optimization", 2021, as Flower 1.41 computes it; where that departs from the paper, it says so.
"""

from math import inf, sqrt
from typing import Any, ClassVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.errors import BadConfig

Array = NDArray[Any]
Floats = NDArray[np.float64]
State = tuple[Array, ...]
"""One chunk [elements] of each state tensor, in the order of the optimizer's `state`."""


class Momentum(Struct, frozen=True, kw_only=True):
    """FedAvgM. m ← momentum · m + delta, model ← model + rate · m. Raises BadConfig out of range.

    Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019. Flower's default is momentum 0, which is no momentum; with 0 and rate 1 the next
    model is the mean itself.
    """

    rate: float = 1.0
    momentum: float = 0.9
    state: ClassVar[tuple[str, ...]] = ("m",)

    def __post_init__(self) -> None:
        _check(self)


class Adagrad(Struct, frozen=True, kw_only=True):
    """FedAdagrad. v ← v + delta², model ← model + rate · delta / (√v + tau). Raises BadConfig out of range.

    Of the paper's Algorithm 2 with β1 = 0; v starts at 0 as Flower's does, not at tau² or more.
    """

    rate: float = 0.1
    tau: float = 1e-3
    state: ClassVar[tuple[str, ...]] = ("v",)

    def __post_init__(self) -> None:
        _check(self)


class Adam(Struct, frozen=True, kw_only=True):
    """FedAdam. m ← β1 · m + (1 - β1) · delta, v ← β2 · v + (1 - β2) · delta²,
    model ← model + rate · √(1 - β2^(round + 1)) / (1 - β1^(round + 1)) · m / (√v + tau).

    The paper corrects no bias. Flower does, as Kingma and Ba, 2014, but one step ahead: its first round has
    the exponent 2. m and v start at 0. Raises BadConfig out of range.
    """

    rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    state: ClassVar[tuple[str, ...]] = ("m", "v")

    def __post_init__(self) -> None:
        _check(self)


class Yogi(Struct, frozen=True, kw_only=True):
    """FedYogi. m as Adam's, v ← v - (1 - β2) · delta² · sign(v - delta²),
    model ← model + rate · m / (√v + tau). No bias is corrected, in the paper nor in Flower.

    m and v start at 0, in the paper v at tau² or more. Raises BadConfig out of range.
    """

    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    state: ClassVar[tuple[str, ...]] = ("m", "v")

    def __post_init__(self) -> None:
        _check(self)


Optimizer = Momentum | Adagrad | Adam | Yogi

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "momentum": Momentum,
    "adagrad": Adagrad,
    "adam": Adam,
    "yogi": Yogi,
}
"""Optimizers by the setting's word."""


def first_state(optimizer: Optimizer, model: Array) -> State:
    """The state before the first step for a chunk [elements] of the model: zeros, in float32 for models of
    at most 32 bits, else in float64."""
    dtype = np.float64 if model.dtype.itemsize > 4 else np.float32
    return tuple(np.zeros(model.shape, dtype) for _ in optimizer.state)


def step(optimizer: Optimizer, model: Array, mean: Array, state: State, round: int) -> tuple[Array, State]:
    """The next model and state, from chunks [elements] of the model that the updates' deltas are from, of
    their mean (any float dtype: one that was not rounded yet is welcome) and of the state.

    round: the run's, from 1; only Adam looks at it. The results have the dtypes of `model` and `state`;
    what these cannot hold becomes their largest value, so that a state stays finite. Nothing given is
    changed. Formulas: see the optimizer.
    """
    before = model.astype(np.float64)
    with np.errstate(over="ignore"):
        delta = np.subtract(mean, before)
        move, after = _move(optimizer, delta, [s.astype(np.float64) for s in state], round)
        before += move
    return _stored(before, model.dtype), tuple(
        _stored(new, old.dtype) for new, old in zip(after, state, strict=True)
    )


def _move(
    optimizer: Optimizer, delta: Floats, state: list[Floats], round: int
) -> tuple[Floats, list[Floats]]:
    """(what is added to the model, the next state), all float64."""
    match optimizer:
        case Momentum(rate=rate, momentum=momentum):
            (m,) = state
            m = momentum * m + delta
            return rate * m, [m]
        case Adagrad(rate=rate, tau=tau):
            (v,) = state
            v = v + delta * delta
            return rate * delta / (np.sqrt(v) + tau), [v]
        case Adam(rate=rate, beta1=beta1, beta2=beta2, tau=tau):
            m, v = state
            m = beta1 * m + (1 - beta1) * delta
            v = beta2 * v + (1 - beta2) * (delta * delta)
            rate = rate * sqrt(1 - beta2 ** (round + 1)) / (1 - beta1 ** (round + 1))
            return rate * m / (np.sqrt(v) + tau), [m, v]
        case Yogi(rate=rate, beta1=beta1, beta2=beta2, tau=tau):
            m, v = state
            square = delta * delta
            m = beta1 * m + (1 - beta1) * delta
            v = v - (1 - beta2) * square * np.sign(v - square)
            return rate * m / (np.sqrt(v) + tau), [m, v]


def _stored(values: Floats, dtype: np.dtype[Any]) -> Array:
    largest = np.finfo(dtype).max
    return np.clip(values, -largest, largest, out=values).astype(dtype)


def _check(settings: Optimizer) -> None:
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        decays = name in ("momentum", "beta1", "beta2")
        if not (0 <= value < 1 if decays else 0 < value < inf):
            room = "from 0 to below 1" if decays else "above 0"
            raise BadConfig(f"{type(settings).__name__.lower()}: {name} = {value} is not {room}")
