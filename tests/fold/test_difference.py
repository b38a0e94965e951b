"""The difference of two models: it makes the other model to the last bit, and nothing else."""

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfold.errors import BadUpdate
from fleetfold.fold import difference
from fleetfold.fold.difference import CHUNK, HEAD, MAGIC, Read, decode, encode
from fleetfold.fold.tensors import write


def of(data: bytes) -> Read:
    def read(offset: int, into: memoryview) -> int:
        part = data[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    return read


def encoded(old: bytes, new: bytes) -> bytes:
    return b"".join(encode(of(old), of(new), len(old)))


def decoded(old: bytes, found: bytes) -> bytes:
    return b"".join(decode(old, found))


@st.composite
def twins(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two files of the same length, alike in part."""
    old = draw(st.binary(max_size=300)) * draw(st.integers(1, 40))
    new = bytearray(old)
    for place in draw(st.lists(st.integers(0, max(0, len(old) - 1)), max_size=20)):
        new[place : place + 1] = draw(st.binary(min_size=1, max_size=1))[: len(old)]
    return old, bytes(new)


@given(twins(), st.sampled_from([4, 16, 1024]))
def test_what_was_taken_apart_is_put_together_to_the_last_bit(pair: tuple[bytes, bytes], chunk: int) -> None:
    old, new = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "CHUNK", chunk)
        assert decoded(old, encoded(old, new)) == new


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_any_size_will_do(size: int) -> None:
    chance = np.random.default_rng(size)
    old, new = chance.bytes(size), chance.bytes(size)
    assert decoded(old, encoded(old, new)) == new


@pytest.mark.parametrize("word", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_words_that_wrap_around_come_back(word: int) -> None:
    for other in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        old, new = word.to_bytes(4, "little"), other.to_bytes(4, "little")
        assert decoded(old, encoded(old, new)) == new


def model(chance: np.random.Generator) -> dict[str, np.ndarray]:
    return {f"layer{k}": chance.normal(0, 0.05, 20_000).astype(np.float32) for k in range(100)}


def test_a_model_that_moved_by_a_thousandth_takes_half() -> None:
    chance = np.random.default_rng(0)
    old = model(chance)
    new = {n: (a * (1 + chance.normal(0, 1e-3, a.shape))).astype(np.float32) for n, a in old.items()}
    found = encoded(write(old), write(new))
    assert len(found) < 0.52 * len(write(new))
    assert decoded(write(old), found) == write(new)


def test_a_model_of_which_one_tensor_in_a_hundred_changed_takes_a_hundredth() -> None:
    old = model(np.random.default_rng(0))
    new = old | {"layer7": old["layer7"] + np.float32(0.01)}
    found = encoded(write(old), write(new))
    assert len(found) < 0.015 * len(write(new))
    assert decoded(write(old), found) == write(new)


def test_files_of_two_sizes_have_none() -> None:
    for old, new, size in ((b"abc", b"abcd", 3), (b"abcd", b"abc", 4), (b"", b"a", 0), (b"a", b"", 1)):
        with pytest.raises(BadUpdate, match="no difference"):
            encode(of(old), of(new), size)


def test_the_one_of_another_model_is_refused_before_anything_is_made() -> None:
    with pytest.raises(BadUpdate, match="no difference to a file of 5 bytes"):
        next(decode(b"12345", encoded(b"1234", b"4321")))


def test_one_that_is_cut_off_anywhere_is_refused() -> None:
    old, new = b"a" * 64, b"a" * 60 + b"bcde"
    whole = encoded(old, new)
    for cut in range(len(whole)):
        with pytest.raises(BadUpdate):
            decoded(old, whole[:cut])
    with pytest.raises(BadUpdate, match="goes on"):
        decoded(old, whole + b"\0")


def forged(size: int, packed: bytes) -> bytes:
    return MAGIC + size.to_bytes(8, "little") + len(packed).to_bytes(4, "little") + packed


def test_one_that_would_grow_without_end_is_refused_after_as_much_as_the_model_has() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    with pytest.raises(BadUpdate, match="not of 64 bytes"):
        decoded(b"a" * 64, forged(64, bomb))


@pytest.mark.parametrize(
    "packed",
    [b"no zlib", zlib.compress(b"short"), zlib.compress(bytes(64)) + b"more", zlib.compress(bytes(64))[:-1]],
)
def test_a_chunk_that_is_not_what_it_has_to_be_is_refused(packed: bytes) -> None:
    with pytest.raises(BadUpdate, match="a chunk of the difference"):
        decoded(b"a" * 64, forged(64, packed))


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_no_bytes_do_more_than_be_refused(old: bytes, noise: bytes) -> None:
    for found in (noise, MAGIC + len(old).to_bytes(8, "little") + noise, forged(len(old), noise)):
        try:
            assert len(decoded(old, found)) == len(old)
        except BadUpdate:
            continue


def test_neither_side_reads_ahead_of_what_it_gives_out() -> None:
    size, asked = 8 * CHUNK, list[int]()

    def read(offset: int, into: memoryview) -> int:
        asked.append(offset)
        into[:] = bytes(len(into))
        return len(into) if offset < size - 1 else 1

    pieces: Iterator[bytes] = encode(read, read, size)
    assert len(next(pieces)) == HEAD
    next(pieces)
    assert max(asked[2:]) == 0
