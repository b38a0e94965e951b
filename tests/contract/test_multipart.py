"""Uploads in memory and to S3. The S3 is an emulator of our own: tests/s3.py says what it does not show."""

from collections.abc import Callable, Iterator

import boto3
import pytest
from botocore.config import Config

from fleetfold.adapters.memory import MemoryObjects, MemoryUploads
from fleetfold.adapters.multipart import TRIES, Uploads
from fleetfold.adapters.stores import StoreObjects, open_store
from fleetfold.errors import Unavailable
from fleetfold.ports import Objects, fetch
from fleetfold.ports import Uploads as Port
from tests import s3 as emulator
from tests.contract.uploads import LEAST, UploadsContract
from tests.s3 import BUCKET, KEY_ID, REGION, S3, SECRET, serving


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
    return server


class Wait:
    """Counts the waits instead of waiting."""

    def __init__(self) -> None:
        self.failures: list[int] = []

    def __call__(self, failed: int) -> None:
        self.failures.append(failed)


@pytest.fixture
def wait() -> Wait:
    return Wait()


@pytest.fixture
def make(s3: S3, wait: Wait) -> Iterator[Callable[..., Uploads]]:
    clients = []

    def make(bucket: str = BUCKET, secret: str = SECRET, url: str = s3.url) -> Uploads:
        client = boto3.Session().client(
            "s3", endpoint_url=url, region_name=REGION,
            aws_access_key_id=KEY_ID, aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )  # fmt: skip
        clients.append(client)
        return Uploads(client, bucket, "pre/fix", wait=wait)

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def uploads(make: Callable[..., Uploads]) -> Uploads:
    return make()


class TestInMemory(UploadsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return MemoryObjects()

    @pytest.fixture
    def uploads(self, objects: MemoryObjects) -> Port:
        return MemoryUploads(objects)


class TestS3(UploadsContract):
    @pytest.fixture
    def objects(self, s3: S3) -> StoreObjects:
        return open_store(f"s3://{BUCKET}/pre/fix")

    def test_more_parts_than_one_answer_lists_are_put_together(
        self, s3: S3, uploads: Uploads, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(emulator, "LEAST", 1)
        monkeypatch.setattr(emulator, "PAGE", 10)
        upload = uploads.begin("k")
        for number in range(1, 26):
            uploads.put("k", upload, number, bytes([number]))
        s3.asked.clear()
        assert uploads.finish("k", upload, 25)
        assert [method for method, _ in s3.asked] == ["GET"] * 3 + ["POST"]
        assert fetch(objects, "k") == bytes(range(1, 26))


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (409, "OperationAborted"), (500, "InternalError"),
                                    (200, "InternalError")], ids=str)  # fmt: skip
def test_what_s3_asks_for_a_while_later_is_asked_for_again(
    answer: tuple[int, str], s3: S3, uploads: Uploads, wait: Wait
) -> None:
    asked: list[str] = []

    def trouble(method: str, key: str) -> tuple[int, str] | None:
        """Twice for each method; a 200 that says that it failed only of what takes its time: completing."""
        asked.append(method)
        completing = method == "POST" and bool(s3.uploads)
        return answer if asked.count(method) <= 2 and (answer[0] != 200 or completing) else None

    s3.trouble = trouble
    upload = uploads.begin("k")
    asked.clear()
    uploads.put("k", upload, 1, b"a" * LEAST)
    uploads.put("k", upload, 2, b"b")
    asked.clear()
    assert uploads.finish("k", upload, LEAST + 1)
    uploads.abandon("k", upload)
    assert s3.objects == {"pre/fix/k": b"a" * LEAST + b"b"}
    assert s3.uploads == {}
    assert 2 <= len(wait.failures) <= 12


def test_a_store_that_asks_for_a_while_later_each_time_is_unavailable(
    s3: S3, uploads: Uploads, wait: Wait
) -> None:
    s3.trouble = lambda method, key: (503, "SlowDown")
    with pytest.raises(Unavailable, match=r"s3://bucket/pre/fix/k cannot be written in parts: SlowDown"):
        uploads.begin("k")
    assert wait.failures == list(range(TRIES - 1))


def test_a_part_that_is_put_again_after_it_was_listed_is_listed_again(
    s3: S3, uploads: Uploads, wait: Wait
) -> None:
    upload = uploads.begin("k")
    uploads.put("k", upload, 1, b"one")

    def meanwhile(method: str, key: str) -> None:
        if method == "POST" and s3.uploads[upload][1] == b"one":
            s3.uploads[upload][1] = b"two"

    s3.trouble = meanwhile
    assert uploads.finish("k", upload, 3)
    assert wait.failures == [0]
    assert s3.objects == {"pre/fix/k": b"two"}


def test_a_request_whose_answer_is_lost_is_finished_all_the_same(s3: S3, uploads: Uploads) -> None:
    upload = uploads.begin("k")
    uploads.put("k", upload, 1, b"one")

    def lost(method: str, key: str) -> tuple[int, str] | None:
        if method == "POST" and upload in s3.uploads:
            s3.objects["pre/fix/k"] = b"".join(s3.uploads.pop(upload).values())
            del s3.places[upload]
            return 500, "InternalError"
        return None

    s3.trouble = lost
    assert uploads.finish("k", upload, 3)


def test_who_is_denied_and_what_is_not_there_is_told_with_what_to_do(
    make: Callable[..., Uploads], s3: S3, wait: Wait
) -> None:
    with pytest.raises(Unavailable, match=r"denied \(SignatureDoesNotMatch\).*\n  next: aws s3 ls"):
        make(secret="another").begin("k")
    with pytest.raises(Unavailable, match=r"no such bucket\n  next: aws s3 mb s3://other"):
        make(bucket="other").begin("k")
    assert wait.failures == []
    with pytest.raises(Unavailable, match=r"does not answer \(EndpointConnectionError\); nothing is lost"):
        make(url="http://127.0.0.1:1").begin("k")
