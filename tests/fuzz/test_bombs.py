"""Files made to cost: refused from few bytes, in memory that the model's own header bounds.

What is asked of `read` and what Python allocates are counted; seconds are not, they are the long run's.
"""

import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest

from fleetfold.errors import BadUpdate
from fleetfold.fold.fold import fold_shard
from fleetfold.fold.gate import Admitted, Expected, admit
from fleetfold.fold.recipe import NOT_FINITE, Recipe, Source, Unfit
from fleetfold.fold.tensors import METADATA_LIMIT, Header, Tensors, header_in, write, write_header
from fleetfold.fold.wire import INDICES, PAGE, SCALES, STARTS, VALUES, Wire
from fleetfold.messages import Form, UpdateHeader, encode
from tests.fuzz.trial import MEMORY

SMALL: Tensors = {"w": np.zeros((4, 3), np.float32), "n": np.array(0, np.int64)}
ABOUT = UpdateHeader(run="r", round=2, kind="train", device="d", examples=5)
LARGE = {f"layers.{k}.weight": ("F32", (1,)) for k in range(10_000)}
"""A model's layout whose header is large, and its room with it."""


def expected(model: Header) -> Expected:
    return Expected(run="r", round=2, kind="train", device="d", model=model)


@pytest.fixture(scope="module")
def large() -> Header:
    return header_in(write_header(LARGE, b"{}") + bytes(40_000))


def forged(text: str | bytes, body: bytes = b"") -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + body


def entry(shape: Any = (1,), start: int = 0, stop: int = 4, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def table(entries: dict[str, Any], about: bytes = encode(ABOUT)) -> str:
    return json.dumps({"__metadata__": {"fleetfold": about.decode()}, **entries})


def judged(data: bytes, model: Header, size: int | None = None) -> tuple[Admitted | str, int, int]:
    """The gate's answer, the bytes that it asked for and the most memory that it had."""
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return data[offset : offset + length]

    tracemalloc.start()
    try:
        answer: Admitted | str = admit(read, len(data) if size is None else size, expected(model))
    except BadUpdate as error:
        answer = error.sentence
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return answer, asked, most


def refused(data: bytes, said: str, model: Header | None = None, size: int | None = None) -> int:
    """It is refused with these words, in bounded memory. → the bytes that were read."""
    answer, asked, most = judged(data, model or header_in(write(SMALL)), size)
    assert isinstance(answer, str), "it was admitted"
    assert said in answer
    assert most < MEMORY
    assert len(answer) <= 500
    return asked


def test_a_header_of_a_gigabyte_is_refused_from_eight_bytes() -> None:
    assert refused((1 << 30).to_bytes(8, "little"), "header of 1073741824 bytes", size=1 << 31) == 8
    assert refused(b"\xff" * 8, "header of 18446744073709551615 bytes", size=1 << 40) == 8


def test_an_update_of_a_terabyte_is_refused_from_eight_bytes() -> None:
    assert refused(forged(table({})), "too long", size=1 << 40) == 8


@pytest.mark.parametrize("one", ['"%x":1', '"%x":{}', f'"%x":{json.dumps(entry((0,), 0, 0))}', '"%x":[[]]'])
def test_a_million_tensors_are_not_made_before_they_are_refused(one: str, large: Header) -> None:
    bomb = forged("{" + ",".join(one % k for k in range(1_000_000)) + "}")
    assert refused(bomb, "header of") == 8
    fits = forged("{" + ",".join(one % k for k in range(8_000_000 // len(one % 999_999) - 1)) + "}")
    asked = refused(fits, "entries" if "{" in one else "not a table", large)
    assert asked == 8 + len(fits)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([1] * 1_000_000, "header of"), ([1] * 300_000, "bytes do not say"), ([1] * 65, "65 dimensions"),
        ([2**62] * 64, "not those of its shape"), ([2**63], "<= 9223372036854775807"),
        ([2**32, 2**32], "not those of its shape"), ([0, 10**400], "<= 9223372036854775807"),
        ([-1], "do not say where it lies"),
    ],
)  # fmt: skip
def test_shapes_that_overflow_and_a_million_dimensions_are_refused(shape: list[int], said: str) -> None:
    refused(forged(table({"w": entry(shape)}), bytes(4)), said)


@pytest.mark.parametrize("digits", [19, 300, 4299, 4300, 4301])
def test_offsets_of_any_length_are_refused_in_words_that_can_be_written(digits: int) -> None:
    raw = table({"w": entry(), "n": entry((0,))}).replace("[0, 4]", f"[{'9' * digits}, {'9' * digits}]", 1)
    refused(forged(raw, bytes(4)), "header is not a table" if digits < 1000 else "do not say where it lies")


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ([(0, 4), (0, 4)], "lies at"), ([(0, 4), (2, 6)], "lies at"), ([(0, 4), (8, 12)], "lies at"),
        ([(4, 8), (8, 12)], "lies at"), ([(0, 4), (4, 2)], "not those of its shape"),
    ],
)  # fmt: skip
def test_offsets_that_overlap_or_leave_gaps_are_refused(offsets: list[tuple[int, int]], said: str) -> None:
    entries = {f"t{k}": entry((1,), *at) for k, at in enumerate(offsets)}
    refused(forged(table(entries), bytes(8)), said)


@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [1_000, 60_000])
def test_deep_nesting_is_refused_wherever_it_stands(left: str, right: str, depth: int) -> None:
    deep = left * depth + "1" + right * depth
    refused(forged('{"w":' + deep + "}"), "header is not a table")
    refused(forged('{"w":{"dtype":"F32","shape":' + deep + ',"data_offsets":[0,4]}}'), "")
    if depth == 60_000:
        about = encode(ABOUT)[:-1] + f',"extra":{deep}}}'.encode()
        refused(forged(table({}, about)), "recursion")


def test_metadata_of_over_a_megabyte_are_refused_however_large_the_model_is(large: Header) -> None:
    about = encode(msgspec.structs.replace(ABOUT, extra="x" * METADATA_LIMIT))
    said = refused(write_header(LARGE, about) + bytes(40_000), "metadata of", large)
    assert said < 3 << 20


@pytest.mark.parametrize("one", ["[],", "{},", '{"":0},', "[[0]],", '"é",', "1.5,", "[[[[[]]]]],"])
def test_what_else_an_update_may_carry_takes_bounded_memory(one: str) -> None:
    many = one * ((METADATA_LIMIT - 5000) // len(json.dumps(one).encode()))
    about = encode(ABOUT).decode()[:-1] + f',"extra":[{many}0]}}'
    answer, _, most = judged(forged(table({}, about.encode())), header_in(write(SMALL)))
    assert answer == "tensor 'n' is missing"
    assert most < MEMORY


def test_a_million_metrics_and_a_name_of_a_megabyte_are_refused() -> None:
    body = bytes(header_in(write(SMALL)).size - header_in(write(SMALL)).begin)

    def updated(**changes: Any) -> bytes:
        about = encode(msgspec.structs.replace(ABOUT, **changes))
        return write_header(header_in(write(SMALL)).layout, about) + body

    million = encode(ABOUT)[:-1] + b',"metrics":{' + b'"a":0,' * 1_000_000 + b'"b":0}}'
    refused(forged(table({}, million)), "header of")
    refused(updated(metrics={f"{k:x}": 0.0 for k in range(60_000)}), "60000 metrics")
    refused(updated(metrics={"x" * 900_000: 0.0}), "900000 characters")
    refused(updated(run="x" * 900_000), "header says run")
    refused(updated(form=Form("full", False, "f" * 900_000)), "names no tensors")
    refused(updated(form=Form("x" * 900_000)), "is not one of")
    refused(forged(table({"x" * 900_000: entry()}), bytes(4)), "is missing")


def test_a_mask_of_as_many_bits_as_the_model_has_tensors_is_read_once(large: Header) -> None:
    form = Form("full", False, "f" * 2500)
    layout = Wire(large, form).layout()
    data = write_header(layout, encode(msgspec.structs.replace(ABOUT, form=form))) + bytes(40_000)
    answer, asked, most = judged(data, large)
    assert isinstance(answer, Admitted)
    assert asked == 8 + answer.begin
    assert most < MEMORY


# In the fold's pass


def passed(data: bytes, form: Form, size: int, *, model: Tensors) -> bytes:
    """The fold of this one update, admitted with `size` bytes. Raises Unfit. Nothing is read twice over."""
    header, base = header_in(write(model)), write(model)
    about, wire, asked = header_in(data), Wire(header_in(write(model)), form), 0

    def read(place: int, into: memoryview) -> None:
        nonlocal asked
        asked += len(into)
        part = data[about.begin + place : about.begin + place + len(into)]
        if len(part) < len(into):
            raise Unfit(["d"], "gone")
        into[:] = part

    def give(place: int, into: memoryview) -> None:
        into[:] = base[header.begin + place : header.begin + place + len(into)]

    source = Source(name="d", weight=1.0, wire=wire, read=read, sent=wire.sent(size - about.begin))
    try:
        return b"".join(fold_shard([source], header, recipe=Recipe(bases={0: give})))
    finally:
        assert asked <= 4 * size, "it reads what there is, not what is claimed"


@pytest.mark.parametrize("scale", [1e38, -1e38, np.inf, -np.inf, np.nan])
def test_int8_scales_that_overflow_are_found_without_a_warning(scale: float) -> None:
    model = {"w": np.zeros(3000, np.float32)}
    stored = {VALUES: np.full(3000, 100, np.int8), SCALES: np.array([1, scale, 1], np.float32)}
    data = write(stored)
    with pytest.raises(Unfit, match=NOT_FINITE):
        passed(data, Form("int8", True), len(data), model=model)


def pages(starts: list[int], indices: list[int], values: list[float] | None = None) -> bytes:
    sent = np.ones(len(indices), np.float32) if values is None else np.array(values, np.float32)
    return write(
        {STARTS: np.array(starts, np.int64), VALUES: sent, INDICES: np.array(indices, np.uint16)}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("starts", "indices", "said"),
    [
        ([0, 2**62, 2**63 - 1], [1, 2], "lies from"), ([-(2**63), 1, 2], [1, 2], "lies from"),
        ([0, 0, 1], [1, 2], "lies from"), ([1, 1, 2], [1, 2], "lies from"), ([0, 2, 1], [1, 2], "lies from"),
        ([0, 1, 2], [5, 90], "beyond the model"), ([0, 2, 2], [5, 5], "do not ascend"),
    ],
)  # fmt: skip
def test_starts_that_claim_everything_or_not_all_and_indices_beyond_the_model_are_found(
    starts: list[int], indices: list[int], said: str
) -> None:
    data = pages(starts, indices)
    with pytest.raises(Unfit, match=said):
        passed(data, Form("topk", True), len(data), model={"w": np.zeros(PAGE + 90, np.float32)})


def test_top_k_that_sends_more_than_the_model_has_is_refused_at_the_gate() -> None:
    model = {"w": np.zeros(5, np.float32)}
    about = encode(msgspec.structs.replace(ABOUT, form=Form("topk", True)))
    stored = {
        STARTS: np.array([0, 6]),
        VALUES: np.ones(6, np.float32),
        INDICES: np.arange(6, dtype=np.uint16),
    }
    refused(write(stored, about), "are not top-k of 5 values", header_in(write(model)))


@pytest.mark.parametrize("left", [0, 1, 200])
def test_an_update_that_was_shortened_after_it_was_admitted_is_taken_out(left: int) -> None:
    data = write({"w": np.ones(100, np.float32)})
    cut = data[: header_in(data).begin + left]
    with pytest.raises(Unfit):
        passed_swapped(data, cut)


def test_an_update_whose_header_was_swapped_is_still_read_where_it_was_admitted() -> None:
    data = write({"w": np.ones(100, np.float32)})
    begin = header_in(data).begin
    other = (1 << 40).to_bytes(8, "little") + b"\xff" * (begin - 8) + data[begin:]
    assert np.frombuffer(passed_swapped(data, other), np.float32).tolist() == [1.0] * 100


def passed_swapped(data: bytes, then: bytes) -> bytes:
    """Admitted as the one, and another file by the time of the fold."""
    model = {"w": np.zeros(100, np.float32)}
    begin, base = header_in(data).begin, write(model)

    def read(place: int, into: memoryview) -> None:
        part = then[begin + place : begin + place + len(into)]
        if len(part) < len(into):
            raise Unfit(["d"], "is no longer the file that was admitted")
        into[:] = part

    source = Source(name="d", weight=1.0, wire=Wire(header_in(base), Form()), read=read)
    return b"".join(fold_shard([source], header_in(base)))
