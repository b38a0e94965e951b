"""The fold: exact, in any arrangement, and honest about what it cannot fold."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold.errors import BadConfig
from fleetfold.fold.codecs import encode
from fleetfold.fold.floats import narrowed, widened
from fleetfold.fold.fold import fold_shard, measured
from fleetfold.fold.kernel import NUMPY
from fleetfold.fold.plan import Shard, Site, plan_fold
from fleetfold.fold.recipe import MEAN, ChunkFold, Recipe, Source, Unfit
from fleetfold.fold.robust import distances, median, norms_squared
from fleetfold.fold.tensors import (
    FLOATS,
    Header,
    Tensors,
    code_of,
    header_in,
    parse_header,
    read,
    write,
    write_header,
)
from fleetfold.fold.wire import CODECS, SCALES, VALUES, Wire, mask
from fleetfold.messages import Form

FULL = Form()


def header(tensors: Tensors) -> Header:
    data = write(tensors)
    return parse_header(data, len(data))


def reading(data: bytes) -> Callable[[int, memoryview], None]:
    begin = header_in(data).begin

    def read(place: int, into: memoryview) -> None:
        assert begin + place + len(into) <= len(data), "nothing is read past the end"
        into[:] = data[begin + place : begin + place + len(into)]

    return read


def source(
    name: str, tensors: Tensors, weight: float = 1.0, *, model: Tensors | None = None, form: Form = FULL,
    base: int = 0, factor: float = 1.0,
) -> Source:  # fmt: skip
    """The update as an agent would have written it."""
    model = model or tensors
    encoded = encode(tensors, model, header(model), form, [len(name), base], sent=9)
    data = write(encoded.tensors)
    wire = Wire(header(model), form)
    return Source(
        name=name, weight=weight, wire=wire, read=reading(data), base=base, factor=factor,
        sent=wire.sent(len(data) - header_in(data).begin),
    )  # fmt: skip


def folded(
    sources: list[Source],
    model: Header,
    method: ChunkFold | None = None,
    recipe: Recipe = MEAN,
    **how: object,
) -> Tensors:
    recipe = Recipe(method=method, bases=recipe.bases, base=recipe.base)
    chunks = fold_shard(sources, model, recipe=recipe, **how)  # type: ignore[arg-type]
    return read(write_header(model.layout, b"{}") + b"".join(chunks))[0]


def mixed(seed: int, n: int = 50) -> Tensors:
    chance = np.random.default_rng(seed)
    return {
        "a": chance.normal(size=(n, 3)).astype(np.float32),
        "steps": np.array(seed, np.int64),
        "b": chance.normal(size=n).astype(np.float16),
        "brain": narrowed(chance.normal(size=(2, n)).astype(np.float32), "BF16"),
        "scalar": np.array(chance.normal(), np.float64),
        "empty": np.zeros((0,), np.float32),
        "c": chance.normal(size=n).astype(np.float32),
        "mask": chance.random(5) < 0.5,
    }


def test_floats_are_averaged_by_weight_and_the_rest_is_taken_from_the_heaviest() -> None:
    updates = [mixed(s) for s in range(3)]
    weighted = list(zip(updates, (1, 5, 4), strict=True))
    result = folded([source(str(i), u, w) for i, (u, w) in enumerate(weighted)], header(updates[0]))
    for name, tolerance in {"a": 1e-6, "b": 1e-3, "brain": 8e-3, "scalar": 1e-15, "c": 1e-6}.items():
        expected = sum(w / 10 * widened(u[name]).astype(np.float64) for u, w in weighted)
        assert np.allclose(widened(result[name]), expected, rtol=tolerance, atol=tolerance / 10)
        assert result[name].dtype == updates[0][name].dtype
    assert result["steps"] == 1
    assert (result["mask"] == updates[1]["mask"]).all()
    assert result["empty"].shape == (0,)


def test_of_several_that_weigh_the_same_the_first_gives_the_integers() -> None:
    updates = [mixed(s) for s in (4, 2)]
    assert folded([source("x", u) for u in updates], header(updates[0]))["steps"] == 4


# The law: layouts × codecs × plans × orders, against arithmetic in 64 bits on what the codecs decode to

SHAPES = st.lists(st.integers(0, 40), max_size=2).map(tuple)
TENSORS = st.lists(
    st.tuples(st.sampled_from(["F32", "F32", "F16", "BF16", "F64", "I64", "BOOL"]), SHAPES),
    min_size=1, max_size=6,
)  # fmt: skip
FORMS = st.builds(Form, codec=st.sampled_from(CODECS), delta=st.booleans())


def drawn(layout: list[tuple[str, tuple[int, ...]]], seed: int) -> Tensors:
    chance = np.random.default_rng(seed)

    def tensor(code: str, shape: tuple[int, ...]) -> np.ndarray:
        if code in FLOATS:
            return narrowed(chance.normal(size=shape), code)
        return (chance.random(shape) < 0.5) if code == "BOOL" else chance.integers(-9, 9, shape)

    return {f"t{k}": tensor(code, shape) for k, (code, shape) in enumerate(layout)}


@given(
    layout=TENSORS,
    forms=st.lists(st.tuples(FORMS, st.integers(1, 99), st.sampled_from([0, 0, 1])), min_size=1, max_size=20),
    carries=st.data(),
    cut=st.integers(1, 70),
    chunk=st.integers(1, 100),
    depth=st.integers(1, 4),
)
@settings(max_examples=60)
def test_any_layout_codec_base_and_subset_is_folded_as_in_64_bits_and_no_plan_changes_a_byte(
    layout: list[tuple[str, tuple[int, ...]]], forms: list[tuple[Form, int, int]], carries: st.DataObject,
    cut: int, chunk: int, depth: int,
) -> None:  # fmt: skip
    models = {0: drawn(layout, 100), 1: drawn(layout, 101)}
    model = header(models[0])
    sources, wires = [], {}
    for k, (form, weight, base) in enumerate(forms):
        if carries.draw(st.booleans()):
            names = carries.draw(st.sets(st.sampled_from([t.name for t in model.tensors]), min_size=1))
            form = Form(form.codec, form.delta, mask(model, names))
        made = source(f"{k}", drawn(layout, k), weight, model=models[base], form=form, base=base)
        made = replace(made, wire=wires.setdefault(form, made.wire))
        sources.append(made)
    recipe = Recipe(base=0, bases={v: reading(write(m)) for v, m in models.items()})
    whole = b"".join(fold_shard(sources, model, recipe=recipe))
    result = read(write_header(model.layout, b"{}") + whole)[0]
    for tensor in model.tensors:
        expected, tolerance = reference(sources, models, tensor.name)
        got = result[tensor.name]
        if tensor.dtype in FLOATS:
            narrow = {"F64": 1e-12, "F32": 1e-5, "F16": 2e-3, "BF16": 2e-2}[tensor.dtype]
            assert np.allclose(widened(got), expected, rtol=narrow, atol=narrow * tolerance), tensor
        else:
            assert got.tobytes() == expected.tobytes()

    def cuts() -> list[Shard]:
        """At floats and tensors that the plan would allow if pages were `cut` floats long."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fleetfold.fold.plan.PAGE", cut)
            site = Site(name="here", bandwidth=1.0, folders=5, part=1)
            return list(plan_fold(model, len(sources), 1, site).shards)

    shards = cuts()
    assert [s.start for s in shards[1:]] == [s.stop for s in shards[:-1]]
    parts = [b"".join(fold_shard(sources, model, s, recipe, chunk=chunk)) for s in shards]
    assert b"".join(parts) == whole, "neither shards nor chunks change a byte"
    assert b"".join(fold_shard(sources, model, recipe=recipe, chunk=chunk, threads=3)) == whole
    assert b"".join(fold_shard(sources, model, recipe=recipe, chunk=chunk, depth=depth)) == whole
    assert b"".join(fold_shard(sources, model, recipe=recipe, kernel=NUMPY)) == whole, "nor does the kernel"


def reference(sources: list[Source], models: dict[int, Tensors], name: str) -> tuple[np.ndarray, float]:
    """What the tensor must come to, and how large its values are."""
    base = models[0][name]
    carrying = [s for s in sources if any(t.name == name for t in s.wire.carried)]
    if not carrying:
        return (widened(base).astype(np.float64) if code_of(base) in FLOATS else base), 1.0
    if code_of(base) not in FLOATS:
        heaviest = max(carrying, key=lambda s: s.weight)
        got = np.empty(base.size, base.dtype)
        heaviest.read(heaviest.wire.place(name, heaviest.sent), got.data.cast("B"))
        return got.reshape(base.shape), 1.0
    total, most = widened(base).astype(np.float64), 1.0
    weight = sum(s.weight for s in carrying)
    for s in carrying:
        values = decoded(s, name, base)
        if not s.wire.form.delta:
            values = values - widened(models[s.base][name])
        total = total + s.weight / weight * values
        most = max(most, float(np.abs(values).max(initial=0)))
    return total, most


def decoded(source: Source, name: str, base: np.ndarray) -> np.ndarray:
    """The whole tensor at once, by the reference kernel."""
    from fleetfold.fold.codecs import decode
    from fleetfold.fold.kernel import Scratch

    tensor = next(t for t in source.wire.carried if t.name == name)
    out = np.empty(base.size, np.float64 if tensor.dtype == "F64" else np.float32)
    if base.size:
        decode(source.wire, source.sent, source.read, tensor, 0, out, Scratch(), NUMPY)
    return out.reshape(base.shape).astype(np.float64)


@pytest.mark.parametrize("n", [1, 3, 4, 31, 32, 33, 65, 300])
def test_files_are_read_and_summed_by_the_kernel_itself_with_the_same_bytes(n: int, tmp_path: Path) -> None:
    updates = [{"w": np.random.default_rng(k).normal(size=5000).astype(np.float32)} for k in range(n)]
    model, wire = header(updates[0]), Wire(header(updates[0]), FULL)
    with ExitStack() as stack:
        plain, held = [], []
        for k, u in enumerate(updates):
            data = write(u)
            (tmp_path / f"{k}").write_bytes(data)
            file = stack.enter_context(open(tmp_path / f"{k}", "rb"))
            plain.append(Source(name=f"{k}", weight=k + 1, wire=wire, read=reading(data)))
            held.append(replace(plain[-1], file=(file.fileno(), header_in(data).begin)))
        for chunk in (5000, 777):
            whole = b"".join(fold_shard(plain, model, kernel=NUMPY, chunk=chunk))
            assert b"".join(fold_shard(held, model, chunk=chunk)) == whole
            assert b"".join(fold_shard(held, model, chunk=chunk, threads=2)) == whole
        os.truncate(tmp_path / "0", 1000)
        assert b"".join(fold_shard(held, model)) == whole, "what is cut off is left to `read`, which says so"
        poisoned = {"w": np.where(np.arange(5000) == 4321, np.nan, updates[0]["w"]).astype(np.float32)}
        (tmp_path / "0").write_bytes(write(poisoned))
        bad = replace(held[0], read=reading(write(poisoned)))
        with pytest.raises(Unfit, match="not finite"):
            b"".join(fold_shard([bad, *held[1:]], model))


def test_reads_are_in_flight_together_as_deep_as_the_plan_says() -> None:
    model = {"w": np.arange(100, dtype=np.float32)}
    together = threading.Barrier(6)

    def waiting(data: bytes) -> Callable[[int, memoryview], None]:
        plain = reading(data)

        def read(place: int, into: memoryview) -> None:
            together.wait(timeout=30)  # goes on when six reads wait, and not before
            plain(place, into)

        return read

    wire = Wire(header(model), FULL)
    sources = [Source(name=f"{k}", weight=1.0, wire=wire, read=waiting(write(model))) for k in range(3)]
    chunks = fold_shard(sources, header(model), depth=6, chunk=25)
    assert np.allclose(np.frombuffer(b"".join(chunks), np.float32), model["w"])


@given(st.permutations(range(9)))
@settings(max_examples=10)
def test_the_order_of_arrival_changes_nothing_for_the_seats_give_the_order(order: list[int]) -> None:
    updates = {k: source(str(k), mixed(k), k + 1) for k in range(9)}
    arrived = {k: updates[k] for k in order}
    seated = [arrived[k] for k in sorted(arrived)]
    model = header(mixed(0))
    assert b"".join(fold_shard(seated, model)) == b"".join(fold_shard(list(updates.values()), model))


def test_more_updates_than_a_batch_are_summed_batch_by_batch_whoever_works_on_which() -> None:
    updates = [{"w": np.random.default_rng(k).normal(size=300).astype(np.float32)} for k in range(600)]
    sources = [source(str(k), u, k + 1) for k, u in enumerate(updates)]
    one, expected = sources[0].wire, sum((k + 1) * u["w"].astype(np.float64) for k, u in enumerate(updates))
    sources = [Source(name=s.name, weight=s.weight, wire=one, read=s.read) for s in sources]
    model = header(updates[0])
    whole = b"".join(fold_shard(sources, model))
    assert np.allclose(np.frombuffer(whole, np.float32), expected / sum(range(601)), atol=1e-7)
    for chunk in (7, 300):
        assert b"".join(fold_shard(sources, model, threads=2, chunk=chunk)) == whole
        assert b"".join(fold_shard(sources, model, depth=3, chunk=chunk)) == whole


def test_an_update_from_an_older_model_counts_by_its_difference_to_that_model() -> None:
    old, new = {"w": np.zeros(4, np.float32)}, {"w": np.full(4, 10, np.float32)}
    stale = source("stale", {"w": np.ones(4, np.float32)}, model=old, base=0)
    fresh = source("fresh", {"w": np.full(4, 12, np.float32)}, model=new, base=1)
    recipe = Recipe(base=1, bases={0: reading(write(old)), 1: reading(write(new))})
    assert folded([stale, fresh], header(new), recipe=recipe)["w"].tolist() == [11.5] * 4
    assert folded([stale, fresh], header(new), median, recipe)["w"].tolist() == [11.5] * 4


def test_a_factor_scales_the_difference_to_the_model() -> None:
    model = {"w": np.full(3, 5, np.float32)}
    far = source("far", {"w": np.full(3, 105, np.float32)}, model=model, factor=0.01)
    near = source("near", {"w": np.full(3, 7, np.float32)}, model=model)
    recipe = Recipe(bases={0: reading(write(model))})
    assert folded([far, near], header(model), recipe=recipe)["w"].tolist() == [6.5] * 3


def test_measures_are_the_same_over_any_shards_for_models_and_for_differences() -> None:
    chance = np.random.default_rng(0)
    model = {
        "w": chance.normal(size=200_000).astype(np.float32),
        "n": np.array(1),
        "v": np.zeros(3, np.float32),
    }
    updates = [{**model, "w": model["w"] + chance.normal(size=200_000).astype(np.float32)} for _ in range(4)]
    recipe = Recipe(bases={0: reading(write(model))})
    plain = [source(str(k), u, model=model) for k, u in enumerate(updates)]
    shards = plan_fold(header(model), 4, 1, Site(name="here", bandwidth=1.0, folders=3, part=1)).shards
    assert len(shards) > 1
    for measure, together in ((distances, True), (norms_squared, False)):
        whole = measured(plain, header(model), measure, recipe, together=together)
        parts = [measured(plain, header(model), measure, recipe, s, together=together) for s in shards]
        assert (sum(parts) == whole).all()
    norms = measured(plain, header(model), norms_squared, recipe, together=False)
    exact = [float(np.sum((u["w"] - model["w"]).astype(np.float64) ** 2)) for u in updates]
    assert [n / 2**1127 for n in norms] == pytest.approx(exact, rel=1e-12)
    sent = [source(str(k), u, model=model, form=Form("full", True)) for k, u in enumerate(updates)]
    assert (measured(sent, header(model), norms_squared, recipe, together=False) == norms).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [None, lambda block, shares: block.mean(0)])
@pytest.mark.parametrize("form", [Form(), Form("bf16"), Form("fp16"), Form("int8"), Form("topk")])
def test_an_update_with_values_that_are_not_finite_is_named(
    poison: float, method: ChunkFold | None, form: Form
) -> None:
    good, bad, worse = mixed(1), mixed(2), mixed(3)
    bad["a"][7, 1] = worse["a"][7, 1] = poison
    sources = [
        source("good", good),
        source("bad", bad, 0.001, form=form),
        source("worse", worse, form=form),
    ]
    with pytest.raises(Unfit) as unfit:
        folded(sources, header(good), method)
    assert unfit.value.names == ("bad", "worse")


def test_opposite_infinities_do_not_hide_each_other() -> None:
    up, down = mixed(1), mixed(2)
    up["a"][0, 0], down["a"][0, 0] = np.inf, -np.inf
    with pytest.raises(Unfit):
        folded([source("up", up), source("down", down)], header(up))


def test_the_largest_finite_values_do_not_overflow() -> None:
    for dtype in (np.float64, np.float32, np.float16):
        big = {"w": np.full(3, np.finfo(dtype).max, dtype)}
        result = folded([source(str(i), big, 0.1) for i in range(3)], header(big))
        assert np.isfinite(result["w"]).all()


def test_scales_that_make_values_overflow_are_found_in_the_pass() -> None:
    model = {"w": np.zeros(2000, np.float32)}
    wire = Wire(header(model), Form("int8", True))
    data = write({VALUES: np.full(2000, 100, np.int8), SCALES: np.array([1e-3, 1e38], np.float32)})
    bomb = Source(name="bomb", weight=1.0, wire=wire, read=reading(data))
    with pytest.raises(Unfit, match="not finite"):
        folded([bomb], header(model), recipe=Recipe(bases={0: reading(write(model))}))


@pytest.mark.parametrize(
    ("starts", "indices", "said"),
    [
        ([0, 9], [0, 1], "there are 2 values"),
        ([-1, 2], [0, 1], "there are 2 values"),
        ([2, 0], [0, 1], "there are 2 values"),
        ([0, 2], [1, 1], "do not ascend"),
        ([0, 2], [5, 1], "do not ascend"),
    ],
)
def test_a_top_k_whose_pages_do_not_fit_is_found_in_the_pass(
    starts: list[int], indices: list[int], said: str
) -> None:
    model = {"w": np.zeros(50, np.float32)}
    wire = Wire(header(model), Form("topk", True))
    parts = [np.array(starts, np.int64), np.ones(2, np.float32), np.array(indices, np.uint16)]
    data = write(dict(zip(wire.layout(2), parts, strict=True)))
    bad = Source(name="bad", weight=1.0, wire=wire, read=reading(data), sent=2)
    with pytest.raises(Unfit, match=said):
        folded([bad], header(model), recipe=Recipe(bases={0: reading(write(model))}))


def test_a_boolean_that_is_neither_true_nor_false_is_found_in_the_pass() -> None:
    model = {"w": np.zeros(2, np.float32), "mask": np.array([True, False])}
    data = bytearray(write(model))
    data[-1] = 7
    bad = Source(name="bad", weight=1.0, wire=Wire(header(model), Form()), read=reading(bytes(data)))
    with pytest.raises(Unfit, match="neither true nor false"):
        folded([bad], header(model))


@pytest.mark.parametrize("how", [{}, {"depth": 2}])
def test_a_signaling_nan_is_found_without_a_warning(how: dict[str, int]) -> None:
    model = {"d": np.zeros(3)}
    data = write({"d": np.array([0, 0x7F800001, 0], np.uint32).view(np.float32)})
    bad = Source(name="bad", weight=1.0, wire=Wire(header(model), Form("fp32")), read=reading(data))
    with pytest.raises(Unfit, match="not finite"):
        folded([bad], header(model), **how)


def test_a_difference_that_leads_beyond_the_largest_double_ends_there() -> None:
    largest = np.finfo(np.float64).max
    model = {"d": np.full(3, largest)}
    up = Source(
        name="up", weight=1.0, wire=Wire(header(model), Form("full", True)), read=reading(write(model))
    )
    result = folded([up], header(model), recipe=Recipe(bases={0: reading(write(model))}))
    assert result["d"].tolist() == [largest] * 3


def test_the_users_own_fold_is_given_all_updates_of_a_coordinate() -> None:
    updates = [mixed(s) for s in range(5)]
    result = folded(
        [source("x", u) for u in updates], header(updates[0]), lambda block, shares: np.median(block, 0)
    )
    assert np.allclose(result["a"], np.median([u["a"] for u in updates], 0))


def test_a_fold_of_the_users_own_that_returns_nonsense_is_told_so() -> None:
    with pytest.raises(BadConfig, match="fold function returned"):
        folded([source("x", mixed(1))], header(mixed(1)), lambda block, shares: block)


def test_files_that_are_read_as_from_a_store_are_folded_to_the_same_bytes(tmp_path: Path) -> None:
    updates = [{"a": np.arange(9_000, dtype=np.float32) * k, "n": np.array(k)} for k in range(5)]
    model = header(updates[0])
    with ExitStack() as stack:
        sources = []
        for k, update in enumerate(updates):
            place = tmp_path / str(k)
            place.write_bytes(write(update))
            file = stack.enter_context(place.open("rb")).fileno()
            sources.append(replace(source(str(k), update), file=(file, model.begin)))
        here = b"".join(bytes(piece) for piece in fold_shard(sources, model, chunk=100))
        away = b"".join(bytes(piece) for piece in fold_shard(sources, model, chunk=100, depth=3))
    assert here == away
