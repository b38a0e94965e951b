"""Records in DynamoDB. The table is an emulator's: tests/aws/moto_double.py says what it does not show."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest

from fleetfold.adapters import boto
from fleetfold.adapters.dynamo import MOST, SPREAD, DynamoRecords
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.ports import Record, Records
from tests.aws.conftest import Aws
from tests.aws.weather import LOST, THROTTLED, UNREACHED, Fate, Weather, answered, refused
from tests.contract.records import RecordsContract


@pytest.fixture
def table(aws: Aws) -> str:
    return aws.table()


@pytest.fixture
def client(aws: Aws) -> Iterator[Any]:
    """One of its own, to put weather on."""
    client = boto.client("dynamodb")
    yield client
    client.close()


@pytest.fixture
def weather(client: Any) -> Weather:
    return Weather(client)


@pytest.fixture
def records(client: Any, table: str) -> DynamoRecords:
    return DynamoRecords(client, table, index=by_number, sleep=lambda seconds: None)


def by_number(key: str, value: bytes) -> tuple[str, float] | None:
    return ("fleet", float(value)) if key.startswith("fleet/") and value.isdigit() else None


class TestDynamoRecords(RecordsContract):
    @pytest.fixture
    def same(self, aws: Aws, table: str, records: Records) -> Records:
        return DynamoRecords(aws.client("dynamodb"), table)


# Writers at once


def test_of_many_who_change_a_record_at_once_one_does(aws: Aws, table: str) -> None:
    records = DynamoRecords(aws.client("dynamodb"), table)
    start = threading.Barrier(32)
    for expect in range(5):

        def change(k: int, expect: int = expect) -> bool:
            start.wait()
            return records.swap("runs/r", b"%d" % k, expect)

        with ThreadPoolExecutor(32) as pool:
            won = list(pool.map(change, range(32)))
        assert won.count(True) == 1
        assert records.get("runs/r") == Record(b"%d" % won.index(True), expect + 1)


def test_two_who_write_the_same_value_are_not_taken_for_one(records: Records) -> None:
    assert records.swap("runs/r", b"same", expect=0)
    assert not records.swap("runs/r", b"same", expect=0)


def test_many_changes_by_several_processes_worth_of_writers_are_all_counted(aws: Aws, table: str) -> None:
    def write(k: int) -> None:
        DynamoRecords(aws.client("dynamodb"), table).put_many([("fleet/d", b"%d" % k)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    found = DynamoRecords(aws.client("dynamodb"), table).get("fleet/d")
    assert found is not None
    assert found.version == 80


# Limits


def test_a_value_that_an_item_cannot_hold_is_refused_before_it_is_sent(
    records: Records, weather: Weather
) -> None:
    for write in (
        lambda: records.swap("runs/r", b"x" * (MOST + 1), 0),
        lambda: records.put_many([("runs/r", b"x" * (MOST + 1))]),
    ):
        with pytest.raises(BadConfig, match=r"runs/r has 300001 bytes, in a table at most 300000\n  next: "):
            write()
    assert not weather.asked
    assert records.swap("runs/r", b"x" * MOST, 0)
    assert records.get("runs/r") == Record(b"x" * MOST, 1)


def test_more_than_one_answer_holds_is_read_whole(records: Records) -> None:
    """1 MB of a query, 16 MB of a batch."""
    values = [(f"runs/r/rounds/{k:06}", bytes([k]) * 280_000) for k in range(65)]
    records.put_many(values)
    assert [(key, record.value) for key, record in records.scan("runs/r/rounds/")] == values
    assert {k: r.value for k, r in records.get_many([key for key, _ in values]).items()} == dict(values)


# Crowds


@pytest.mark.parametrize("folder", ["fleet", "runs/r/rounds/000001/arrivals"])
def test_a_folder_that_many_write_to_at_once_lies_on_several_partitions_and_reads_as_one(
    folder: str, aws: Aws, table: str, records: Records
) -> None:
    keys = [f"{folder}/d{k}" for k in range(100)]
    records.put_many([(key, b"1") for key in keys])
    found = aws.client("dynamodb").scan(TableName=table)["Items"]
    assert {item["pk"]["S"] for item in found} == {f"{folder}#{k}" for k in range(SPREAD)}
    assert [key for key, _ in records.scan(f"{folder}/")] == sorted(keys)
    assert set(records.get_many(keys)) == set(keys)


def test_other_folders_lie_on_one_partition(aws: Aws, table: str, records: Records) -> None:
    records.put_many([(f"runs/r/rounds/{k:06}", b"1") for k in range(20)])
    found = aws.client("dynamodb").scan(TableName=table)["Items"]
    assert {item["pk"]["S"] for item in found} == {"runs/r/rounds"}


def test_the_newest_of_a_group_come_first_and_no_more_than_asked_for(records: DynamoRecords) -> None:
    records.put_many([(f"fleet/d{k}", b"%d" % k) for k in range(40)])
    records.put_many([("fleet/quiet", b"never seen"), ("runs/r", b"50")])
    records.swap("fleet/d7", b"100", expect=1)
    records.swap("fleet/d39", b"gone", expect=1)
    records.put_many([("fleet/d38", b"gone too")])
    found = records.newest("fleet", 4)
    assert [(key, record.value) for key, record in found] == [
        ("fleet/d7", b"100"), ("fleet/d37", b"37"), ("fleet/d36", b"36"), ("fleet/d35", b"35"),
    ]  # fmt: skip
    assert len(records.newest("fleet", 100)) == 38
    assert records.newest("nobody", 3) == []


# Bad weather

BUSY = [
    THROTTLED,
    refused("ThrottlingException"),
    refused("TransactionConflictException"),
    refused("InternalServerError", 500),
    answered(503, {}),
    UNREACHED,
]


@pytest.mark.parametrize("fate", BUSY, ids=range(len(BUSY)))
def test_a_write_that_was_not_taken_is_asked_again_and_done_once(
    fate: Fate, records: Records, weather: Weather
) -> None:
    weather.ahead = {"PutItem": [fate] * 3, "UpdateItem": [fate] * 3, "GetItem": [fate], "Query": [fate]}
    assert records.swap("runs/r", b"1", expect=0)
    records.put_many([("fleet/d", b"1")])
    assert (records.get("runs/r"), records.get("fleet/d")) == (Record(b"1", 1), Record(b"1", 1))
    assert len(list(records.scan("fleet/"))) == 1
    assert (weather.asked["PutItem"], weather.asked["UpdateItem"]) == (4, 4)


def test_a_write_whose_answer_was_lost_is_done_once_and_known_for_ones_own(
    records: Records, weather: Weather
) -> None:
    weather.ahead = {"PutItem": [LOST, THROTTLED, LOST], "UpdateItem": [LOST, LOST]}
    assert records.swap("runs/r", b"1", expect=0)
    assert records.swap("runs/r", b"2", expect=1)
    records.put_many([("fleet/d", b"1")])
    assert (records.get("runs/r"), records.get("fleet/d")) == (Record(b"2", 2), Record(b"1", 1))


def test_a_lost_answer_of_a_change_that_another_one_won_stays_lost(
    aws: Aws, table: str, records: Records, weather: Weather
) -> None:
    """Also if theirs is the same value: of two who decide the same, one acts."""
    other = DynamoRecords(aws.client("dynamodb"), table)

    def overtaken(request: object) -> None:
        assert other.swap("runs/r", b"same", expect=0)
        UNREACHED(request)  # type: ignore[arg-type]

    weather.ahead = {"PutItem": [overtaken]}  # type: ignore[list-item]
    assert not records.swap("runs/r", b"same", expect=0)


def test_a_lost_answer_of_a_change_that_was_built_upon_says_no_and_loses_nothing(
    aws: Aws, table: str, records: Records, weather: Weather
) -> None:
    """Who asks reads again, and finds there what came of its own change."""
    other = DynamoRecords(aws.client("dynamodb"), table)

    def built_upon(request: object) -> None:
        try:
            LOST(request)  # type: ignore[arg-type]
        finally:
            assert other.swap("runs/r", b"mine and theirs", expect=1)

    weather.ahead = {"PutItem": [built_upon]}  # type: ignore[list-item]
    assert not records.swap("runs/r", b"mine", expect=0)
    assert records.get("runs/r") == Record(b"mine and theirs", 2)


def test_what_a_busy_table_left_out_of_a_batch_is_asked_for_again(
    table: str, records: Records, weather: Weather
) -> None:
    records.put_many([(f"p/{k}", b"%d" % k) for k in range(4)])
    keys = [{"pk": {"S": "p"}, "sk": {"S": str(k)}} for k in range(4)]
    first = {"pk": {"S": "p"}, "sk": {"S": "0"}, "v": {"B": "MA=="}, "n": {"N": "1"}}
    nothing = answered(200, {"Responses": {}, "UnprocessedKeys": {table: {"Keys": keys}}})
    some = answered(200, {"Responses": {table: [first]}, "UnprocessedKeys": {table: {"Keys": keys[1:]}}})
    weather.ahead = {"BatchGetItem": [nothing, THROTTLED, some]}
    assert records.get_many([f"p/{k}" for k in range(5)]) == {
        f"p/{k}": Record(b"%d" % k, 1) for k in range(4)
    }
    assert weather.asked["BatchGetItem"] == 4
    weather.ahead = {"BatchGetItem": [nothing] * 20}
    with pytest.raises(Unavailable, match=f"table {table} does not answer"):
        records.get_many(["p/0"])


def test_pauses_double_with_full_jitter_and_at_last_the_table_does_not_answer(
    client: Any, table: str, weather: Weather
) -> None:
    slept: list[float] = []
    records = DynamoRecords(client, table, sleep=slept.append, chance=lambda: 0.5)
    weather.ahead = {"PutItem": [THROTTLED] * 100}
    with pytest.raises(
        Unavailable,
        match=f"table {table} does not answer .ProvisionedThroughputExceededException.; nothing is lost\n"
        "  next: fleetfold aws status",
    ):
        records.swap("runs/r", b"1", expect=0)
    assert slept[:4] == [0.025, 0.05, 0.1, 0.2]
    assert max(slept) == 2.5
    assert len(slept) == boto.TRIES - 1 == weather.asked["PutItem"] - 1


# What a person is told

DENIED = "User: arn:aws:iam::1:user/u is not authorized to perform: dynamodb:GetItem on resource: arn"


@pytest.mark.parametrize(
    ("fate", "sentence", "next"),
    [
        (refused("ResourceNotFoundException"), "is not there", "fleetfold aws status"),
        (refused("ExpiredTokenException"), "credentials have expired", "aws sso login"),
        (refused("UnrecognizedClientException"), "not known .Unrec", "aws sts get-caller-identity"),
        (
            refused("AccessDeniedException", message=DENIED),
            "leave for dynamodb:GetItem$",
            "aws sts get-caller-identity",
        ),
        (refused("AccessDeniedException"), "leave for GetItem$", "aws sts get-caller-identity"),
        (refused("ValidationException"), "cannot be read or written: .*Validation", "fleetfold aws status"),
    ],
)
def test_what_does_not_pass_is_told_at_once_with_what_to_do(
    fate: Fate, sentence: str, next: str, table: str, records: Records, weather: Weather
) -> None:
    weather.ahead = {"GetItem": [fate]}
    with pytest.raises(Unavailable) as told:
        records.get("runs/r")
    assert told.value.next == next
    assert told.match(f"(?m)^table {table}.*{sentence}")
    assert weather.asked["GetItem"] == 1


def test_a_table_that_is_not_there_is_told(aws: Aws) -> None:
    with pytest.raises(Unavailable, match="table none is not there\n  next: fleetfold aws status"):
        DynamoRecords(aws.client("dynamodb"), "none").get("k")


def test_a_machine_without_credentials_or_a_region_is_told_so(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps what it found
    without = boto.client("dynamodb")
    with pytest.raises(Unavailable, match="no AWS credentials here\n  next: aws configure"):
        DynamoRecords(without, "t").get("k")
    without.close()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(BadConfig, match=r"nobody.*\n  next: aws configure"):
        boto.client("dynamodb")
    monkeypatch.delenv("AWS_PROFILE")
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(BadConfig, match=r"region.*\n  next: export AWS_DEFAULT_REGION="):
        boto.client("dynamodb")
