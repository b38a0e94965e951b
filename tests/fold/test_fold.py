"""The fold: exact, in any arrangement, and honest about what it cannot fold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfold.errors import BadConfig
from fleetfold.fold import fold as module
from fleetfold.fold.fold import ChunkFold, Source, Unfit, fold
from fleetfold.fold.tensors import Header, Tensors, parse_header, read, write, write_header


def source(name: str, tensors: Tensors, weight: float = 1.0) -> Source:
    data = write(tensors)

    def give(offset: int, into: memoryview) -> None:
        into[:] = data[offset : offset + len(into)]

    return Source(name=name, weight=weight, header=header(tensors), read=give)


def header(tensors: Tensors) -> Header:
    data = write(tensors)
    return parse_header(data, len(data))


def folded(sources: list[Source], model: Header, method: ChunkFold | None = None) -> Tensors:
    data = write_header(model.layout, b"{}") + b"".join(fold(sources, model, method))
    return read(data)[0]


def mixed(seed: int, n: int = 50) -> Tensors:
    chance = np.random.default_rng(seed)
    return {
        "a": chance.normal(size=(n, 3)).astype(np.float32),
        "steps": np.array(seed, np.int64),
        "b": chance.normal(size=n).astype(np.float16),
        "scalar": np.array(chance.normal(), np.float64),
        "empty": np.zeros((0,), np.float32),
        "mask": chance.random(5) < 0.5,
    }


def test_floats_are_averaged_by_weight_and_the_rest_is_taken_from_the_heaviest() -> None:
    updates = [mixed(s) for s in range(3)]
    result = folded(
        [source(str(i), u, w) for i, (u, w) in enumerate(zip(updates, (1, 5, 4), strict=True))],
        header(updates[0]),
    )
    for name in ("a", "b", "scalar"):
        expected = sum(w / 10 * u[name].astype(np.float64) for u, w in zip(updates, (1, 5, 4), strict=True))
        assert np.allclose(result[name], expected, rtol=1e-3 if name == "b" else 1e-6, atol=1e-6)
        assert result[name].dtype == updates[0][name].dtype
    assert result["steps"] == 1
    assert (result["mask"] == updates[1]["mask"]).all()
    assert result["empty"].shape == (0,)


def test_of_several_that_weigh_the_same_the_first_gives_the_integers() -> None:
    updates = [mixed(s) for s in (4, 2)]
    assert folded([source("x", u) for u in updates], header(updates[0]))["steps"] == 4


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 99), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(1, 4),
)
@settings(max_examples=40)
def test_neither_the_size_of_the_chunks_nor_the_threads_change_a_byte(
    chunk: int, weights: list[int], n: int, threads: int
) -> None:
    updates = [mixed(i, n) for i in range(len(weights))]
    sources = [source(str(i), u, w) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    whole = b"".join(fold(sources, header(updates[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(module, "_large", lambda model: True)
        assert b"".join(fold(sources, header(updates[0]), threads=threads)) == whole


def test_an_update_whose_tensors_lie_in_another_order_is_folded_by_name() -> None:
    ours, theirs = mixed(1), mixed(2)
    turned = dict(reversed(theirs.items()))
    expected = folded([source("a", ours), source("b", theirs)], header(ours))
    result = folded([source("a", ours), source("b", turned)], header(ours))
    assert all(result[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [None, lambda block, shares: block.mean(0)])
def test_an_update_with_values_that_are_not_finite_is_named(poison: float, method: ChunkFold | None) -> None:
    good, bad, worse = mixed(1), mixed(2), mixed(3)
    bad["a"][7, 1] = worse["a"][7, 1] = poison
    with pytest.raises(Unfit) as unfit:
        folded(
            [source("good", good), source("bad", bad, 0.001), source("worse", worse)], header(good), method
        )
    assert unfit.value.names == ("bad", "worse")


def test_opposite_infinities_do_not_hide_each_other() -> None:
    up, down = mixed(1), mixed(2)
    up["a"][0, 0], down["a"][0, 0] = np.inf, -np.inf
    with pytest.raises(Unfit):
        folded([source("up", up), source("down", down)], header(up))


def test_the_largest_finite_values_do_not_overflow() -> None:
    big = {"w": np.full(3, np.finfo(np.float64).max)}
    result = folded([source(str(i), big, 0.1) for i in range(3)], header(big))
    assert np.isfinite(result["w"]).all()


def test_the_users_own_fold_is_given_all_updates_of_a_coordinate() -> None:
    updates = [mixed(s) for s in range(5)]
    result = folded(
        [source("x", u) for u in updates], header(updates[0]), lambda block, shares: np.median(block, 0)
    )
    assert np.allclose(result["a"], np.median([u["a"] for u in updates], 0))


def test_a_fold_of_the_users_own_that_returns_nonsense_is_told_so() -> None:
    with pytest.raises(BadConfig, match="fold function returned"):
        folded([source("x", mixed(1))], header(mixed(1)), lambda block, shares: block)
