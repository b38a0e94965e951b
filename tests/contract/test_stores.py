"""Objects in a store. The S3 is an emulator of our own: tests/s3.py says what it does not show."""

import http.client
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from obstore.store import LocalStore, MemoryStore

from fleetfold.adapters import stores
from fleetfold.adapters.faults import Died
from fleetfold.adapters.stores import AHEAD, PART, WHOLE, StoreObjects, open_store
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.ports import Objects, fetch
from tests.contract.objects import ObjectsContract
from tests.s3 import BUCKET, PAGE, S3, serving

URL = f"s3://{BUCKET}/pre/fix"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, empty, and known by the environment."""
    server.clear()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "_RETRY", {"max_retries": 0})
    return server


@pytest.fixture
def store(s3: S3) -> StoreObjects:
    store = open_store(URL)
    s3.asked.clear()
    return store


class TestAStoreInMemory(ObjectsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return StoreObjects(MemoryStore(), "memory:")


class TestAStoreOfFiles(ObjectsContract):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        return StoreObjects(LocalStore(tmp_path), "file:")


class TestS3(ObjectsContract):
    @pytest.fixture
    def objects(self, store: StoreObjects) -> Objects:
        return store


def test_a_large_object_goes_in_parts_and_a_small_one_in_one_request(s3: S3, store: StoreObjects) -> None:
    store.put("small", iter([b"x" * (WHOLE - 1), b"y"]))
    assert [method for method, _ in s3.asked] == ["PUT"]
    assert s3.objects["pre/fix/small"] == b"x" * (WHOLE - 1) + b"y"
    s3.asked.clear()
    store.put("large", (b"x" * 1_000_003 for _ in range(52)))
    assert sorted(method for method, _ in s3.asked) == ["POST", "POST", *7 * ["PUT"]]
    assert {key for _, key in s3.asked} == {"pre/fix/large"}
    s3.asked.clear()
    assert fetch(store, "large") == b"x" * 52_000_156
    assert [method for method, _ in s3.asked] == ["HEAD"] + 8 * ["GET"]


@pytest.mark.parametrize("why", [LookupError("unfit"), OSError("a disk"), Died()], ids=repr)
def test_a_large_object_that_is_broken_off_leaves_no_part_behind(
    why: BaseException, s3: S3, store: StoreObjects
) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * (WHOLE + PART + 1)
        raise why

    with pytest.raises(type(why)) as raised:
        store.put("p/broken", broken())
    assert raised.value is why
    assert ("DELETE", "pre/fix/p/broken") in s3.asked
    assert (s3.uploads, s3.objects) == ({}, {})


def test_the_head_of_an_object_costs_one_request_however_it_is_read(s3: S3, store: StoreObjects) -> None:
    store.put("k", [b"h" * AHEAD, b"t" * 100])
    s3.asked.clear()
    with closing(store.open("k")) as reader:
        for offset, length in ((0, 8), (0, 500), (AHEAD - 1, 1)):
            assert reader.read(offset, memoryview(bytearray(length))) == length
        assert len(s3.asked) == 1
        assert reader.read(AHEAD - 1, into := memoryview(bytearray(3))) == 3
        assert (bytes(into), len(s3.asked)) == (b"htt", 2)
        assert reader.read(AHEAD + 100, into) == 0
        assert len(s3.asked) == 2


def test_more_keys_than_fit_one_answer_are_listed(s3: S3, store: StoreObjects) -> None:
    for number in range(PAGE + 5):
        s3.objects[f"pre/fix/p/{number:04}"] = b""
    assert store.list("p/") == [f"p/{number:04}" for number in range(PAGE + 5)]


def asked(
    url: str, method: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """What a device gets that asks with the standard library alone."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.netloc, timeout=20)) as connection:
        connection.request(method, f"{place.path}?{place.query}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def test_a_device_fetches_and_delivers_by_signed_addresses(store: StoreObjects) -> None:
    store.put("model", [b"the model"])
    fetching = store.to_fetch("model", "d1", 60)
    assert asked(fetching, "GET")[:2] == (200, b"the model")
    status, body, headers = asked(fetching, "GET", Range="bytes=4-")
    assert (status, body, headers["Content-Range"]) == (206, b"model", "bytes 4-8/9")
    assert asked(store.to_deliver("update", "d1", 60, 6), "PUT", b"update")[0] == 200
    assert fetch(store, "update") == b"update"


def test_a_signed_address_is_good_for_its_method_its_key_and_its_time_alone(
    s3: S3, store: StoreObjects
) -> None:
    store.put("model", [b"m"])
    fetching, delivering = store.to_fetch("model", "d1", 60), store.to_deliver("update", "d1", 60, 9)
    for method in ("HEAD", "PUT", "DELETE"):
        assert asked(fetching, method, b"evil")[0] == 403
    for method in ("HEAD", "GET", "DELETE"):
        assert asked(delivering, method)[0] == 403
    for other in (
        delivering.replace("/update?", "/model?"),
        delivering.replace("X-Amz-Expires=60", "X-Amz-Expires=61"),
        delivering[:-1] + ("0" if delivering[-1] != "0" else "1"),
        delivering.partition("?")[0],
    ):
        assert asked(other, "PUT", b"evil")[0] == 403
    s3.ahead = 62.0
    assert asked(fetching, "GET")[0] == asked(delivering, "PUT", b"late")[0] == 403
    assert s3.objects == {"pre/fix/model": b"m"}


def test_a_stores_address_bounds_no_size_and_may_be_used_again_so_a_reader_keeps_to_what_it_saw(
    store: StoreObjects,
) -> None:
    delivering = store.to_deliver("update", "d1", 60, most=4)
    assert asked(delivering, "PUT", b"a" * AHEAD * 2)[0] == 200
    with closing(store.open("update")) as reader:
        assert asked(delivering, "PUT", b"b" * AHEAD * 2)[0] == 200
        with pytest.raises(KeyError):
            reader.read(AHEAD, memoryview(bytearray(10)))
    assert asked(delivering, "PUT", b"c", If_None_Match="*")[0] == 200  # no such header
    assert asked(delivering, "PUT", b"d", **{"If-None-Match": "*"})[0] == 412


def test_no_signature_is_good_for_longer_than_it_can_be(
    store: StoreObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def good(store: StoreObjects, seconds: float) -> int:
        return int(parse_qs(urlsplit(store.to_fetch("k", "d", seconds)).query)["X-Amz-Expires"][0])

    assert [good(store, seconds) for seconds in (0.1, 90.7, 1e9)] == [1, 90, 7 * 86_400]
    monkeypatch.setenv("AWS_SESSION_TOKEN", "passing")
    assert good(open_store(URL), 1e9) == 3_600


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "/tmp/x",
        "file:///tmp",
        "http://127.0.0.1/b",
        "s3://",
        "s3:///k",
        "s3://b?x=1",
        "s3://[/",
    ],
)
def test_a_url_that_is_no_store_is_told_with_what_would_be_one(url: str) -> None:
    with pytest.raises(BadConfig, match=r"s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"):
        open_store(url)


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(BadConfig, match="environment") as told:
        open_store("s3://key:secret@bucket/p")
    assert "secret" not in str(told.value)


def test_what_a_vendor_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadConfig, match="Account must be specified"):
        open_store("az://container/p")


def test_without_tls_only_a_store_on_this_machine_is_used(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    with pytest.raises(BadConfig, match=r"AWS_ENDPOINT_URL is http://store\.example.*\n.*https://"):
        open_store(URL)


def test_a_bucket_that_is_not_there_is_told_with_the_command_that_makes_it(
    s3: S3, store: StoreObjects
) -> None:
    with pytest.raises(Unavailable, match=r"no such bucket\n  next: aws s3 mb s3://other$"):
        open_store("s3://other/p")
    gone = StoreObjects(stores.from_url("s3://other", client_options={"allow_http": True}), "s3://other")
    for work in (lambda: gone.put("k", [b""]), lambda: gone.open("k"), lambda: gone.delete("k")):
        with pytest.raises(Unavailable, match="no such bucket"):
            work()


def test_who_is_denied_is_told_what_must_be_allowed(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(
        Unavailable, match=r"denied \(SignatureDoesNotMatch\).*\n  next: aws s3 ls s3://bucket$"
    ):
        open_store(URL)


def test_a_store_that_does_not_answer_is_told_with_its_place(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"s3://bucket/pre/fix.*does not answer; nothing is lost"):
        open_store(URL)


def test_a_machine_without_keys_and_role_is_told_so(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"no credentials.*\n  next: export AWS_ACCESS_KEY_ID"):
        open_store(URL)
