"""The plan: where a model is cut, how much is read at once, and what that will cost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fleetfold.fold.fold import CELL
from fleetfold.fold.plan import CUT, LAMBDA, LAPTOP, PART, Site, chunks, plan_fold, stretches
from fleetfold.fold.tensors import Header, parse_header, write_header
from fleetfold.fold.wire import BLOCK, PAGE


def model(*tensors: tuple[str, int]) -> Header:
    layout = {f"t{k}": (code, (n,)) for k, (code, n) in enumerate(tensors)}
    head = write_header(layout, b"{}")
    sizes = {"F32": 4, "F16": 2, "I64": 8}
    return parse_header(head, len(head) + sum(n * sizes[code] for code, n in tensors))


LARGE = model(*[("F32", 500_000)] * 50)


def test_one_machine_folds_one_shard_with_two_threads() -> None:
    found = plan_fold(LARGE, 20, 100_000_000, LAPTOP)
    assert len(found.shards) == 1
    assert (found.threads, found.depth) == (2, 1)
    assert "one shard" in found.reason
    assert found.read == 2_000_000_000


def test_a_small_model_is_one_shard_on_s3_for_no_part_may_be_under_5_mib() -> None:
    found = plan_fold(model(("F32", 100_000)), 10_000, 400_000, LAMBDA)
    assert len(found.shards) == 1
    assert "5 MiB" in found.reason
    assert found.groups == 40, "of 256 updates each, summed apart"


def test_every_part_but_the_last_has_5_mib_and_there_are_no_more_than_folders() -> None:
    for tensors in (LARGE, model(("F32", 3_000_000), ("I64", 70_000), ("F16", 2_000_000))):
        found = plan_fold(tensors, 20, 1, LAMBDA)
        sizes = [s.stop - s.start for s in found.shards]
        assert all(size >= PART for size in sizes[:-1])
        assert 1 < len(sizes) <= LAMBDA.folders


@given(
    st.lists(
        st.tuples(st.sampled_from(["F32", "F16", "I64"]), st.integers(0, 200_000)), min_size=1, max_size=6
    ),
    st.integers(1, 40),
    st.integers(1, 300_000),
)
def test_no_shard_but_the_last_is_smaller_than_a_part(
    tensors: list[tuple[str, int]], folders: int, part: int
) -> None:
    header = model(*tensors)
    site = Site(name="here", bandwidth=1.0, folders=folders, part=part)
    *most, _ = plan_fold(header, 3, 1, site).shards
    assert all(shard.stop - shard.start >= part for shard in most)
    assert len(most) < folders


def test_reads_in_flight_cover_the_latency_within_the_memory() -> None:
    found = plan_fold(LARGE, 20, 100_000_000, LAMBDA)
    assert found.depth > 1
    assert found.depth * found.chunk * 8 <= LAMBDA.memory
    assert f"{found.depth} reads" in found.reason
    tight = Site(name="a small Lambda", bandwidth=57e6, latency=0.03, folders=40, memory=8 << 20, part=PART)
    assert plan_fold(LARGE, 20, 100_000_000, tight).depth <= found.depth


def test_what_it_costs_follows_from_bytes_bandwidth_and_requests() -> None:
    few, many = (plan_fold(LARGE, n, 100_000_000, LAMBDA) for n in (10, 100))
    assert many.read == 10 * few.read
    assert many.requests > 9 * few.requests
    assert many.seconds > 9 * few.seconds
    halved = plan_fold(LARGE, 10, 26_000_000, LAMBDA)
    assert halved.seconds < few.seconds, "int8 moves a quarter of the bytes"


@given(
    st.lists(
        st.tuples(st.sampled_from(["F32", "F16", "I64"]), st.integers(0, 200_000)), min_size=1, max_size=6
    ),
    st.integers(1, 9),
    st.integers(1, 10**6),
)
def test_shards_and_chunks_cover_every_byte_once_and_are_cut_where_every_codec_may_be(
    tensors: list[tuple[str, int]], folders: int, most: int
) -> None:
    header = model(*tensors)
    shards = plan_fold(header, 3, 1, Site(name="here", bandwidth=1.0, folders=folders, part=1)).shards
    whole = header.size - header.begin
    assert [s.start for s in shards] == [0, *[s.stop for s in shards[:-1]]]
    assert shards[-1].stop == whole
    found = stretches(header)
    at = 0
    for shard in shards:
        pieces = list(chunks(found, shard, most))
        for piece in pieces:
            assert piece.start == at
            assert 0 < piece.count <= most
            at += piece.count * {"F32": 4, "F16": 2, "I64": 8}[piece.stretch.tensor.dtype]
        assert at == shard.stop
        first = pieces[0] if pieces else None
        if first and first.stretch.is_float and first.offset:
            assert first.first % CUT == 0
    assert at == whole
    assert CUT % CELL == CUT % BLOCK == PAGE % CUT == 0


def test_a_model_beyond_4_gib_is_cut_like_any_other() -> None:
    huge = model(("F32", 1 << 30), ("F32", 1 << 30))
    found = plan_fold(huge, 4, 8 << 30, LAMBDA)
    assert len(found.shards) == 40
    assert found.shards[-1].stop == 8 << 30
    assert np.ptp([s.stop - s.start for s in found.shards[:-1]]) <= 4 * PAGE
