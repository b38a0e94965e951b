"""Codecs: what the fold decodes is what the device meant, or as near as the codec promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fleetfold.errors import BadUpdate
from fleetfold.fold.codecs import decode, encode, quantize
from fleetfold.fold.floats import narrowed, widened
from fleetfold.fold.kernel import COMPILED, NUMPY, Scratch
from fleetfold.fold.tensors import Header, Tensors, header_in, parse_header, read, write
from fleetfold.fold.wire import BLOCK, PAGE, Wire, mask
from fleetfold.messages import Form


def header(tensors: Tensors) -> Header:
    data = write(tensors)
    return parse_header(data, len(data))


def model(n: int = 3000) -> Tensors:
    chance = np.random.default_rng(1)
    return {
        "w": chance.normal(size=(n, 2)).astype(np.float32),
        "steps": np.array(3, np.int64),
        "brain": narrowed(chance.normal(size=7), "BF16"),
        "half": chance.normal(size=7).astype(np.float16),
        "double": chance.normal(size=5),
        "tail": chance.normal(size=n).astype(np.float32),
    }


def trained(base: Tensors, by: float = 0.01) -> Tensors:
    chance = np.random.default_rng(2)
    moved = {}
    for name, array in base.items():
        if name == "steps":
            moved[name] = array + 1
        else:
            moved[name] = narrowed(
                widened(array) + by * chance.normal(size=array.shape), header(base).layout[name][0]
            )
    return moved


def arrived(base: Tensors, update: Tensors, form: Form, **how: object) -> Tensors:
    """What the fold decodes of the update's file, tensor by tensor; delta added."""
    encoded = encode(update, base, header(base), form, [7], **how)  # type: ignore[arg-type]
    data = write(encoded.tensors)
    about = header_in(data)
    wire = Wire(header(base), form)
    sent = wire.sent(len(data) - about.begin)
    assert about.layout == wire.layout(sent), "the file has the one layout that the gate expects"
    result = {}
    for tensor in wire.carried:
        if tensor.name in wire.first:
            out = np.empty(base[tensor.name].size, np.float64 if tensor.dtype == "F64" else np.float32)

            def give(place: int, into: memoryview) -> None:
                into[:] = data[about.begin + place : about.begin + place + len(into)]

            decode(wire, sent, give, tensor, 0, out, Scratch())
            out = out.reshape(tensor.shape)
            result[tensor.name] = out + widened(base[tensor.name]) if form.delta else out
        else:
            result[tensor.name] = read(data)[0][tensor.name]
    return result


def test_the_full_codec_brings_every_bit() -> None:
    base, update = model(), trained(model())
    result = arrived(base, update, Form())
    for name in base:
        assert (widened(update[name]) == result[name]).all() if name != "steps" else result[name] == 4


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(
    ("codec", "error"), [("full", 1e-6), ("fp32", 1e-6), ("bf16", 2**-7), ("fp16", 2**-10), ("int8", 1 / 127)]
)
def test_each_codec_is_as_near_as_its_width_allows(codec: str, error: float, delta: bool) -> None:
    base, update = model(), trained(model())
    result = arrived(base, update, Form(codec, delta))
    largest = 0.05 if delta else 4.5
    for name in base.keys() - {"steps"}:
        room = error * largest + (2**-8 * 4.5 if name == "brain" and delta else 0)
        assert np.abs(result[name] - widened(update[name])).max() <= room, name


def test_int8_takes_about_a_quarter_of_fp32_and_topk_as_much_as_it_is_told() -> None:
    base = {"w": np.zeros(1_000_000, np.float32)}
    update = {"w": np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)}

    def size(form: Form, sent: int = 0) -> int:
        return len(write(encode(update, base, header(base), form, [1], sent=sent).tensors))

    assert size(Form("int8", True)) <= 0.26 * size(Form())
    assert size(Form("bf16")) <= 0.51 * size(Form())
    assert size(Form("topk", True), 10_000) <= 0.02 * size(Form())


def test_the_mean_of_many_roundings_is_the_value_itself() -> None:
    values = np.random.default_rng(0).normal(size=3 * BLOCK).astype(np.float32)
    for codec in ("int8", "bf16", "fp16"):
        total = np.zeros(len(values))
        for k in range(400):
            encoded = encode({"w": values}, {"w": values}, header({"w": values}), Form(codec), [k])
            out = np.empty_like(values)
            data = write(encoded.tensors)
            wire = Wire(header({"w": values}), Form(codec))
            begin = header_in(data).begin

            def give(place: int, into: memoryview, data: bytes = data, begin: int = begin) -> None:
                into[:] = data[begin + place : begin + place + len(into)]

            decode(wire, 0, give, wire.carried[0], 0, out, Scratch())
            total += out
        step = {"int8": 4 / 127, "bf16": 2**-8 * 4, "fp16": 2**-11 * 4}[codec]
        assert np.abs(total / 400 - values).max() < 5 * step / 20, "5 deviations of a mean of 400"


def test_what_is_left_behind_is_sent_later_so_that_nothing_is_lost() -> None:
    base = {"w": np.zeros(5000, np.float32)}
    steps = [np.random.default_rng(k).normal(size=5000).astype(np.float32) for k in range(30)]
    for codec in ("topk", "int8", "bf16"):
        sent, left = np.zeros(5000), None
        for k, step in enumerate(steps):
            encoded = encode(
                {"w": step},
                base,
                header(base),
                Form(codec, True),
                [k],
                sent=500,
                residual=left,
                feedback=True,
            )
            arrived_values = (step + (0 if left is None else left)) - encoded.residual
            sent += arrived_values
            left = encoded.residual
        assert np.allclose(sent + left, np.sum(steps, axis=0), atol=1e-4)
        without = arrived(base, {"w": steps[0]}, Form(codec, True), sent=500)["w"]
        again = encode({"w": steps[0]}, base, header(base), Form(codec, True), [7], sent=500, feedback=True)
        assert np.allclose(without, steps[0] - again.residual, atol=1e-6), "it knows what the fold will see"


def test_topk_sends_the_largest_whatever_their_sign_over_all_pages() -> None:
    values = np.zeros(3 * PAGE + 5, np.float32)
    places = [0, PAGE - 1, PAGE, 2 * PAGE + 17, 3 * PAGE + 4]
    values[places] = [5, -6, 7, -8, 9]
    values += np.random.default_rng(0).normal(0, 0.1, len(values)).astype(np.float32)
    result = arrived({"w": np.zeros_like(values)}, {"w": values}, Form("topk", True), sent=5)["w"]
    assert np.flatnonzero(result).tolist() == places
    assert (result[places] == values[places]).all()


def test_a_part_of_the_tensors_is_encoded_alone() -> None:
    base, update = model(), trained(model())
    form = Form("int8", True, mask(header(base), {"tail", "steps"}))
    result = arrived(base, update, form)
    assert set(result) == {"tail", "steps"}
    assert np.abs(result["tail"] - update["tail"]).max() < 1e-3


@pytest.mark.parametrize("carried", ["0", "zz", "40", "-1", "0x1", "01", "f" * 10_000, " 1", "1_1"])
def test_a_mask_that_names_nothing_is_refused(carried: str) -> None:
    with pytest.raises(BadUpdate, match="names no tensors"):
        Wire(header(model()), Form("full", False, carried))


@given(arrays.arrays(np.float32, st.integers(1, 3000), elements=st.floats(width=32)), st.integers(0, 99))
def test_quantized_values_lie_within_a_step_and_what_is_not_finite_shows(
    values: np.ndarray, seed: int
) -> None:
    stored, scales = quantize(values, np.random.default_rng(seed))
    out = np.empty_like(values)
    NUMPY.int8(out, stored, scales, 0, BLOCK)
    for k in range(0, len(values), BLOCK):
        block, got = values[k : k + BLOCK], out[k : k + BLOCK]
        if not np.isfinite(block).all():
            assert not np.isfinite(got).all()
        elif (most := float(np.abs(block).max())) < 3.4e38:  # above it, the scale rounds up to infinity
            far = np.abs(got.astype(np.float64) - block).max()
            assert far <= most / 127 * (1 + 1e-6) + 1e-42, "a step, or the smallest scales that there are"


@pytest.mark.parametrize("code", ["BF16", "F16"])
def test_every_16_bits_are_widened_as_they_are_and_come_back(code: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(1 << 16, np.float32)
    (NUMPY.bf16 if code == "BF16" else NUMPY.fp16)(out, bits)
    expected = bits.view(np.float16).astype(np.float32) if code == "F16" else None
    if expected is not None:
        assert (out[np.isfinite(out)] == expected[np.isfinite(out)]).all()
    back = narrowed(out, code).view(np.uint16)
    assert (back[np.isfinite(out)] == bits[np.isfinite(out)]).all()
    assert not np.isfinite(widened(back.view(narrowed(out, code).dtype))[~np.isfinite(out)]).any()


@given(arrays.arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e300, 1e300)))
def test_narrowing_to_bfloat16_is_to_the_nearest_and_never_to_infinity(values: np.ndarray) -> None:
    got = widened(narrowed(values, "BF16")).astype(np.float64)
    assert np.isfinite(got).all()
    inside = np.abs(values) < 3.38e38
    normal = inside & (np.abs(values) > 1e-37)
    assert (np.abs(got - values)[normal] <= np.abs(values)[normal] * (2**-8 + 1e-7)).all()


@pytest.mark.skipif(COMPILED is None, reason="there is no compiled kernel here")
class TestTheCompiledKernelGivesNumpysBytes:
    @given(st.integers(1, 5000), st.integers(1, 9), st.integers(0, 2**32), st.booleans())
    @settings(max_examples=40)
    def test_in_sums(self, n: int, rows: int, seed: int, first: bool) -> None:
        chance = np.random.default_rng(seed)
        data = (chance.normal(size=(rows, n)) * 10.0 ** chance.integers(-30, 30)).astype(np.float32)
        weights, part = chance.random(rows).astype(np.float32), chance.normal(size=n).astype(np.float32)
        total = chance.normal(size=n)
        results = []
        for kernel in (NUMPY, COMPILED):
            assert kernel is not None
            p, t, out = part.copy(), total.copy(), np.empty(n, np.float32)
            kernel.accumulate(p, list(data), weights, first)
            kernel.widen(t, p, False)
            kernel.narrow(out, t, float(np.finfo(np.float32).max))
            results.append((p.tobytes(), t.tobytes(), out.tobytes(), kernel.finite(t)))
        assert results[0] == results[1]

    @given(st.integers(1, 5000), st.integers(0, BLOCK - 1), st.integers(0, 2**32))
    @settings(max_examples=40)
    def test_in_int8(self, n: int, phase: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        stored = chance.integers(-128, 128, n).astype(np.int8)
        scales = chance.normal(size=-(-(phase + n) // BLOCK)).astype(np.float32)
        outs = [np.empty(n, np.float32) for _ in range(2)]
        for out, kernel in zip(outs, (NUMPY, COMPILED), strict=True):
            assert kernel is not None
            kernel.int8(out, stored, scales, phase, BLOCK)
        assert outs[0].tobytes() == outs[1].tobytes()

    def test_in_every_16_bits(self) -> None:
        assert COMPILED is not None
        bits = np.arange(1 << 16, dtype=np.uint16)
        for name in ("bf16", "fp16"):
            outs = [np.empty(1 << 16, np.float32) for _ in range(2)]
            getattr(NUMPY, name)(outs[0], bits)
            getattr(COMPILED, name)(outs[1], bits)
            same = outs[0].view(np.uint32) == outs[1].view(np.uint32)
            assert (same | np.isnan(outs[0])).all()
            assert (np.isnan(outs[0]) == np.isnan(outs[1])).all()

    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    def test_in_what_is_not_finite(self, poison: float) -> None:
        assert COMPILED is not None
        values = np.zeros(1001)
        assert COMPILED.finite(values)
        for place in (0, 500, 1000):
            bad = values.copy()
            bad[place] = poison
            assert not COMPILED.finite(bad)
