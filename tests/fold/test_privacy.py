"""Privacy: one device moves a model by a clip at most, the noise is as stated, and the budget is kept."""

import sys
from math import erfc, inf, nan, sqrt

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fleetfold.coordinator.accountant import affordable, default_delta, sampling_rate, spent
from fleetfold.errors import BadConfig
from fleetfold.fold.privacy import (
    Privacy,
    below,
    count_deviation,
    deviation,
    effective_noise,
    factors,
    next_clip,
    noise,
)

POSITIVE = st.floats(1e-300, 1e300)
SHARES = st.floats(0.1, 0.9)


def fixed(noise_multiplier: float = 1.0, **more: object) -> Privacy:
    return Privacy(noise_multiplier=noise_multiplier, adaptive=False, **more)  # type: ignore[arg-type]


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64DXSM(seed))


# The clip.


@given(st.lists(st.floats(0, 1e300), min_size=1), POSITIVE)
def test_a_clipped_norm_never_exceeds_the_clip(norms: list[float], clip: float) -> None:
    shrunk = factors(np.array(norms), clip)
    assert (shrunk * np.array(norms) <= clip).all()
    assert ((shrunk >= 0) & (shrunk <= 1)).all()


@given(st.lists(st.floats(1e-100, 1e100), min_size=1), st.floats(1e-100, 1e100))
def test_a_delta_below_the_clip_is_left_as_it_is_and_one_above_reaches_it(
    norms: list[float], clip: float
) -> None:
    lengths = np.array(norms)
    shrunk = factors(lengths, clip)
    assert (shrunk[lengths <= clip] == 1).all()
    assert np.allclose((shrunk * lengths)[lengths > clip], clip, rtol=1e-12, atol=0)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-6, 1e12), st.integers(1, 8))
def test_whatever_one_device_sends_it_moves_the_sum_by_no_more_than_the_clip(
    seed: int, clip: float, size: float, others: int
) -> None:
    deltas = chance(seed).normal(size=(others + 1, 30))
    deltas[-1] *= size
    clipped = deltas * factors(np.linalg.norm(deltas, axis=1), clip)[:, None]
    assert np.linalg.norm(clipped.sum(0) - clipped[:-1].sum(0)) <= clip * (1 + 1e-12)


def test_a_delta_too_long_to_be_measured_counts_for_nothing_and_one_of_no_length_as_it_is() -> None:
    assert factors(np.array([inf, 0.0]), 2.0).tolist() == [0.0, 1.0]


def test_a_norm_that_is_no_number_is_not_hidden_by_the_clip() -> None:
    assert np.isnan(factors(np.array([nan]), 1.0)).all()
    assert below(np.array([nan, 0.5]), 1.0) == 1


def test_those_at_the_clip_are_counted_as_below_it() -> None:
    assert below(np.array([0.5, 1.0, np.nextafter(1.0, 2.0)]), 1.0) == 2


# The clip that follows the norms.


@given(SHARES, st.floats(-6, 6), st.floats(-4, 4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_an_adaptive_clip_comes_to_the_quantile_of_the_norms_and_stays_there(
    quantile: float, start: float, scale: float, seed: int
) -> None:
    told = Privacy(noise_multiplier=1.0, clip=10.0**start, target_quantile=quantile)
    clip, updates, draws, seen = told.clip, 400, chance(seed), []
    for _ in range(1200):
        norms = 10.0**scale * draws.lognormal(size=updates)
        seen.append(float((norms <= clip).mean()))
        count = below(norms, clip) + noise(1, count_deviation(told, updates), draws)[0]
        clip = next_clip(clip, count, updates, told)
    assert abs(np.mean(seen[-200:]) - quantile) < 0.02
    assert abs(np.array(seen[-200:]) - quantile).max() < 0.2


@given(POSITIVE, st.floats(0, 1), SHARES, st.floats(0.01, 1))
def test_the_clip_grows_when_too_few_lie_below_it_and_by_no_more_than_its_rate(
    clip: float, share: float, quantile: float, rate: float
) -> None:
    assume(1e-290 < clip < 1e290)
    told = Privacy(noise_multiplier=1.0, target_quantile=quantile, clip_rate=rate)
    after = next_clip(clip, share * 100, 100, told)
    assert (after >= clip) if share * 100 / 100 <= quantile else (after <= clip)
    assert np.exp(-rate) <= after / clip <= np.exp(rate)


def test_a_fixed_clip_stays_whatever_lies_below_it() -> None:
    assert next_clip(3.0, 0.0, 10, fixed()) == 3.0


# The noise.


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("std", [1e-6, 0.3, 40.0])
def test_noise_has_the_standard_deviation_asked_for_and_no_mean(seed: int, std: float) -> None:
    n = 200_000
    drawn = noise(n, std, chance(seed))
    assert abs(drawn.std() / std - 1) < 5 / sqrt(2 * n)  # five standard errors
    assert abs(drawn.mean() / std) < 5 / sqrt(n)


def test_noise_is_gaussian_out_to_where_it_is_rare() -> None:
    n = 2_000_000
    drawn = np.abs(noise(n, 1.0, chance()))
    for far in (0.5, 1.0, 2.0, 3.0, 4.0):
        expected = erfc(far / sqrt(2))
        assert abs((drawn > far).mean() - expected) < 5 * sqrt(expected / n)


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(0, 99))
def test_noise_drawn_chunk_after_chunk_is_the_noise_of_the_whole(lengths: list[int], seed: int) -> None:
    pieces = chance(seed)
    parts = [noise(length, 0.7, pieces) for length in lengths]
    assert np.concatenate([*parts, np.empty(0)]).tobytes() == noise(sum(lengths), 0.7, chance(seed)).tobytes()


@given(st.floats(0.1, 5), st.floats(1e-3, 1e3), st.integers(1, 10_000))
def test_the_noise_on_a_mean_is_the_multiplier_of_what_one_device_can_move_it(
    z: float, clip: float, updates: int
) -> None:
    assert deviation(fixed(z), clip, updates) == pytest.approx(z * clip / updates)


def test_a_mean_of_clipped_deltas_is_as_noisy_as_it_says() -> None:
    told, draws, updates = fixed(1.5, clip=2.0), chance(3), 10
    deltas = draws.normal(size=(updates, 50_000))
    mean = (factors(np.linalg.norm(deltas, axis=1), told.clip) @ deltas) / updates
    noised = mean + noise(mean.size, deviation(told, told.clip, updates), draws)
    assert (noised - mean).std() == pytest.approx(1.5 * 2.0 / 10, rel=5 / sqrt(2 * mean.size))


# What the count below the clip costs.


@given(st.floats(0.1, 4), st.integers(100, 100_000), st.none() | st.floats(3, 1000))
def test_deltas_and_count_together_tell_what_the_multiplier_says(
    z: float, updates: int, told: float | None
) -> None:
    both = Privacy(noise_multiplier=z, count_noise=told)
    deltas, count = effective_noise(both, updates), 2 * count_deviation(both, updates)
    assert deltas > z
    assert deltas**-2 + count**-2 == pytest.approx(z**-2)


def test_at_a_hundred_updates_the_count_is_nearly_free() -> None:
    assert effective_noise(Privacy(noise_multiplier=1.0), 100) == pytest.approx(1.005, abs=1e-4)


def test_without_an_adaptive_clip_there_is_no_count_to_pay_for() -> None:
    assert effective_noise(fixed(1.1), 3) == 1.1


@pytest.mark.parametrize("updates", [1, 9, 10])
def test_too_few_updates_to_hide_the_count_in_are_refused_with_what_to_do(updates: int) -> None:
    with pytest.raises(BadConfig, match=f"over {updates} updates") as refused:
        effective_noise(Privacy(noise_multiplier=1.0), updates)
    assert "a fixed clip" in refused.value.next


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0}, {"noise_multiplier": nan}, {"noise_multiplier": inf}, {"clip": -1.0},
        {"target_quantile": 1.0}, {"clip_rate": 0.0}, {"count_noise": 0.0}, {"epsilon": 0.0},
        {"delta": 1.0}, {"delta": 0.0},
    ],
)  # fmt: skip
def test_what_would_promise_nothing_is_refused_by_name_built_or_read(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(BadConfig, match=name):
        Privacy(**{"noise_multiplier": 1.0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match=name):
        msgspec.convert({"noise_multiplier": 1.0, **wrong}, Privacy)


# The accountant.


@pytest.fixture
def accounting() -> None:
    pytest.importorskip("dp_accounting")


ROUNDS, NOISES = st.integers(1, 2000), st.floats(0.3, 30)
law = settings(max_examples=40, deadline=None)


@pytest.mark.usefixtures("accounting")
@pytest.mark.parametrize("sampling", [1.0, 0.05])
@given(ROUNDS, ROUNDS, NOISES, NOISES)
@law
def test_epsilon_grows_with_rounds_and_falls_with_noise(
    sampling: float, some: int, more: int, little: float, much: float
) -> None:
    some, more = sorted((some, more))
    little, much = sorted((little, much))
    assert spent(fixed(little), some, 1000, sampling) <= spent(fixed(little), more, 1000, sampling)
    assert spent(fixed(much), more, 1000, sampling) <= spent(fixed(little), more, 1000, sampling)


@pytest.mark.usefixtures("accounting")
@given(ROUNDS, NOISES, st.floats(0.001, 1))
@law
def test_sampling_never_costs_more_than_asking_everybody(rounds: int, z: float, sampling: float) -> None:
    assert 0 <= spent(fixed(z), rounds, 1000, sampling) <= spent(fixed(z), rounds, 1000)


@pytest.mark.usefixtures("accounting")
@given(st.integers(1, 200), st.floats(0.5, 30), st.sampled_from([1e-3, 1e-6, 1e-9]))
@law
def test_without_sampling_epsilon_is_that_of_the_gaussian_mechanism(
    rounds: int, z: float, delta: float
) -> None:
    """Balle and Wang, 2018, Theorem 8, as dp-accounting's own test_delta_bounds_gaussian has it."""
    told = spent(fixed(z, delta=delta), rounds, 1000)
    mu = sqrt(rounds) / z
    assume(0.01 < told < 100)  # where this plain formula keeps its digits
    tail = erfc((told / mu - mu / 2) / sqrt(2)) / 2 - np.exp(told) * erfc((told / mu + mu / 2) / sqrt(2)) / 2
    assert tail == pytest.approx(delta, rel=1e-3)


@pytest.mark.usefixtures("accounting")
def test_one_round_costs_no_more_than_the_bound_that_dp_accounting_publishes() -> None:
    """test_compute_epsilon_delta_gaussian there: noise 4.530877117 is (1, 1e-6) by the Rényi bound."""
    assert 0.9 < spent(fixed(4.530877117, delta=1e-6), 1, 1000) < 1


@pytest.mark.usefixtures("accounting")
@pytest.mark.parametrize(
    ("whole", "batch", "z", "epochs", "delta", "published"),
    [
        (60_000, 150, 1.3, 15, 1e-5, 0.7242234026109595),
        (100_000, 100, 1.0, 30, 1e-7, 1.4154988495444845),
    ],
)
def test_with_sampling_epsilon_is_what_tensorflow_privacy_publishes(
    whole: int, batch: int, z: float, epochs: int, delta: float, published: float
) -> None:
    """Test0 and Test1 of its compute_dp_sgd_privacy_test, which accounts Poisson sampling alike."""
    rounds = epochs * whole // batch
    assert spent(fixed(z, delta=delta), rounds, whole, batch / whole) == pytest.approx(published, rel=1e-6)


@pytest.mark.usefixtures("accounting")
def test_an_adaptive_clip_costs_what_a_fixed_one_does() -> None:
    dp = pytest.importorskip("dp_accounting")
    told = Privacy(noise_multiplier=1.2)
    parts = [effective_noise(told, 200), 2 * count_deviation(told, 200)]
    round = dp.ComposedDpEvent([dp.GaussianDpEvent(z) for z in parts])
    whole = dp.rdp.RdpAccountant().compose(dp.GaussianDpEvent(1.2), 30).get_epsilon(1e-5)
    assert dp.rdp.RdpAccountant().compose(round, 30).get_epsilon(1e-5) == pytest.approx(whole)
    assert spent(told, 30, 1000) == spent(fixed(1.2), 30, 1000) > 0


@pytest.mark.usefixtures("accounting")
@given(st.floats(0.5, 20), st.floats(0.5, 20), st.sampled_from([1.0, 0.1]))
@settings(max_examples=20, deadline=None)
def test_a_budget_stops_before_the_round_that_would_exceed_it(
    z: float, budget: float, sampling: float
) -> None:
    told = fixed(z, epsilon=budget)
    rounds = 0
    while rounds < 20 and affordable(told, rounds, 1000, sampling):
        rounds += 1
    assert spent(told, rounds, 1000, sampling) <= budget
    assert rounds == 20 or spent(told, rounds + 1, 1000, sampling) > budget


@pytest.mark.usefixtures("accounting")
def test_no_round_costs_nothing() -> None:
    assert spent(fixed(0.01), 0, 1000) == 0


@pytest.mark.usefixtures("accounting")
def test_delta_is_the_fleets_own_unless_told() -> None:
    assert spent(fixed(), 5, 500) == spent(fixed(delta=default_delta(500)), 5, 7)
    assert spent(fixed(delta=1e-9), 5, 500) > spent(fixed(), 5, 500)


@pytest.mark.parametrize("sampling", [0.0, -0.1, 1.01, nan])
def test_a_sampling_that_is_no_share_is_refused(sampling: float) -> None:
    with pytest.raises(BadConfig, match="sampling"):
        spent(fixed(), 5, 500, sampling)


def test_without_the_library_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(BadConfig, match="dp-accounting") as missing:
        affordable(fixed(epsilon=1.0), 0, 1000)
    assert missing.value.next == "pip install 'fleetfold[dp]'"


def test_without_a_budget_every_round_is_affordable_and_no_library_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert affordable(fixed(0.01), 10_000, 1000)


def test_delta_is_less_than_one_device_in_the_fleet() -> None:
    assert default_delta(100) == pytest.approx(0.00631, abs=1e-5)
    assert all(default_delta(n) < 1 / n for n in (2, 10, 1000))


def test_a_fleet_of_one_hides_nobody() -> None:
    with pytest.raises(BadConfig, match="hides nobody"):
        default_delta(1)


def test_a_cohort_is_accounted_as_the_whole_fleet_unless_chance_chose_it_and_the_user_asks() -> None:
    assert sampling_rate("random", 10, 1000, asked=False) == 1
    assert sampling_rate("turnaround", 10, 1000, asked=False) == 1
    assert sampling_rate("random", 10, 1000, asked=True) == 0.01
    with pytest.raises(BadConfig, match="turnaround"):
        sampling_rate("turnaround", 10, 1000, asked=True)
    with pytest.raises(BadConfig, match="0 invited"):
        sampling_rate("random", 0, 1000, asked=True)
