"""What every adapter of Objects keeps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from fleetfold.ports import Objects, Reader, fetch, read


class ObjectsContract:
    """Subclass it with a fixture `objects`."""

    def test_what_was_put_is_read_back_whole_and_by_range(self, objects: Objects) -> None:
        assert objects.put("a/b", [b"hello ", memoryview(b"world")]) == 11
        assert fetch(objects, "a/b") == b"hello world"
        assert read(objects, "a/b", 6, 5) == b"world"

    def test_a_range_past_the_end_is_read_as_far_as_it_goes(self, objects: Objects) -> None:
        objects.put("k", [b"abc"])
        assert read(objects, "k", 2, 5) == b"c"
        assert read(objects, "k", 9, 5) == b""

    def test_what_is_open_is_read_by_several_threads(self, objects: Objects) -> None:
        objects.put("k", [bytes(range(256)) * 640])
        with closing(objects.open("k")) as reader:
            assert in_threads(reader, 640) == [bytes(range(256))] * 640

    def test_what_was_begun_is_read_on_or_gone_and_never_other_bytes(self, objects: Objects) -> None:
        objects.put("k", [b"a" * 100_000])
        with closing(objects.open("k")) as reader:
            assert reader.read(0, memoryview(bytearray(1))) == 1
            for change in (lambda: objects.put("k", [b"b" * 100_000]), lambda: objects.delete("k")):
                change()
                into = bytearray(10)
                with suppress(KeyError):
                    reader.read(99_990, memoryview(into))
                    assert into == b"a" * 10

    def test_what_is_not_there_has_no_size_and_cannot_be_read(self, objects: Objects) -> None:
        assert objects.size("nothing") is None
        with pytest.raises(KeyError):
            read(objects, "nothing", 0, 1)

    def test_an_empty_object_is_there(self, objects: Objects) -> None:
        objects.put("empty", [b""])
        assert objects.size("empty") == 0
        assert fetch(objects, "empty") == b""

    def test_keys_are_listed_below_their_prefix_in_order(self, objects: Objects) -> None:
        for key in ("p/b", "p/a", "p/c/d", "pq/x"):
            objects.put(key, [b"1"])
        assert objects.list("p/") == ["p/a", "p/b", "p/c/d"]
        assert objects.list("none/") == []

    def test_a_write_that_is_broken_off_leaves_nothing(self, objects: Objects) -> None:
        def broken() -> Iterator[bytes]:
            yield b"x" * 100_000
            raise LookupError("the fold found an unfit update")

        with pytest.raises(LookupError):
            objects.put("p/broken", broken())
        assert objects.size("p/broken") is None
        assert objects.list("p/") == []

    def test_a_stream_of_many_parts_arrives_in_order(self, objects: Objects) -> None:
        parts = [bytes([i % 251]) * 70_000 for i in range(200)]
        assert objects.put("big", iter(parts)) == 14_000_000
        assert fetch(objects, "big") == b"".join(parts)

    def test_the_same_bytes_may_be_put_again(self, objects: Objects) -> None:
        objects.put("again", [b"same"])
        objects.put("again", [b"same"])
        assert fetch(objects, "again") == b"same"

    def test_what_was_deleted_is_gone_and_may_be_deleted_again(self, objects: Objects) -> None:
        objects.put("p/gone", [b"1"])
        objects.delete("p/gone")
        objects.delete("p/gone")
        assert objects.size("p/gone") is None


class HeldObjectsContract(ObjectsContract):
    """Of those that keep what is open for as long as it is."""

    def test_what_is_open_is_read_on_when_its_name_is_gone(self, objects: Objects) -> None:
        objects.put("k", [bytes(range(256)) * 64])
        with closing(objects.open("k")) as reader:
            objects.delete("k")
            assert in_threads(reader, 64) == [bytes(range(256))] * 64


def in_threads(reader: Reader, parts: int) -> list[bytes]:
    """So many parts of 256 bytes."""

    def part(k: int) -> bytes:
        into = bytearray(256)
        assert reader.read(256 * k, memoryview(into)) == 256
        return bytes(into)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(part, range(parts)))
