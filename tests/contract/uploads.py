"""What every adapter of Uploads keeps."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fleetfold.errors import Unavailable
from fleetfold.ports import Objects, Uploads, fetch

LEAST = 5 << 20
"""Bytes of a part that is not the last."""


class UploadsContract:
    """Subclass it with fixtures `uploads` and `objects`: where what is finished is found."""

    def test_parts_become_an_object_in_the_order_of_their_numbers_whoever_put_them_when(
        self, uploads: Uploads, objects: Objects
    ) -> None:
        upload = uploads.begin("p/model")
        parts = {7: b"c" * 9, 2: b"a" * LEAST, 5: b"b" * (LEAST + 1)}
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda number: uploads.put("p/model", upload, number, parts[number]), parts))
        assert objects.size("p/model") is None
        assert uploads.finish("p/model", upload, 2 * LEAST + 10)
        assert fetch(objects, "p/model") == parts[2] + parts[5] + parts[7]

    def test_a_part_that_is_put_again_is_there_once(self, uploads: Uploads, objects: Objects) -> None:
        upload = uploads.begin("k")
        for _ in range(2):
            uploads.put("k", upload, 1, bytearray(b"a" * LEAST))
            uploads.put("k", upload, 2, b"b")
        assert uploads.finish("k", upload, LEAST + 1)
        assert fetch(objects, "k") == b"a" * LEAST + b"b"

    def test_it_is_not_finished_while_parts_are_missing(self, uploads: Uploads, objects: Objects) -> None:
        upload = uploads.begin("k")
        assert not uploads.finish("k", upload, 2)
        uploads.put("k", upload, 2, b"b")
        assert not uploads.finish("k", upload, 2)
        assert objects.size("k") is None
        uploads.put("k", upload, 2, b"ab")
        assert uploads.finish("k", upload, 2)

    def test_what_is_finished_is_finished_again_and_takes_no_more_parts(
        self, uploads: Uploads, objects: Objects
    ) -> None:
        upload = uploads.begin("k")
        uploads.put("k", upload, 1, b"whole")
        assert uploads.finish("k", upload, 5)
        assert uploads.finish("k", upload, 5)
        with pytest.raises(KeyError):
            uploads.put("k", upload, 1, b"other")
        with pytest.raises(KeyError):
            uploads.finish("k", upload, 6)
        uploads.abandon("k", upload)
        assert fetch(objects, "k") == b"whole"

    def test_what_is_abandoned_is_gone_and_may_be_abandoned_again(
        self, uploads: Uploads, objects: Objects
    ) -> None:
        upload = uploads.begin("k")
        uploads.put("k", upload, 1, b"x")
        uploads.abandon("k", upload)
        uploads.abandon("k", upload)
        with pytest.raises(KeyError):
            uploads.put("k", upload, 1, b"x")
        with pytest.raises(KeyError):
            uploads.finish("k", upload, 1)
        assert objects.size("k") is None

    def test_of_two_uploads_of_one_object_each_has_its_own_parts(
        self, uploads: Uploads, objects: Objects
    ) -> None:
        one, other = uploads.begin("k"), uploads.begin("k")
        uploads.put("k", one, 1, b"one")
        uploads.put("k", other, 1, b"other")
        uploads.abandon("k", one)
        assert uploads.finish("k", other, 5)
        assert fetch(objects, "k") == b"other"

    def test_an_object_is_not_made_of_parts_that_are_too_small(
        self, uploads: Uploads, objects: Objects
    ) -> None:
        upload = uploads.begin("k")
        uploads.put("k", upload, 1, b"a" * (LEAST - 1))
        uploads.put("k", upload, 2, b"b")
        with pytest.raises(Unavailable):
            uploads.finish("k", upload, LEAST)
        assert objects.size("k") is None

    def test_there_may_be_more_parts_than_one_list_of_them_names(
        self, uploads: Uploads, objects: Objects
    ) -> None:
        upload = uploads.begin("k")
        for number in (1, 400, 10_000):
            uploads.put("k", upload, number, bytes([number % 251]) * LEAST)
        assert uploads.finish("k", upload, 3 * LEAST)
        assert fetch(objects, "k")[::LEAST] == bytes([1, 400 % 251, 10_000 % 251])
