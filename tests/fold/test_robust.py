"""Robust folds: a minority cannot carry them off, and neither order nor cutting changes a byte."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fleetfold.errors import BadConfig
from fleetfold.fold import robust
from fleetfold.fold.privacy import factors
from fleetfold.fold.recipe import ChunkFold
from fleetfold.fold.robust import (
    NETWORK_MOST,
    ROBUST,
    SELECTIONS,
    distances,
    krum,
    krum_quorum,
    krum_scores,
    median,
    multi_krum,
    norms_squared,
    rounded,
    trimmed_mean,
)

Array = NDArray[Any]

FLOATS = (np.float16, np.float32, np.float64)
FOLDS = [median, trimmed_mean(0.0), trimmed_mean(0.2), trimmed_mean(0.45)]


def normal(n: int, elements: int, seed: int = 0, dtype: type = np.float32) -> Array:
    return np.random.default_rng(seed).normal(size=(n, elements)).astype(dtype)


def shares(n: int) -> NDArray[np.float64]:
    return np.full(n, 1 / n)


def blocks(most: int = 12, wide: int = 9) -> st.SearchStrategy[Array]:
    """[n, elements] of any finite floats: subnormal, signed zeros, the largest."""
    return st.sampled_from(FLOATS).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            st.tuples(st.integers(1, most), st.integers(1, wide)),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    )


def measured(block: Array) -> NDArray[np.float64]:
    return rounded(distances(block))


# median and trimmed mean


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [*range(1, 70), NETWORK_MOST, NETWORK_MOST + 1, NETWORK_MOST + 44])
def test_the_median_is_numpys_and_the_trimmed_mean_that_of_the_definition(n: int, dtype: type) -> None:
    block, tiny = normal(n, 33, n, dtype), float(np.finfo(dtype).smallest_subnormal)
    assert (median(block, shares(n)) == np.median(block, axis=0)).all()
    for cut in (0.0, 0.1, 0.2, 0.33, 0.49):
        drop = int(np.floor(cut * n))
        rest = np.sort(block, axis=0)[drop : n - drop].astype(np.float64)
        result = trimmed_mean(cut)(block, shares(n))
        assert result.dtype == dtype
        assert np.allclose(result, rest.mean(axis=0), rtol=np.finfo(dtype).eps, atol=1e-15 + tiny)


@pytest.mark.parametrize("fold", FOLDS)
@given(block=blocks(), order=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_the_updates_changes_no_byte(fold: ChunkFold, block: Array, order: Any) -> None:
    turned = list(range(len(block)))
    order.shuffle(turned)
    result = fold(block, shares(len(block)))
    assert fold(block[turned], shares(len(block))).tobytes() == result.tobytes()


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("n", [5, 20, NETWORK_MOST + 1])
def test_no_cut_of_the_block_changes_a_byte(fold: ChunkFold, n: int) -> None:
    block = normal(n, 700, 1)
    block[:, ::7] = 0.0
    block[::2, ::7] = -0.0
    whole = fold(block, shares(n)).tobytes()
    for width in (1, 3, 64, 699, 700):
        parts = [fold(block[:, i : i + width], shares(n)) for i in range(0, 700, width)]
        assert b"".join(p.tobytes() for p in parts) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "TILE", 37)
        assert fold(block, shares(n)).tobytes() == whole


@pytest.mark.parametrize("n", [2, 9, 40])
def test_the_network_and_the_sort_give_the_same_bytes(n: int) -> None:
    block = np.round(normal(n, 500, 2), 1)  # many equal values, and zeros of both signs
    for fold in FOLDS:
        by_network = fold(block, shares(n)).tobytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(robust, "NETWORK_MOST", 0)
            assert fold(block, shares(n)).tobytes() == by_network


@given(blocks(most=15), st.data())
def test_a_minority_of_arbitrary_values_cannot_leave_the_honest_range(
    block: Array, data: st.DataObject
) -> None:
    n = len(block)
    liars = data.draw(st.integers(0, (n - 1) // 2))
    honest = np.sort(block[liars:], axis=0)
    cut = data.draw(st.floats(min(liars / n + 1e-9, 0.49), 0.49)) if liars else 0.0
    folds = [median] + ([trimmed_mean(cut)] if int(cut * n) >= liars else [])
    for fold in folds:
        result = fold(block, shares(n))
        assert (honest[0] <= result).all()
        assert (result <= honest[-1]).all()


def test_rounding_does_not_leave_the_honest_range_either() -> None:
    largest, smallest = np.finfo(np.float64).max, np.finfo(np.float64).smallest_subnormal
    for value in (0.1, -0.1, largest, -largest, smallest, 0.0):  # 0.1 + 0.1 + 0.1 is more than 0.3
        for n in (2, 3, 7):
            for fold in FOLDS:
                assert (fold(np.full((n, 4), value), shares(n)) == value).all()


def test_shares_are_ignored_so_that_no_device_can_claim_weight() -> None:
    block, claimed = normal(5, 40), np.array([0.96, 0.01, 0.01, 0.01, 0.01])
    for fold in FOLDS:
        assert fold(block, claimed).tobytes() == fold(block, shares(5)).tobytes()


def test_what_is_given_is_not_changed() -> None:
    block = normal(6, 50)
    before = block.tobytes()
    for fold in FOLDS:
        fold(block, shares(6))
    distances(block)
    norms_squared(block)
    assert block.tobytes() == before


@pytest.mark.parametrize("cut", [-0.1, 0.5, 1.0, float("nan")])
def test_a_cut_that_leaves_nothing_is_refused(cut: float) -> None:
    with pytest.raises(BadConfig, match="cut = "):
        trimmed_mean(cut)


def test_a_fold_is_found_by_the_word_of_the_setting() -> None:
    block = normal(10, 20)
    assert (ROBUST["median"](0.3)(block, shares(10)) == median(block, shares(10))).all()
    assert (ROBUST["trimmed_mean"](0.3)(block, shares(10)) == trimmed_mean(0.3)(block, shares(10))).all()
    assert SELECTIONS["krum"](measured(block), 2, 3) == (krum(measured(block), 2)[0],)
    assert len(SELECTIONS["multi_krum"](measured(block), 2, 3)) == 3


# Krum


@pytest.mark.parametrize("dtype", FLOATS)
def test_distances_are_those_of_the_definition(dtype: type) -> None:
    block = normal(19, 300, 3, dtype)
    wide = block.astype(np.float64)
    expected = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    assert np.allclose(measured(block), expected, rtol=1e-13)
    assert np.allclose(rounded(norms_squared(block)), (wide**2).sum(axis=1), rtol=1e-13)


@pytest.mark.parametrize("measure", [distances, norms_squared])
@given(cuts=st.sets(st.integers(1, 12)), order=st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_cells_add_up_to_the_same_bytes_in_any_shards_and_any_order(
    measure: Any, cuts: set[int], order: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "CELL", 40)
        block = normal(11, 40 * 13 + 7, 4) * np.float32(10.0) ** np.arange(11)[:, None]
        whole = measure(block)
        ends = [0, *(40 * c for c in sorted(cuts)), block.shape[1]]
        parts = [measure(block[:, a:b]) for a, b in itertools.pairwise(ends)]
        order.shuffle(parts)
        total = sum(parts[1:], parts[0])
        assert (total == whole).all()
        assert rounded(total).tobytes() == rounded(whole).tobytes()


@given(blocks(most=20), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_a_distance_is_that_of_its_two_updates_whoever_else_is_there(block: Array, order: Any) -> None:
    turned = list(range(len(block)))
    order.shuffle(turned)
    table = measured(block)
    assert np.isfinite(table).all()
    assert (table == table.T).all()
    assert (np.diag(table) == 0).all()
    assert measured(block[turned]).tobytes() == table[turned][:, turned].tobytes()


def test_equal_updates_are_no_distance_apart_and_close_ones_do_not_cancel() -> None:
    block = np.full((3, 1000), 1000.0, np.float32)
    block[2] = np.nextafter(np.float32(1000), np.float32(2000))
    step = float(block[2, 0]) - 1000.0
    table = measured(block)
    assert table[0, 1] == 0
    assert np.isclose(table[0, 2], 1000 * step**2, rtol=1e-12)


@given(
    arrays.arrays(np.float64, 6, elements={"min_value": 0, "allow_infinity": False}),
    st.randoms(use_true_random=False),
)
def test_an_exact_sum_is_rounded_once_and_never_infinite(values: Array, order: Any) -> None:
    total = robust._exact(values)
    assert rounded(total).tobytes() == values.tobytes()
    largest = np.finfo(np.float64).max
    assert rounded(robust._exact(np.array([np.inf])))[0] == largest
    assert rounded(sum([robust._exact(np.array([largest]))] * 3))[0] == largest
    one_by_one = list(total)
    order.shuffle(one_by_one)
    assert rounded(np.array([sum(one_by_one)], object)) == rounded(np.array([total.sum()], object))


def test_a_score_is_the_sum_over_the_nearest_others() -> None:
    block = np.array([[0.0], [1.0], [3.0], [7.0], [100.0]])
    scores = krum_scores(measured(block), byzantine=1)  # n - f - 2 = 2 nearest
    assert scores.tolist() == [1 + 9, 1 + 4, 4 + 9, 16 + 36, 93**2 + 97**2]
    assert krum(measured(block), 1) == (1,)
    assert multi_krum(measured(block), 1, 3) == (0, 1, 2)
    assert multi_krum(measured(block), 1, 9) == (0, 1, 2, 3, 4)
    assert krum_scores(measured(block), byzantine=4).tolist() == [1, 1, 4, 16, 93**2]


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    same = measured(np.ones((6, 10), np.float32))
    assert krum(same, 1) == (0,)
    assert multi_krum(same, 1, 4) == (0, 1, 2, 3)
    pairs = measured(np.array([[9.0], [0.0], [0.0], [9.0], [9.0], [0.0]]))
    assert multi_krum(pairs, 2, 4) == (0, 1, 2, 3)


def test_a_lone_update_is_selected() -> None:
    assert krum(measured(normal(1, 10)), 0) == (0,)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**32), st.data())
@settings(max_examples=80)
def test_krum_never_selects_a_far_outlier(f: int, more: int, seed: int, data: st.DataObject) -> None:
    n = krum_quorum(f) + more
    chance = np.random.default_rng(seed)
    block = chance.normal(size=(n, 30)).astype(np.float32)
    liars = chance.permutation(n)[:f]
    size = data.draw(st.sampled_from([1e3, 1e10, 1e25, 3e38]))
    block[liars] = chance.choice([-1, 1], (1 if data.draw(st.booleans()) else f, 30)) * np.float32(size)
    selected = multi_krum(measured(block), f, data.draw(st.integers(1, n - f)))
    assert not set(selected) & {int(i) for i in liars}


def test_outliers_that_overflow_a_float64_are_only_far() -> None:
    block = normal(7, 20, 5, np.float64)
    block[[2, 4]] = np.finfo(np.float64).max
    block[4] *= -1
    table = measured(block)
    assert np.isfinite(table).all()
    assert multi_krum(table, 2, 5) == (0, 1, 3, 5, 6)


def test_settings_that_select_nobody_are_refused() -> None:
    table = measured(normal(5, 10))
    with pytest.raises(BadConfig, match="keep = 0"):
        multi_krum(table, 1, 0)
    with pytest.raises(BadConfig, match="byzantine = -1"):
        krum(table, -1)


# clipping


def test_one_clipped_update_moves_the_mean_by_its_share_of_the_limit_at_most() -> None:
    deltas = normal(4, 50)
    deltas[0] *= 1e6
    shortened = factors(np.sqrt(rounded(norms_squared(deltas))), 2.0)
    assert np.linalg.norm(0.25 * shortened[0] * deltas[0]) <= 0.5 + 1e-9
