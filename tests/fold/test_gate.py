"""The gate: what is not exactly an update for this round does not count, and costs nothing."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold.errors import BadUpdate
from fleetfold.fold.gate import Expected, admit
from fleetfold.fold.tensors import Header, Tensors, parse_header, write
from fleetfold.fold.wire import carried
from fleetfold.messages import Evaluation, Form, Timings, UpdateHeader, encode

MODEL: Tensors = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32), "n": np.array(0, np.int64)}
HEADER = UpdateHeader(run="r", round=2, kind="train", device="d", examples=5)


def expected() -> Expected:
    data = write(MODEL)
    return Expected(run="r", round=2, kind="train", device="d", model=parse_header(data, len(data)))


def reader(data: bytes, seen: list[int] | None = None) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        if seen is not None:
            seen.append(length)
        return data[offset : offset + length]

    return read


def judged(data: bytes) -> UpdateHeader:
    return admit(reader(data), len(data), expected()).header


def test_an_update_for_this_round_is_admitted() -> None:
    assert judged(write(MODEL, encode(HEADER))) == HEADER


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"round": 1}, "round '1'"),
        ({"run": "other"}, "run 'other'"),
        ({"device": "somebody"}, "device 'somebody'"),
        ({"kind": "evaluate"}, "kind 'evaluate'"),
        ({"v": 9}, "version '9'"),
        ({"examples": 0}, "0 examples"),
        ({"examples": -4}, "-4 examples"),
        ({"examples": 2**50}, "examples"),
        ({"metrics": {f"m{i}": 0.0 for i in range(65)}}, "65 metrics"),
        ({"metrics": {"x" * 1000: 0.0}}, "1000 characters"),
        ({"evaluation": Evaluation(examples=1, metrics={"": 0.0})}, "0 characters"),
        ({"metrics": {"\x1b[2Jloss": 0.0}}, "cannot be printed"),
        ({"metrics": {"a\u202eb": 0.0}}, "cannot be printed"),
        ({"evaluation": Evaluation(examples=0, metrics={})}, "0 examples"),
        ({"evaluation": Evaluation(examples=10**400, metrics={})}, "examples|0000"),
        ({"took": Timings(download=1e308)}, "took a time that is none"),
        ({"took": Timings(compute=-1.0)}, "took a time that is none"),
    ],
)
def test_a_header_that_claims_something_else_than_where_it_lies_is_refused(
    change: dict[str, object], said: str
) -> None:
    header = UpdateHeader(**{**{f: getattr(HEADER, f) for f in HEADER.__struct_fields__}, **change})
    with pytest.raises(BadUpdate, match=said):
        judged(write(MODEL, encode(header)))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({k: MODEL[k] for k in ("w", "b")}, "'n' is missing"),
        ({**MODEL, "x": np.zeros(1, np.float32)}, "'x' is not in the model"),
        ({**MODEL, "x": np.zeros(5000, np.float32)}, "too long"),
        ({k: MODEL[k] for k in ("b", "w", "n")}, "'b' lies where 'w' is expected"),
        ({"v": MODEL["w"], "b": MODEL["b"], "n": MODEL["n"]}, "'w' is missing"),
        ({**MODEL, "w": MODEL["w"].T}, r"F32\[3, 4\], in the model F32\[4, 3\]"),
        ({**MODEL, "w": MODEL["w"].astype(np.int32)}, "'w' is I32"),
        ({}, "'b' is missing"),
    ],
)
def test_another_layout_than_the_models_is_refused_by_name(tensors: Tensors, said: str) -> None:
    with pytest.raises(BadUpdate, match=said):
        judged(write(tensors, encode(HEADER)))


def test_an_update_cut_off_anywhere_is_refused() -> None:
    data = write(MODEL, encode(HEADER))
    for size in range(len(data)):
        with pytest.raises(BadUpdate):
            judged(data[:size])


def test_a_header_of_a_gigabyte_is_refused_before_it_is_read() -> None:
    seen: list[int] = []
    bomb = (1 << 30).to_bytes(8, "little")
    with pytest.raises(BadUpdate, match="header of 1073741824 bytes"):
        admit(reader(bomb, seen), 1 << 31, expected())
    assert seen == [8]


@given(st.data())
def test_no_mutation_that_changes_what_an_update_is_gets_in(data: st.DataObject) -> None:
    valid = write(MODEL, encode(HEADER))
    mutated = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = judged(bytes(mutated))
    except BadUpdate:
        return
    assert (header.run, header.round, header.device, header.kind) == ("r", 2, "d", "train")
    assert parse_header(bytes(mutated), len(mutated)).layout == expected().model.layout  # type: ignore[union-attr]


def test_an_evaluation_has_no_form_for_its_record_to_keep() -> None:
    nothing = Expected(run="r", round=2, kind="evaluate", device="d", model=None)
    for form in (Form("full", False, "f" * 9000), Form("int8"), Form("full", True)):
        header = UpdateHeader(run="r", round=2, kind="evaluate", device="d", examples=5, form=form)
        data = write({}, encode(header))
        with pytest.raises(BadUpdate, match="has no form"):
            admit(reader(data), len(data), nothing)


@pytest.mark.parametrize("kind", ["\x1b]0;owned\x07", "\x1b[2J" * 500, "a\r\nb", "\u202e"])
def test_a_reason_that_quotes_a_device_can_be_shown_on_a_terminal(kind: str) -> None:
    about = encode(HEADER).replace(b'"train"', json.dumps(kind).encode())
    with pytest.raises(BadUpdate, match="Invalid enum value") as error:
        judged(write(MODEL, about))
    assert error.value.sentence.isprintable()
    assert len(error.value.sentence) <= 500


def test_a_name_is_said_once_or_two_readers_may_see_two_files() -> None:
    data = write(MODEL, encode(HEADER))
    begin = 8 + int.from_bytes(data[:8], "little")
    head = data[8:begin].rstrip()
    first = head.index(b'"w":')
    again = b'"w":{"dtype":"I32","shape":[12],"data_offsets":[0,48]},'
    for forged, said in [
        (head[:first] + again + head[first:], "header names 'w' twice"),
        (head.replace(b'"dtype":"F32"', b'"dtype":"I32","dtype":"F32"', 1), "do not say where it lies"),
        (head.replace(b'"dtype":"F32"', b'"x":[],"dtype":"F32"', 1), "do not say where it lies"),
        (
            head.replace(b'{"fleetfold":', b'{"fleetfold":"","fleetfold":', 1),
            "metadata names something twice",
        ),
    ]:
        with pytest.raises(BadUpdate, match=said):
            judged(len(forged).to_bytes(8, "little") + forged + data[begin:])


@pytest.mark.parametrize(
    ("partial", "asked", "sent"), [(False, "", "5"), (False, "5", "1"), (True, "5", "2")]
)
def test_a_part_of_the_tensors_will_do_only_where_it_may_and_none_beyond(
    partial: bool, asked: str, sent: str
) -> None:
    form = Form("full", False, sent)
    some = {t.name: MODEL[t.name] for t in carried(_model(), sent)}
    data = write(some, encode(replace(HEADER, form=form)))
    where = replace(expected(), carried=asked, partial=partial)
    with pytest.raises(BadUpdate, match=r"is missing|is not for devices to send"):
        admit(reader(data), len(data), where)
    allowed = replace(where, carried=sent)
    assert admit(reader(data), len(data), allowed).header.form == form


def _model() -> Header:
    found = expected().model
    assert found is not None
    return found
