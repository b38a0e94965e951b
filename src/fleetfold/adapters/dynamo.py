"""Records in one DynamoDB table: a record is an item of its folder, changed by conditional writes.

    runs/r/rounds/000001              pk runs/r/rounds                        sk 000001
    runs/r/rounds/000001/arrivals/d   pk runs/r/rounds/000001/arrivals#5      sk d        spread over 8
    v value · n version · w who wrote it last · g, s its place in the index "newest", where it has one

A write whose answer was lost is asked again and finds its own mark in `w`: it is not done, and not taken for
somebody else's. All reads are strongly consistent, but the order of `newest`, which may lag by moments.
"""

import random
import secrets
import time
from collections.abc import Callable, Sequence
from heapq import merge
from typing import Any
from zlib import crc32

from fleetfold.adapters.boto import Declined, Service, together
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.ports import Record

MOST = 300_000
"""Bytes of a record's value. DynamoDB takes items of 400 KB, names and all."""
SPREAD = 8
"""Partitions of a folder that many write at once: each takes some 1,000 writes a second."""
CROWDED = ("fleet", "/arrivals")
"""How the folders end that many write at once."""
BATCH = 100
"""Keys of one BatchGetItem, by DynamoDB's own limit."""
TRIES = 12
"""Answers in a row that brought nothing of what was asked, after which the table does not answer."""
ROOT = "/"
"""The folder of records that have none: no key may be empty."""
NEWEST = "newest"
"""The index over g and s: its keys are enough of it, records are read from the table."""
Index = Callable[[str, bytes], tuple[str, float] | None]
"""(key, value) → (group, number): where the record stands among the newest of a group; None: nowhere."""
_LOST = "ConditionalCheckFailedException"


class DynamoRecords:
    """Records in `table` (pk, sk: strings). `client`: boto3's of "dynamodb", which asks once (boto.client).
    `sleep`, `chance`: for pauses when the table is busy."""

    def __init__(
        self, client: Any, table: str, *, index: Index | None = None,
        sleep: Callable[[float], None] = time.sleep, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._table, self._index = table, index
        self._service = Service(client, f"table {table}", sleep=sleep, chance=chance)

    def get(self, key: str) -> Record | None:
        answer = self._service.ask("get_item", TableName=self._table, Key=_key(key), ConsistentRead=True)
        return _record(answer["Item"]) if "Item" in answer else None

    def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        asked = [_key(key) for key in dict.fromkeys(keys)]
        batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
        items = [item for found in together(self._batch, batches) for item in found]
        return {_name(item): _record(item) for item in items}

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        mark = _mark()
        item = _key(key) | self._said(key, value) | {"n": {"N": str(expect + 1)}, "w": mark}
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
        if expect:
            values = {":n": {"N": str(expect)}}
            condition = {"ConditionExpression": "n = :n", "ExpressionAttributeValues": values}
        try:
            self._service.ask(
                "put_item", expected=[_LOST], TableName=self._table, Item=item,
                ReturnValuesOnConditionCheckFailure="ALL_OLD", **condition,
            )  # fmt: skip
        except Declined as declined:
            found: Any = declined.answer.get("Item", {})
            return bool(found.get("w") == mark)  # our own, of which the answer was lost
        return True

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        # BatchWriteItem cannot count versions. Of one key twice, the last is to stand.
        together(self._put, dict(values).items())

    def scan(self, prefix: str) -> list[tuple[str, Record]]:
        pages = together(self._folder, _partitions(prefix.removesuffix("/")))
        found = merge(*pages, key=lambda item: str(item["sk"]["S"]))
        return [(_name(item), _record(item)) for item in found]

    def newest(self, group: str, count: int) -> list[tuple[str, Record]]:
        """Of the records that `index` puts into `group`, the `count` with the highest numbers, highest
        first. What was written in the last moments may be missing, or stand where it stood."""
        pages = together(lambda k: self._latest(f"{group}#{k}", count), range(SPREAD))
        first = sorted((item for page in pages for item in page), key=_number, reverse=True)[:count]
        names = [_name(item) for item in first]
        found = self.get_many(names)
        return [(name, found[name]) for name in names if name in found]

    def _said(self, key: str, value: bytes) -> dict[str, Any]:
        """The attributes that the value makes. Raises BadConfig if it is too large."""
        if len(value) > MOST:
            raise BadConfig(
                f"the record {key} has {len(value)} bytes, in a table at most {MOST}",
                next="set a smaller cohort",
            )
        place = self._index(key, value) if self._index else None
        if place is None:
            return {"v": {"B": value}}
        group, number = place
        return {
            "v": {"B": value},
            "g": {"S": f"{group}#{_spread(key.rpartition('/')[2])}"},  # an index has partitions too
            "s": {"N": repr(number)},
        }

    def _put(self, entry: tuple[str, bytes]) -> None:
        key, value = entry
        said, mark = self._said(key, value), _mark()
        written = ", ".join(f"{name} = :{name}" for name in said)
        removed = "" if "g" in said else " REMOVE g, s"
        try:
            self._service.ask(
                "update_item", expected=[_LOST], TableName=self._table, Key=_key(key),
                UpdateExpression=f"SET {written}, w = :w{removed} ADD n :one",
                ConditionExpression="attribute_not_exists(w) OR w <> :w",
                ExpressionAttributeValues={
                    ":w": mark, ":one": {"N": "1"}, **{f":{name}": value for name, value in said.items()},
                },
            )  # fmt: skip
        except Declined:
            return  # it stands there already: only the answer was lost

    def _batch(self, keys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        asked: dict[str, Any] = {self._table: {"Keys": keys, "ConsistentRead": True}}
        idle = 0
        while asked:
            if idle == TRIES:
                raise Unavailable(f"table {self._table} does not answer; nothing is lost")
            answer = self._service.ask("batch_get_item", RequestItems=asked)
            came = answer.get("Responses", {}).get(self._table, [])
            found += came
            asked = answer.get("UnprocessedKeys", {})  # it was busy, or 16 MB were full
            idle = 0 if came else idle + 1
            if asked and not came:
                self._service.rest(idle)
        return found

    def _folder(self, partition: str) -> list[dict[str, Any]]:
        return self._query(
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": partition}},
            ConsistentRead=True,
        )

    def _latest(self, group: str, count: int) -> list[dict[str, Any]]:
        return self._query(
            count,
            IndexName=NEWEST,
            KeyConditionExpression="g = :g",
            ExpressionAttributeValues={":g": {"S": group}},
            ProjectionExpression="pk, sk, s",
            ScanIndexForward=False,
        )

    def _query(self, count: int | None = None, **about: Any) -> list[dict[str, Any]]:
        """All that a query finds, page after page; the first `count`, if that is given."""
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            limit: dict[str, Any] = {} if count is None else {"Limit": count - len(found)}
            answer = self._service.ask("query", TableName=self._table, **limit, **about, **more)
            found += answer["Items"]
            if "LastEvaluatedKey" not in answer or (count is not None and len(found) >= count):
                return found
            more = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


def _key(key: str) -> dict[str, Any]:
    folder, _, word = key.rpartition("/")
    folder = folder or ROOT
    return {"pk": {"S": f"{folder}#{_spread(word)}" if _is_crowded(folder) else folder}, "sk": {"S": word}}


def _name(item: dict[str, Any]) -> str:
    """The record's key."""
    folder, word = str(item["pk"]["S"]).partition("#")[0], str(item["sk"]["S"])
    return word if folder == ROOT else f"{folder}/{word}"


def _partitions(folder: str) -> list[str]:
    return [f"{folder}#{k}" for k in range(SPREAD)] if _is_crowded(folder) else [folder]


def _is_crowded(folder: str) -> bool:
    return folder == CROWDED[0] or folder.endswith(CROWDED[1])


def _spread(word: str) -> int:
    return crc32(word.encode()) % SPREAD


def _record(item: dict[str, Any]) -> Record:
    return Record(bytes(item["v"]["B"]), int(item["n"]["N"]))


def _mark() -> dict[str, bytes]:
    """What no other write has."""
    return {"B": secrets.token_bytes(9)}


def _number(item: dict[str, Any]) -> float:
    return float(item["s"]["N"])
