"""The file of tensors: what is written here others read, and what others write must be exact to be read."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fleetfold.errors import BadUpdate
from fleetfold.fold.tensors import DTYPES, PREFIX, Tensors, header_length, parse_header, read, write

SOME: Tensors = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "mask": np.array([True, False]),
}

any_tensors = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda code: arrays.arrays(
            DTYPES[code], arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
        )
    ),
    max_size=5,
)


def same(ours: Tensors, theirs: Tensors) -> bool:
    return list(ours) == list(theirs) and all(
        ours[n].dtype == theirs[n].dtype and ours[n].tobytes() == theirs[n].tobytes() for n in ours
    )


@given(any_tensors)
def test_what_was_written_is_read_back_in_order(tensors: Tensors) -> None:
    back, metadata = read(write(tensors, b'{"a":1}'))
    assert metadata == b'{"a":1}'
    assert {n: a.shape for n, a in back.items()} == {n: a.shape for n, a in tensors.items()}
    nonempty = [n for n in tensors if tensors[n].size]
    assert same({n: tensors[n] for n in nonempty}, {n: back[n] for n in back if n in nonempty})


def test_the_safetensors_library_reads_ours_and_we_read_its() -> None:
    assert {n: a.tolist() for n, a in safetensors.numpy.load(write(SOME)).items()} == {
        n: a.tolist() for n, a in SOME.items()
    }
    theirs, _ = read(safetensors.numpy.save(SOME))
    assert all((theirs[name] == SOME[name]).all() for name in SOME)


def test_the_same_tensors_make_the_same_bytes_and_are_aligned() -> None:
    data = write(SOME)
    assert data == write(dict(SOME))
    assert header_length(data[:PREFIX], len(data), 1 << 20) % 64 == 0


def test_what_is_read_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        read(write(SOME))[0]["w"][0, 0] = 9


def test_a_dtype_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(BadUpdate, match="complex128"):
        write({"z": np.zeros(2, np.complex128)})


def forged(table: object, body: int) -> bytes:
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * body


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "cut off"),
        (b"\xff" * 8, "header of"),
        ((99).to_bytes(8, "little") + b"{}", "cut off"),
        (forged([], 0), "not a table"),
        (forged({"w": {"dtype": "F32"}}, 4), "not a table"),
        (forged({"w": entry([1], 0, 4)}, 3), "cut off"),
        (forged({"w": entry([1], 0, 4)}, 5), "too long"),
        (forged({"w": entry([2], 0, 4)}, 4), "not those of its shape"),
        (forged({"w": entry([-1], 0, -4)}, 4), "do not say where it lies"),
        (forged({"w": entry([1], 0, 4)}, 4).replace(b"[0, 4]", b"[-0,4]"), "do not say where it lies"),
        (forged({"w": entry([2**40, 2**40], 0, 4)}, 4), "not those of its shape"),
        (forged({"w": entry([1], 0, 4), "v": entry([1], 0, 4)}, 4), "expected"),
        (forged({"w": entry([1], 4, 8)}, 8), "expected"),
        (forged({"w": entry([1], 0, 4, "F31")}, 4), "unknown dtype"),
        (forged({"w": entry([1], 0, 4), "__metadata__": 3}, 4), "not a table"),
        (b"\x02\0\0\0\0\0\0\0\xff\xfe", "not a table"),
    ],
)
def test_a_forged_file_is_refused_with_its_reason(file: bytes, said: str) -> None:
    with pytest.raises(BadUpdate, match=said):
        read(file)


TABLE = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
OURS = b'{"__metadata__":{"fleetfold":"%s"},'


def file(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + b"\0\0\0\0"


def test_a_table_that_was_seen_before_says_the_same_beside_other_metadata() -> None:
    for about in (b"first", b"and another, which is longer", b"first"):
        for spaces in (b"", b"  "):
            data = file(OURS % about + TABLE + b"}" + spaces)
            tensors, metadata = read(data)
            assert metadata == about
            assert {name: array.shape for name, array in tensors.items()} == {"w": (1,)}
            with pytest.raises(BadUpdate, match="cut off"):
                read(data[:-1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OURS % b"x" + b"}", "not a table"),
        (OURS % b"x" + TABLE + b",}", "not a table"),
        (OURS % b"x" + TABLE + b"}}", "not a table"),
        (OURS % b"x" + TABLE + b',"__metadata__":{"fleetfold":"y"}}', "'__metadata__' twice"),
        (OURS % b"x" + TABLE + b"," + TABLE + b"}", "'w' twice"),
        (OURS % rb"x\u" + TABLE + b"}", "not a table"),
    ],
)
def test_metadata_that_stands_first_makes_no_other_table_of_what_is_none(text: bytes, said: str) -> None:
    read(file(OURS % b"x" + TABLE + b"}"))
    for _ in range(2):
        with pytest.raises(BadUpdate, match=said):
            read(file(text))


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(noise: bytes) -> None:
    for data in (noise, len(noise).to_bytes(8, "little") + noise):
        try:
            read(data)
        except BadUpdate:
            continue
        parse_header(data, len(data))
