"""A stack is taken away with all that it made: its devices' certificates, its records, its objects, its code.

    stop executions ─▶ devices ─▶ the stack ─▶ table ─▶ bucket: all but models, or all ─▶ code ─▶ forgotten

Models stay, in the bucket, unless one says otherwise. Every step finds what is left of it by the stack's
name, so that whoever dies in between destroys again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from fleetfold.adapters.boto import Declined, Service
from fleetfold.adapters.dynamo import DynamoRecords
from fleetfold.aws import claims, enrol
from fleetfold.aws.deploy import Account, code_bucket
from fleetfold.aws.stacks import Happening, Stacks, Standing, followed
from fleetfold.errors import Unavailable

_MODEL = re.compile(r"runs/[^/]+/models/")
_GONE = ("NoSuchBucket", "404", "ResourceNotFoundException")
BATCH = 1000
"""Objects that S3 deletes at once."""
Say = Callable[[str], None]


class Bucket(Struct, frozen=True):
    """What is in one: versions of objects, and their bytes, of models and of all else."""

    name: str
    models: int
    models_bytes: int
    others: int
    others_bytes: int


class Remains(Struct, frozen=True):
    """What would go. `tables`: with the items that they had six hours ago at most; `kept`: buckets that an
    earlier stack of the name has left."""

    standing: Standing | None
    buckets: tuple[Bucket, ...]
    tables: tuple[tuple[str, int], ...]
    devices: int
    executions: int
    code: str

    @property
    def none(self) -> bool:
        return not (self.standing or self.buckets or self.tables or self.code)


def remains(account: Account, stacks: Stacks, stack: str) -> Remains:
    """Everything of the stack that is still there."""
    standing, _ = stacks.look(stack)
    made = standing is not None and bool(standing.outputs)
    return Remains(
        standing,
        tuple(_weighed(account, name) for name in _buckets(account, stack)),
        tuple(_tables(account, stack)),
        len(_things(account, standing)) if standing and made else 0,
        len(_running(account, standing)) if standing and made else 0,
        next(iter(_named(account, {code_bucket(account, stack)})), ""),
    )


def destroy(
    account: Account, stacks: Stacks, stack: str, say: Say, show: Callable[[Sequence[Happening]], None], *,
    models: bool,
) -> None:  # fmt: skip
    """`models`: these too. Raises Unavailable with the reason of what failed first."""
    standing, before = stacks.look(stack)
    if standing is not None and standing.outputs:
        for execution in _running(account, standing):
            account.service("stepfunctions", "the workflow").ask("stop_execution", executionArn=execution)
            say(f"stopped {execution.rpartition(':')[2]}")
        _part(account, standing, say)
    if standing is not None:
        if not standing.busy:
            stacks.delete(stack)
        left, first = followed(stacks, standing.id or stack, before[-1].id if before else "", show)
        if left is not None:
            why = f"{first.resource} ({first.type}): {first.reason}" if first else left.reason or left.status
            raise Unavailable(
                f"stack {stack} could not be deleted: {why}", next=f"fleetfold aws destroy --stack {stack}"
            )
    for table, _ in _tables(account, stack):
        service = account.service("dynamodb", f"table {table}")
        _ask_away(
            service, "delete_table", ("ResourceNotFoundException", "ResourceInUseException"), TableName=table
        )
        waiter = account.clients["dynamodb"].get_waiter("table_not_exists")
        waiter.wait(TableName=table, WaiterConfig={"Delay": 2, "MaxAttempts": 150})
        say(f"deleted table {table}")
    for bucket in _buckets(account, stack):
        emptied(account, bucket, lambda key: models or not _MODEL.match(key))
        if models or not _weighed(account, bucket).models:
            _ask_away(account.service("s3", f"bucket {bucket}"), "delete_bucket", _GONE, Bucket=bucket)
            say(f"deleted bucket {bucket}")
        else:
            say(f"kept the models in s3://{bucket}/runs/")
    for bucket in _named(account, {code_bucket(account, stack)}):
        emptied(account, bucket, lambda key: True)
        _ask_away(account.service("s3", f"bucket {bucket}"), "delete_bucket", _GONE, Bucket=bucket)
        say(f"deleted bucket {bucket}")


def emptied(account: Account, bucket: str, gone: Callable[[str], bool], prefix: str = "") -> None:
    """Delete every version of those keys, and what was being uploaded; all of it below `prefix`."""
    service = account.service("s3", f"bucket {bucket}")
    batch: list[dict[str, str]] = []
    for page in _pages(account, "s3", "list_object_versions", Bucket=bucket, Prefix=prefix):
        found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        batch += [{"Key": o["Key"], "VersionId": o["VersionId"]} for o in found if gone(o["Key"])]
        while len(batch) >= BATCH:
            _delete(service, bucket, batch[:BATCH])
            batch = batch[BATCH:]
    if batch:
        _delete(service, bucket, batch)
    for page in _pages(account, "s3", "list_multipart_uploads", Bucket=bucket, Prefix=prefix):
        for upload in page.get("Uploads", []):
            _ask_away(
                service, "abort_multipart_upload", ("NoSuchUpload",),
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"],
            )  # fmt: skip


def _delete(service: Service, bucket: str, keys: Sequence[dict[str, str]]) -> None:
    answer = service.ask("delete_objects", Bucket=bucket, Delete={"Objects": list(keys), "Quiet": True})
    if errors := answer.get("Errors"):
        raise Unavailable(
            f"bucket {bucket}: {errors[0]['Key']} cannot be deleted: {errors[0].get('Message', '')}",
            next="fleetfold aws destroy",
        )


def _part(account: Account, standing: Standing, say: Say) -> None:
    """Devices without certificates: the policy of the stack cannot go while one of them has it."""
    policy, group = standing.outputs["DevicePolicy"], standing.outputs["ThingGroup"]
    records = DynamoRecords(account.clients["dynamodb"], standing.outputs["Table"])
    place = enrol.Place(fleet=standing.outputs["Fleet"], policy=policy, group=group, endpoint="")
    if removed := enrol.clear(account.clients["iot"], records, place):
        say(f"cut off {len(removed)} devices")
    if claimed := standing.outputs.get(claims.POLICY):
        with suppress(Unavailable):  # then its policy cannot be deleted, and CloudFormation says so
            claims.revoke(account.clients["iot"], claimed)
    service = account.service("iot", f"policy {policy}")
    while True:
        try:
            found = service.ask("list_targets_for_policy", expected=_GONE, policyName=policy)["targets"]
        except Declined:
            return
        if not found:
            return
        for target in found:
            _ask_away(service, "detach_policy", _GONE, policyName=policy, target=target)


def _things(account: Account, standing: Standing) -> list[str]:
    pages = _pages(
        account, "iot", "list_things_in_thing_group", thingGroupName=standing.outputs["ThingGroup"]
    )  # fmt: skip
    return [name for page in pages for name in page["things"]]


def _running(account: Account, standing: Standing) -> list[str]:
    pages = _pages(
        account, "stepfunctions", "list_executions", stateMachineArn=standing.outputs["Machine"],
        statusFilter="RUNNING",
    )  # fmt: skip
    return [one["executionArn"] for page in pages for one in page["executions"]]


def _buckets(account: Account, stack: str) -> list[str]:
    ours = re.compile(rf"{re.escape(stack)}-{account.id}-[0-9a-f]{{8}}")
    return [name for name in _all_buckets(account) if ours.fullmatch(name)]


def _named(account: Account, names: set[str]) -> list[str]:
    return [name for name in _all_buckets(account) if name in names]


def _all_buckets(account: Account) -> list[str]:
    return [b["Name"] for b in account.service("s3", "S3").ask("list_buckets").get("Buckets", [])]


def _tables(account: Account, stack: str) -> Iterator[tuple[str, int]]:
    for page in _pages(account, "dynamodb", "list_tables"):
        for name in page["TableNames"]:
            if name.startswith(f"{stack}-Table-"):
                service = account.service("dynamodb", f"table {name}")
                try:
                    about = service.ask("describe_table", expected=_GONE, TableName=name)["Table"]
                except Declined:
                    continue
                yield name, about.get("ItemCount", 0)


def _weighed(account: Account, bucket: str) -> Bucket:
    models = models_bytes = others = others_bytes = 0
    for page in _pages(account, "s3", "list_object_versions", Bucket=bucket):
        for one in page.get("Versions", []):
            if _MODEL.match(one["Key"]):
                models, models_bytes = models + 1, models_bytes + one["Size"]
            else:
                others, others_bytes = others + 1, others_bytes + one["Size"]
    return Bucket(bucket, models, models_bytes, others, others_bytes)


_NEXT: dict[str, tuple[tuple[str, str], ...]] = {
    "list_object_versions": (("KeyMarker", "NextKeyMarker"), ("VersionIdMarker", "NextVersionIdMarker")),
    "list_multipart_uploads": (("KeyMarker", "NextKeyMarker"), ("UploadIdMarker", "NextUploadIdMarker")),
    "list_tables": (("ExclusiveStartTableName", "LastEvaluatedTableName"),),
    "list_executions": (("nextToken", "nextToken"),),
    "list_things_in_thing_group": (("nextToken", "nextToken"),),
}
"""How each of them is asked for its next page: the question's word, and the answer's."""


def _pages(account: Account, client: str, operation: str, **about: Any) -> Iterator[dict[str, Any]]:
    """All of a list; none of what is not there."""
    service, more = account.service(client, operation.replace("_", " ")), dict[str, Any]()
    while True:
        try:
            page = service.ask(operation, expected=[*_GONE, "StateMachineDoesNotExist"], **about, **more)
        except Declined:
            return
        yield page
        more = {ask: page[answer] for ask, answer in _NEXT[operation] if page.get(answer)}
        if not more or not page.get("IsTruncated", True):
            return


def _ask_away(service: Service, operation: str, gone: Sequence[str], **about: Any) -> None:
    """Of what may be gone already."""
    with suppress(Declined):
        service.ask(operation, expected=list(gone), **about)
