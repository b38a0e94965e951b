"""Contents of messages, taken apart and put together again."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from fleetfold.adapters.memory import MemoryObjects
from fleetfold.adapters.objects import FileObjects
from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.flower import records
from fleetfold.flower.lazy import LazyArray, Stored
from fleetfold.fold.tensors import header_in, read, write
from fleetfold.messages import Envelope, encode

DTYPES = [
    "f8",
    "f4",
    "f2",
    "i8",
    "i4",
    "i2",
    "i1",
    "u8",
    "u4",
    "u2",
    "u1",
    "bool",
    "c8",
    ">f4",
    "U3",
    "M8[s]",
]
shapes = of_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
arrays = st.sampled_from(DTYPES).flatmap(lambda dtype: of_numpy.arrays(np.dtype(dtype), shapes))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats()
lists = st.lists(st.integers(-9, 1 << 62)) | st.lists(st.floats())


def listed(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return of | st.lists(of)


array_records = st.dictionaries(
    names, st.tuples(arrays, st.booleans()).map(lambda a: Array(np.asfortranarray(a[0]) if a[1] else a[0]))
).map(ArrayRecord)
metric_records = st.dictionaries(names, numbers | lists).map(MetricRecord)
config_records = st.dictionaries(
    names,
    numbers | lists | listed(st.text(st.characters(exclude_categories=["Cs"]))) | listed(st.booleans())
    | listed(st.binary(max_size=2000)),
).map(ConfigRecord)  # fmt: skip
contents = st.dictionaries(names, array_records | metric_records | config_records, max_size=4).map(RecordDict)


def there_and_back(content: RecordDict) -> RecordDict:
    """As over a wire: the tensors through a file, the rest through a message."""
    tensors, rest = records.parts(content)
    told = msgspec.json.decode(encode(Envelope(id="1", records=rest)), type=Envelope)
    return records.content(read(write(tensors))[0], told.records)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, and NaN is NaN."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other and str(one) == str(other)


def assert_same(found: RecordDict, content: RecordDict) -> None:
    assert list(found) == list(content)
    for name, record in content.items():
        assert type(found[name]) is type(record)
        assert list(found[name]) == list(record)
        for key, value in record.items():
            if isinstance(value, Array):
                other = found[name][key]
                assert (other.dtype, other.shape, other.stype) == (value.dtype, value.shape, value.stype)
                assert other.data == value.data
            else:
                assert same(found[name][key], value), (key, value, found[name][key])


@settings(deadline=None, max_examples=300)
@given(contents)
def test_any_content_comes_out_as_it_went_in(content: RecordDict) -> None:
    assert_same(there_and_back(content), content)


@settings(deadline=None)
@given(array_records)
def test_a_content_of_one_record_is_a_file_of_its_arrays(record: ArrayRecord) -> None:
    tensors, _ = records.parts(RecordDict({"arrays": record, "config": ConfigRecord({"lr": 0.1})}))
    if "__metadata__" not in record:
        assert list(tensors) == list(record)


def test_several_array_records_keep_their_arrays_apart() -> None:
    content = RecordDict(
        {"a": ArrayRecord([np.ones(2)]), "m": MetricRecord({"x": 1}), "b": ArrayRecord([np.zeros(3)])}
    )
    tensors, _ = records.parts(content)
    assert list(tensors) == ["0/0", "2/0"]
    assert_same(there_and_back(content), content)


def test_an_array_of_another_kind_goes_as_its_bytes() -> None:
    content = RecordDict({"a": ArrayRecord({"x": Array("thing", (2, 2), "of.mine", b"\0\1" * 9)})})
    assert_same(there_and_back(content), content)


def test_an_array_of_older_clients_says_nothing_of_itself_and_is_a_tensor_all_the_same() -> None:
    old = Array("", (), "numpy.ndarray", Array(np.asfortranarray(np.ones((2, 3), np.float32))).data)
    content = RecordDict({"fitins.parameters": ArrayRecord({"0": old})})
    tensors, _ = records.parts(content)
    assert tensors["0"].shape == (2, 3)
    assert_same(there_and_back(content), content)
    assert_same(there_and_back(there_and_back(content)), content)


def test_large_bytes_and_long_configs_do_not_go_with_the_message() -> None:
    content = RecordDict(
        {
            "a": ArrayRecord([np.ones(2, np.float32)]),
            "c": ConfigRecord({"blob": b"x" * 100_000, "list": [b"y" * 5000, b"z"], "text": "t" * 50_000}),
        }
    )
    _, rest = records.parts(content)
    assert len(encode(Envelope(id="1", records=rest))) < 1000
    assert_same(there_and_back(content), content)


def test_what_no_message_can_carry_is_said_before_it_is_sent() -> None:
    with pytest.raises(BadConfig, match="at most"):
        records.parts(RecordDict({"c": ConfigRecord({"text": "t" * (17 << 20)})}))


def test_an_array_is_the_callers_own_each_time() -> None:
    found = there_and_back(RecordDict({"a": ArrayRecord([np.ones(3, np.float32)])}))
    array = found["a"]["0"].numpy()
    array += 1
    assert found["a"]["0"].numpy().tolist() == [1, 1, 1]


def test_an_array_that_the_app_has_changed_is_what_it_says() -> None:
    found = there_and_back(RecordDict({"a": ArrayRecord([np.ones(3, np.float32)])}))
    found["a"]["0"].data = Array(np.zeros(3, np.float32)).data
    assert found["a"]["0"].numpy().tolist() == [0, 0, 0]
    assert there_and_back(found)["a"]["0"].numpy().tolist() == [0, 0, 0]


def test_a_lazy_array_is_copied_and_pickled_as_any_other() -> None:
    plain = Array(np.arange(6, dtype=np.int16).reshape(2, 3))
    lazy = LazyArray(np.arange(6, dtype=np.int16).reshape(2, 3))
    for other in (copy.copy(lazy), copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy)), lazy):  # noqa: S301
        assert other == plain
        assert plain == other
    assert lazy.object_id == plain.object_id


# What is stored


def stored(objects: Any, content: RecordDict) -> tuple[Stored, RecordDict]:
    tensors, rest = records.parts(content)
    data = write(tensors)
    objects.put("runs/r/thing", [data])
    at = Stored(objects, "runs/r/thing", header_in(data))
    return at, records.content(at, rest)


@pytest.fixture(params=["memory", "files"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MemoryObjects() if request.param == "memory" else FileObjects(tmp_path)


@pytest.fixture
def model() -> RecordDict:
    large = np.random.default_rng(0).normal(size=(700, 600))
    small = [np.array(3, np.float16), np.zeros((0, 2), bool), np.arange(3)]
    return RecordDict({"arrays": ArrayRecord([large, *small])})


def test_a_stored_content_is_what_was_stored(objects: Any, model: RecordDict) -> None:
    _, found = stored(objects, model)
    assert_same(found, model)
    for array, was in zip(found["arrays"].values(), model["arrays"].values(), strict=True):
        mine = array.numpy()
        assert mine.flags.writeable
        assert mine.flags.aligned
        mine[...] = 0
        assert np.array_equal(array.numpy(), was.numpy())


def test_a_content_that_nobody_changed_is_found_where_it_is(objects: Any, model: RecordDict) -> None:
    at, found = stored(objects, model)
    record = ArrayRecord()
    record.update(found["arrays"])
    assert records.source(record) == "runs/r/thing"
    again = RecordDict({"model": record, "config": ConfigRecord({"server-round": 3})})
    known = records.stored_parts(again)
    assert known is not None
    assert known[0] is at
    assert_same(records.content(at, known[1]), again)
    assert_same(there_and_back(again), again)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("1"),
        lambda record: record.update({"1": Array(np.array(3, np.float16))}),
        lambda record: setattr(record["0"], "data", record["0"].data),
        lambda record: record.update({"0": record.pop("0")}),
    ],
    ids=["less", "another", "set", "order"],
)
def test_a_content_that_was_changed_is_a_new_one(
    objects: Any, model: RecordDict, change: Callable[[ArrayRecord], None]
) -> None:
    _, found = stored(objects, model)
    change(found["arrays"])
    assert records.source(found["arrays"]) is None


def test_the_digest_of_what_is_stored_is_read_once(objects: Any, model: RecordDict) -> None:
    import hashlib

    at, _ = stored(objects, model)
    digest = hashlib.sha256(write(records.parts(model)[0])).hexdigest()
    assert at.digest() == digest
    objects.delete("runs/r/thing")
    assert at.digest() == digest


# What devices may send


@pytest.mark.parametrize(
    "rest",
    [
        None, 7, "x", [7], [["arrays"]], [["what", "x"]], {"in": "0"}, {"in": "nothing"}, {"out": 1},
        [["metrics", "m", [["a", "text"]]]], [["metrics", "m", [["a", {"q": 1}]]]],
        [["config", "c", [["a", {"t": "nothing"}]]]], [["config", "c", [["a", {"b": "%%%"}]]]],
        [["config", "c", [["a", {"t": "0"}], ["b", {"t": "0"}]]]],
        [["arrays", "a", "", {"0": "Q"}]], [["arrays", "a", "", {"0": {"stype": "numpy.ndarray"}}]],
        [["metrics", "m", []]] * 2000,
        [["metrics", "m", [["a", [[[1]]]]]]],
    ],
)  # fmt: skip
def test_what_is_no_content_is_refused_in_one_sentence(rest: Any) -> None:
    with pytest.raises(BadUpdate, match="its records are none"):
        records.content({"0": np.ones(3, np.uint8)}, rest)


def test_bytes_that_say_they_are_an_array_are_looked_at() -> None:
    huge = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    huge += b"{'descr': '<c16', 'fortran_order': False, 'shape': (99999999999,), }".ljust(117) + b"\n"
    odd = {"dtype": "complex128", "shape": [99999999999], "stype": "numpy.ndarray"}
    rest = [["arrays", "a", "", {"0": odd}]]
    with pytest.raises(BadUpdate):
        records.content({"0": np.frombuffer(huge, np.uint8)}, rest)


# For people


def test_the_numbers_of_an_answer_are_those_of_its_metric_records() -> None:
    content = RecordDict(
        {
            "m": MetricRecord({"num-examples": 12, "loss": 0.5, "list": [1.0], "nan": math.nan}),
            "n": MetricRecord({"loss": 0.7}),
            "c": ConfigRecord({"lr": 1.0}),
        }
    )
    assert records.numbers(content) == (
        12,
        {"num-examples": 12.0, "loss": 0.5, "nan": None, "n.loss": 0.7},
    )
    assert records.numbers(RecordDict()) == (1, {})
