"""Objects in parts read like one, or as if nothing were there."""

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfold import layout
from fleetfold.adapters.memory import MemoryObjects
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.parted import Parted
from fleetfold.ports import Objects, fetch, read
from tests.contract.objects import ObjectsContract

PART = 10
WHOLE = bytes(range(25))


def in_parts(objects: Objects, key: str, data: bytes, part: int = PART) -> list[str]:
    pieces = [data[k : k + part] for k in range(0, len(data), part)]
    keys = [layout.part(key, k, len(pieces)) for k in range(len(pieces))]
    for name, piece in zip(keys, pieces, strict=True):
        objects.put(name, [piece])
    return keys


class TestPartedInMemory(ObjectsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return Parted(MemoryObjects())


class TestPartedFiles(ObjectsContract):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        return Parted(FileObjects(tmp_path))


@pytest.fixture(params=["memory", "files"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return MemoryObjects() if request.param == "memory" else FileObjects(tmp_path)


def gone(objects: Objects, key: str) -> bool:
    with pytest.raises(KeyError):
        objects.open(key)
    return objects.size(key) is None and objects.list("u/") == []


@given(
    data=st.binary(min_size=1, max_size=200),
    part=st.integers(1, 64),
    ranges=st.lists(st.tuples(st.integers(0, 220), st.integers(0, 220)), max_size=20),
)
def test_any_cut_into_parts_reads_like_the_whole(
    data: bytes, part: int, ranges: list[tuple[int, int]]
) -> None:
    plain, whole = MemoryObjects(), MemoryObjects()
    in_parts(plain, "u/d", data, part)
    whole.put("u/d", [data])
    objects = Parted(plain, part=part)
    assert objects.size("u/d") == len(data)
    assert fetch(objects, "u/d") == data
    for offset, length in ranges:
        assert read(objects, "u/d", offset, length) == read(whole, "u/d", offset, length)


def test_parts_are_listed_as_the_one_object_that_they_are(plain: Objects) -> None:
    parts = in_parts(plain, "u/b", WHOLE)
    plain.put("u/a", [b"whole"])
    plain.put("u/c", [b"both"])
    in_parts(plain, "u/c", WHOLE)
    objects = Parted(plain, part=PART)
    assert objects.list("u/") == ["u/a", "u/b", "u/c"]
    assert objects.list("u/b.parts/") == []
    assert objects.size(parts[2]) == 5, "a part's own key is there for who knows it"


def test_what_is_there_whole_is_read_whole(plain: Objects) -> None:
    in_parts(plain, "u/d", WHOLE)
    plain.put("u/d", [b"whole"])
    objects = Parted(plain, part=PART)
    assert (fetch(objects, "u/d"), objects.size("u/d")) == (b"whole", 5)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_while_a_part_is_missing_there_is_nothing(plain: Objects, missing: int) -> None:
    plain.delete(in_parts(plain, "u/d", WHOLE)[missing])
    assert gone(Parted(plain, part=PART), "u/d")


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("u/d.parts/0000-of-0002", b"0123456789"),  # of another cut
        ("u/d.parts/0003-of-0003", b"01234"),  # beyond its own total
        ("u/d.parts/0000-of-0003", b"012345678"),  # shorter than a part, and not the last
        ("u/d.parts/0001-of-0003", b"0123456789a"),  # longer than a part
        ("u/d.parts/0002-of-0003", b"0123456789a"),
        ("u/d.parts/0002-of-0003", b""),
    ],
)
def test_a_set_that_contradicts_itself_is_nothing(plain: Objects, key: str, data: bytes) -> None:
    in_parts(plain, "u/d", WHOLE)
    plain.put(key, [data])
    objects = Parted(plain, part=PART)
    assert gone(objects, "u/d")
    objects.delete("u/d")
    assert plain.list("u/") == []


@pytest.mark.parametrize(
    "name",
    ["0-of-3", "0001-of-0003x", "+001-of-0003", "0001_of_0003", "00010-of-0003", "٠٠٠١-of-0003", "x"],
)
def test_a_name_that_is_not_quite_a_parts_is_an_object_like_any_other(plain: Objects, name: str) -> None:
    in_parts(plain, "u/d", WHOLE)
    plain.put(f"u/d.parts/{name}", [b"?"])
    objects = Parted(plain, part=PART)
    assert objects.list("u/") == ["u/d", f"u/d.parts/{name}"]
    assert fetch(objects, "u/d") == WHOLE


def test_what_is_deleted_is_gone_in_both_forms(plain: Objects) -> None:
    in_parts(plain, "u/d", WHOLE)
    plain.put("u/d", [b"whole"])
    in_parts(plain, "u/e", WHOLE)
    Parted(plain, part=PART).delete("u/d")
    assert plain.list("u/") == [layout.part("u/e", k, 3) for k in range(3)]


def test_an_object_in_parts_that_is_open_is_read_on_when_its_name_is_gone(plain: Objects) -> None:
    in_parts(plain, "u/d", WHOLE)
    objects = Parted(plain, part=PART)
    with closing(objects.open("u/d")) as reader:
        objects.delete("u/d")
        into = bytearray(25)
        assert reader.read(0, memoryview(into)) == 25
    assert bytes(into) == WHOLE
