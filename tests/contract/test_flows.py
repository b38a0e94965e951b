"""Objects that are read in order, by few requests. The S3 is an emulator of our own (tests/s3.py)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import boto3
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters import multipart, stores
from fleetfold.adapters.flows import TRIES, Flow
from fleetfold.adapters.parted import Parted
from fleetfold.adapters.stores import StoreObjects, open_store
from fleetfold.coordinator.cutting import assemble, fold_part, load, prepare
from fleetfold.errors import Unavailable
from fleetfold.fold.codecs import decode, encode
from fleetfold.fold.kernel import Scratch
from fleetfold.fold.plan import LAMBDA, chunks, plan_fold, stretches
from fleetfold.fold.tensors import header_in, write
from fleetfold.fold.wire import CODECS, Wire
from fleetfold.ledger import Ledger, place
from fleetfold.messages import Form
from fleetfold.ports import fetch
from tests.s3 import BUCKET, REGION, S3, serving
from tests.spec.test_cutting import PATHS, Scene, drawn

DATA = np.random.default_rng(1).bytes(3_000_000)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    server.clear()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "_RETRY", {"max_retries": 0})
    return server


@pytest.fixture
def store(s3: S3) -> StoreObjects:
    store = open_store(f"s3://{BUCKET}")
    store.put("update", [DATA])
    s3.asked.clear()
    return store


def read(flow: Flow, start: int, stop: int, step: int = 70_001) -> bytes:
    """In order, in pieces."""
    found = bytearray(stop - start)
    for at in range(start, stop, step):
        into = memoryview(found)[at - start : at - start + step]
        assert flow.read(at, into) == len(into)
    return bytes(found)


def test_a_span_that_is_read_in_pieces_is_one_request(s3: S3, store: StoreObjects) -> None:
    with closing(store.flow("update", len(DATA), [(1_000, 2_500_000)])) as flow:
        assert read(flow, 1_000, 2_500_000) == DATA[1_000:2_500_000]
    assert s3.asked == [("GET", "update")]


def test_two_spans_that_are_read_by_turns_are_two_requests(s3: S3, store: StoreObjects) -> None:
    with closing(store.flow("update", len(DATA), [(0, 400_000), (1_000_000, 1_400_000)])) as flow:
        for at in range(0, 400_000, 100_000):
            for span in (0, 1_000_000):
                assert read(flow, span + at, span + at + 100_000) == DATA[span + at : span + at + 100_000]
    assert len(s3.asked) == 2


def test_what_is_read_elsewhere_or_again_is_right_and_asked_for_by_itself(
    s3: S3, store: StoreObjects
) -> None:
    with closing(store.flow("update", len(DATA), [(0, 1_000_000)])) as flow:
        assert read(flow, 2_000_000, 2_000_500) == DATA[2_000_000:2_000_500]
        assert read(flow, 500, 900) == read(flow, 500, 900) == DATA[500:900]
        assert flow.read(len(DATA) - 3, memoryview(bytearray(10))) == 3, "no more than there is"
        assert flow.read(len(DATA) + 3, memoryview(bytearray(10))) == 0


def test_of_a_span_of_which_only_some_is_read_little_is_asked_for_at_a_time(
    s3: S3, store: StoreObjects
) -> None:
    with closing(store.flow("update", len(DATA), [(0, len(DATA))], most=100_000)) as flow:
        assert read(flow, 0, 250_000, 10_000) == DATA[:250_000]
    assert len(s3.asked) == 3


def test_an_update_in_parts_is_read_by_its_size_and_nothing_is_listed(
    s3: S3, store: StoreObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART", 1 << 20)
    for number in range(3):
        store.put(layout.part("large", number, 3), [DATA[number << 20 : (number + 1) << 20]])
    s3.asked.clear()
    objects = Parted(store, part=1 << 20)
    assert objects.flow is not None
    with closing(objects.flow("large", len(DATA), [(900_000, 2_900_000)])) as flow:
        assert read(flow, 900_000, 2_900_000) == DATA[900_000:2_900_000]
    assert [(method, key[-12:]) for method, key in s3.asked] == [
        ("GET", f"{number:04}-of-0003") for number in range(3)
    ]


def test_an_update_that_is_whole_though_it_is_large_is_found_after_one_question(
    s3: S3, store: StoreObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART", 1 << 20)
    with closing(store.flow("update", len(DATA), [(0, len(DATA))])) as flow:
        assert read(flow, 0, len(DATA)) == DATA
    assert len(s3.asked) == 2


def test_what_is_gone_or_too_short_or_replaced_meanwhile_is_not_what_it_was(
    s3: S3, store: StoreObjects
) -> None:
    into = memoryview(bytearray(100))
    with closing(store.flow("nothing", 100, [(0, 100)])) as gone, pytest.raises(KeyError):
        gone.read(0, into)
    with closing(store.flow("update", len(DATA) + 100, [])) as short, pytest.raises(KeyError):
        short.read(len(DATA) - 50, into)
    with closing(store.flow("update", len(DATA), [(0, 100), (200, 300)])) as flow:
        assert flow.read(0, into) == 100
        store.put("update", [DATA[::-1]])
        with pytest.raises(KeyError):
            flow.read(200, into)


class _Seen(NamedTuple):
    version: str


class Breaking:
    """A store whose streams break after so many bytes each; `asked`: where they begin."""

    def __init__(self, after: Sequence[int]) -> None:
        self.after, self.asked = iter(after), list[int]()

    def stream(
        self, key: str, start: int, stop: int, version: str | None = None
    ) -> tuple[_Seen, Iterator[memoryview]]:
        self.asked.append(start)
        bytes_left = next(self.after)

        def coming() -> Iterator[memoryview]:
            for at in range(start, min(stop, start + bytes_left), 1_000):
                yield memoryview(DATA)[at : min(at + 1_000, stop, start + bytes_left)]
            if start + bytes_left < stop:
                raise Unavailable("cut off")

        return _Seen("1"), coming()


def test_a_stream_that_breaks_is_gone_on_with_where_it_broke() -> None:
    store = Breaking([2_500, 0, 7_000, 10**9])
    flow = Flow(store, "key", len(DATA), [(0, 50_000)])
    assert read(flow, 0, 50_000, 3_000) == DATA[:50_000]
    assert store.asked == [0, 2_500, 2_500, 9_500]


def test_a_store_whose_streams_break_again_and_again_does_not_answer() -> None:
    store = Breaking([0] * 99)
    with pytest.raises(Unavailable):
        Flow(store, "key", len(DATA), [(0, 50_000)]).read(0, memoryview(bytearray(10)))
    assert len(store.asked) == TRIES


def test_many_may_read_one_object_at_once(store: StoreObjects) -> None:
    with closing(store.flow("update", len(DATA), [(0, len(DATA))])) as flow, ThreadPoolExecutor(8) as pool:
        starts = range(0, len(DATA) - 90_000, 90_000)
        for start, found in zip(starts, pool.map(lambda s: read(flow, s, s + 90_000), starts), strict=True):
            assert found == DATA[start : start + 90_000]


# What of an update a shard needs


@given(
    codec=st.sampled_from(CODECS),
    sizes=st.lists(st.tuples(st.sampled_from(["F32", "F16", "I64", "F64"]), st.integers(1, 30_000)),
                   min_size=1, max_size=5),
    folders=st.integers(1, 4),
)  # fmt: skip
def test_whatever_is_decoded_for_a_shard_lies_in_its_spans(
    codec: str, sizes: list[tuple[str, int]], folders: int
) -> None:
    model = drawn([(code, (n,)) for code, n in sizes], 1)
    header = header_in(write(model))
    form = Form(codec)
    made = write(encode(drawn([(c, (n,)) for c, n in sizes], 2), model, header, form, [3], sent=5).tensors)
    wire, begin = Wire(header, form), header_in(made).begin
    sent = wire.sent(len(made) - begin)
    site = replace(LAMBDA, folders=folders, part=1)
    for shard in plan_fold(header, 2, 1, site).shards:
        spans = wire.spans(shard.start, shard.stop, sent)
        assert spans == sorted(spans)

        def reads(at: int, into: memoryview, spans=spans) -> None:  # type: ignore[no-untyped-def]
            assert not len(into) or any(a <= at and at + len(into) <= b for a, b in spans), (at, len(into))
            into[:] = made[begin + at : begin + at + len(into)]

        for chunk in chunks(stretches(header, [wire]), shard, 20_000):
            if chunk.stretch.is_float:
                wide = np.float64 if chunk.stretch.tensor.dtype == "F64" else np.float32
                out = np.empty(chunk.count, wide)
                decode(wire, sent, reads, chunk.stretch.tensor, chunk.offset, out, Scratch())


@pytest.mark.parametrize("codec", [c for c in CODECS if c != "topk"])
def test_a_shard_asks_once_for_each_span_of_each_update_and_folds_the_same_bytes(s3: S3, codec: str) -> None:
    scene = Scene([("F32", (3_000_000,)), ("I64", (2,))], 3, forms=[Form(codec, delta=codec == "int8")])
    made, expected = scene.expected()
    store = open_store(f"s3://{BUCKET}/p")
    for key in scene.objects.list(""):
        store.put(key, [fetch(scene.objects, key)])
    client = boto3.Session().client("s3", endpoint_url=s3.url, region_name=REGION, config=PATHS)
    uploads = multipart.Uploads(client, BUCKET, "p")
    ledger, given = Ledger(scene.records), (scene.round, scene.arrivals, scene.settings)
    site = replace(LAMBDA, folders=2)
    objects = Parted(store)
    prepare(ledger, objects, uploads, site, *given)
    plan = load(objects, place(scene.round), scene.folding().plan)
    s3.asked.clear()
    fold_part(objects, uploads, plan, 0)
    reads = [key for method, key in s3.asked if method == "GET" and "/updates/" in key]
    assert len(reads) == (2 if codec == "int8" else 1) * len(scene.arrivals), "values, and scales"
    fold_part(objects, uploads, plan, 1)
    found = assemble(ledger, uploads, site, (), objects, *given, scene.header, None)
    client.close()
    assert found == made
    assert s3.objects[f"p/{made.model}"] == expected
