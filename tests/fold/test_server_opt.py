"""Server optimizers: the formulas of the paper as Flower has them, each coordinate alone."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfold.errors import BadConfig
from fleetfold.fold.server_opt import OPTIMIZERS, Adagrad, Adam, Momentum, Optimizer, Yogi, first_state, step

Array = NDArray[Any]

EVERY = [
    Momentum(),
    Momentum(rate=0.5, momentum=0.0),
    Adagrad(),
    Adam(),
    Adam(rate=0.03, beta1=0.0, beta2=0.5, tau=1e-8),
    Yogi(),
]


def normal(elements: int, seed: int, dtype: type = np.float32) -> Array:
    return np.random.default_rng(seed).normal(size=elements).astype(dtype)


def trained(optimizer: Optimizer, model: Array, means: list[Array]) -> tuple[Array, tuple[Array, ...]]:
    state = first_state(optimizer, model)
    for number, mean in enumerate(means, start=1):
        model, state = step(optimizer, model, mean, state, number)
    return model, state


def momentum(o: Momentum, x: float, delta: float, m: float, v: float, t: int) -> tuple[float, float, float]:
    m = o.momentum * m + delta
    return x + o.rate * m, m, v


def adagrad(o: Adagrad, x: float, delta: float, m: float, v: float, t: int) -> tuple[float, float, float]:
    v += delta**2
    return x + o.rate * delta / (v**0.5 + o.tau), m, v


def adam(o: Adam, x: float, delta: float, m: float, v: float, t: int) -> tuple[float, float, float]:
    m += (1 - o.beta1) * (delta - m)
    v += (1 - o.beta2) * (delta**2 - v)
    rate = o.rate * (1 - o.beta2 ** (t + 1)) ** 0.5 / (1 - o.beta1 ** (t + 1))
    return x + rate * m / (v**0.5 + o.tau), m, v


def yogi(o: Yogi, x: float, delta: float, m: float, v: float, t: int) -> tuple[float, float, float]:
    m += (1 - o.beta1) * (delta - m)
    if v > delta**2:
        v -= (1 - o.beta2) * delta**2
    elif v < delta**2:
        v += (1 - o.beta2) * delta**2
    return x + o.rate * m / (v**0.5 + o.tau), m, v


FORMULAS: dict[type, Callable[..., tuple[float, float, float]]] = {
    Momentum: momentum, Adagrad: adagrad, Adam: adam, Yogi: yogi,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", EVERY)
@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=6))
@settings(max_examples=60)
def test_a_step_is_the_formula_coordinate_by_coordinate(optimizer: Optimizer, path: list[float]) -> None:
    x, m, v = path[0], 0.0, 0.0
    for t, mean in enumerate(path[1:], start=1):
        x, m, v = FORMULAS[type(optimizer)](optimizer, x, mean - x, m, v, t)
    model, state = trained(optimizer, np.array(path[:1]), [np.array([mean]) for mean in path[1:]])
    expected = {"m": m, "v": v}
    assert np.isclose(model[0], x, rtol=1e-9, atol=1e-9)
    for name, tensor in zip(optimizer.state, state, strict=True):
        assert np.isclose(tensor[0], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(ends=st.sets(st.integers(1, 99), max_size=5))
@settings(max_examples=15)
def test_no_cut_of_the_model_changes_a_byte(optimizer: Optimizer, dtype: type, ends: set[int]) -> None:
    model, means = normal(100, 0, dtype), [normal(100, s, dtype) for s in (1, 2, 3)]
    whole, state = trained(optimizer, model, means)
    bounds = [0, *sorted(ends), 100]
    parts = [trained(optimizer, model[a:b], [mean[a:b] for mean in means]) for a, b in pairwise(bounds)]
    assert b"".join(part.tobytes() for part, _ in parts) == whole.tobytes()
    for i, tensor in enumerate(state):
        assert b"".join(pieces[i].tobytes() for _, pieces in parts) == tensor.tobytes()


@pytest.mark.parametrize("optimizer", EVERY)
def test_where_the_mean_is_the_model_nothing_begins_to_move(optimizer: Optimizer) -> None:
    model = normal(50, 0)
    after, state = trained(optimizer, model, [model, model])
    assert after.tobytes() == model.tobytes()
    assert all((tensor == 0).all() for tensor in state)


def test_a_zero_delta_changes_no_memory_of_squares_that_does_not_decay() -> None:
    for optimizer in (Adagrad(), Yogi(beta1=0.0)):
        model, state = trained(optimizer, normal(50, 0), [normal(50, 1)])
        after, next_state = step(optimizer, model, model, state, 2)
        assert after.tobytes() == model.tobytes()
        assert next_state[-1].tobytes() == state[-1].tobytes()


def test_without_memory_and_at_full_rate_the_next_model_is_the_mean() -> None:
    model, mean = normal(50, 0), normal(50, 1)
    assert np.allclose(trained(Momentum(momentum=0.0), model, [mean])[0], mean, rtol=0, atol=1e-7)


def test_only_adam_looks_at_the_round() -> None:
    model, mean = normal(50, 0), normal(50, 1)
    for optimizer in EVERY:
        state = first_state(optimizer, model)
        one, nine = (step(optimizer, model, mean, state, n)[0].tobytes() for n in (1, 9))
        assert (one != nine) == isinstance(optimizer, Adam)


@pytest.mark.parametrize("optimizer", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_model_and_state_keep_their_dtypes_and_what_is_given_is_not_changed(
    optimizer: Optimizer, dtype: type
) -> None:
    model, mean = normal(20, 0, dtype), normal(20, 1, np.float64)
    state = first_state(optimizer, model)
    given = [a.tobytes() for a in (model, mean, *state)]
    after, next_state = step(optimizer, model, mean, state, 1)
    assert [a.tobytes() for a in (model, mean, *state)] == given
    assert after.dtype == dtype
    assert len(next_state) == len(optimizer.state)
    assert {s.dtype for s in next_state} == {np.dtype(np.float64 if dtype is np.float64 else np.float32)}


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_mean_that_an_attacker_threw_far_away_leaves_a_finite_state(optimizer: Optimizer) -> None:
    far = np.full(4, 3e38, np.float32)
    model, state = trained(optimizer, normal(4, 0), [far, -far, far])
    assert all(np.isfinite(a).all() for a in (model, *state))


@pytest.mark.parametrize(
    ("word", "settings"),
    [
        ("momentum", {"momentum": 1.0}),
        ("momentum", {"rate": 0.0}),
        ("adagrad", {"tau": 0.0}),
        ("adam", {"beta1": -0.1}),
        ("adam", {"beta2": 1.0}),
        ("yogi", {"rate": float("inf")}),
        ("yogi", {"tau": float("nan")}),
    ],
)
def test_a_setting_out_of_range_is_named(word: str, settings: dict[str, float]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(BadConfig, match=f"{word}: {name} = {value} is not"):
        OPTIMIZERS[word](**settings)
