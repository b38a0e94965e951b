"""A stack is brought to what the template says: planned as a change set, shown, agreed to, done, watched.

    zip, template ─▶ bucket for code, by digest ─▶ change set ─▶ (yes?) ─▶ events … ─▶ HOME/aws/{stack}.json

Every step may be done twice, and whoever dies in between deploys again: what is there is found by its digest,
and what is under way is watched to its end.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import IO, Any

from msgspec import Struct

from fleetfold.adapters.boto import Declined, Service, client
from fleetfold.aws.package import Package
from fleetfold.aws.rights import FUNCTIONS, resource
from fleetfold.aws.stack import Stack
from fleetfold.aws.stacks import CloudFormation, Happening, Plan, Stacks, Standing
from fleetfold.aws.template import template, text
from fleetfold.errors import BadConfig, Unavailable

_STACK = re.compile(r"[a-z](-?[a-z0-9]){0,27}")
"""Of names that fit into a bucket's, with the account and the region behind them."""
IOT_DATA = "iot:Data-ATS"


class Account(Struct, frozen=True):
    """Of whom we deploy for: an account in a region, and boto3's clients there by their names."""

    id: str
    region: str
    clients: Mapping[str, Any]

    def service(self, name: str, place: str) -> Service:
        return Service(self.clients[name], place)


SERVICES = (
    "cloudformation", "s3", "sts", "iot", "dynamodb", "stepfunctions", "sqs", "logs", "lambda",
)  # fmt: skip


def account(region: str = "") -> Account:
    """By the environment and ~/.aws. Raises BadConfig without a region, Unavailable without credentials."""
    about = {"region_name": region} if region else {}
    clients = {name: client(name, **about) for name in SERVICES}
    whom = Service(clients["sts"], "AWS").ask("get_caller_identity")
    return Account(whom["Account"], clients["sts"].meta.region_name, clients)


def stacks(account: Account) -> Stacks:
    return CloudFormation(account.clients["cloudformation"])


def checked_stack(name: str) -> str:
    if not _STACK.fullmatch(name):
        raise BadConfig(
            f"--stack {name[:60]!r}: a stack's name is 1 to 28 of a to z, digits and single '-', starting "
            "with a letter, for it becomes part of a bucket's"
        )
    return name


def code_bucket(account: Account, stack: str) -> str:
    return f"{stack}-code-{account.id}-{account.region}"


def uploaded(
    account: Account,
    stack: str,
    package: Package,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Zip and template into the stack's bucket for code, where they are not there. `told` hears how much of
    the zip is there, in bytes of how many. → the template's URL."""
    bucket = code_bucket(account, stack)
    service = account.service("s3", f"bucket {bucket}")
    _bucket(service, account, bucket)
    with package.path.open("rb") as file:
        _put(service, account, bucket, package.key, Followed(file, package.zipped, told))
    body = text().encode()
    key = f"template/{hashlib.sha256(body).hexdigest()}.json"
    _put(service, account, bucket, key, body)
    return f"{account.clients['s3'].meta.endpoint_url}/{bucket}/{key}"


def proposed(
    stacks: Stacks, stack: str, template_url: str, given: Mapping[str, str]
) -> Plan:  # fmt: skip
    """What would change. `given`: parameters; those that are not stay as they are. Raises BadConfig where the
    stack is in no state to be changed."""
    standing, _ = stacks.look(stack)
    _check(stack, standing, given)
    new = standing is None or standing.status == "REVIEW_IN_PROGRESS"
    kept = {} if standing is None or new else dict.fromkeys(standing.parameters)
    known = template()["Parameters"]
    parameters = {name: value for name, value in (kept | dict(given)).items() if name in known}
    return stacks.propose(stack, template_url, parameters, new)


def deployed(stack: str, region: str, standing: Standing | None, first: Happening | None) -> Stack:
    """The stack, if it stands as it was to. Raises Unavailable with the reason of what failed first."""
    status = standing.status if standing else "gone"
    if standing is None or status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        why = (
            f"{first.resource} ({first.type}): {first.reason}"
            if first
            else standing.reason
            if standing
            else ""
        )
        made = standing is not None and standing.made
        after = "what was there before stands again" if made else "nothing was made"
        if status.endswith("ROLLBACK_FAILED"):
            after = "and it could not be taken back"
        raise Unavailable(
            f"the deployment of {stack} failed, {after}: {why or status}",
            next=f"fleetfold aws {'deploy' if made else 'destroy'} --stack {stack}",
        )
    outputs = standing.outputs
    return Stack(
        name=stack, region=region, bucket=outputs["Bucket"], table=outputs["Table"],
        machine=outputs["Machine"], fleet=outputs["Fleet"], iot_endpoint=outputs.get("IotEndpoint", ""),
        functions={name: outputs[resource(name)] for name in FUNCTIONS}, outputs=outputs,
    )  # fmt: skip


def iot_endpoint(account: Account) -> str:
    """Host of the account's IoT data endpoint, which devices connect to."""
    found = account.service("iot", "IoT Core's endpoint").ask("describe_endpoint", endpointType=IOT_DATA)
    return str(found["endpointAddress"])


def _check(stack: str, standing: Standing | None, given: Mapping[str, str]) -> None:
    if standing is None:
        return
    if standing.busy:
        raise Unavailable(
            f"another deployment of {stack} is under way ({standing.status})",
            next=f"fleetfold aws status --stack {stack}",
        )
    if standing.status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"):
        raise BadConfig(
            f"stack {stack} cannot be changed: an earlier attempt failed and left it {standing.status}",
            next=f"fleetfold aws destroy --stack {stack}",
        )
    if standing.status == "UPDATE_ROLLBACK_FAILED":
        raise BadConfig(
            f"stack {stack} could not be taken back to what it was: {standing.reason}",
            next=f"aws cloudformation continue-update-rollback --stack-name {stack}",
        )
    fleet = standing.parameters.get("Fleet")
    if fleet and given.get("Fleet", fleet) != fleet:
        raise BadConfig(
            f"stack {stack} is of fleet {fleet}: its devices are bound to that name",
            next=f"fleetfold aws deploy --stack {stack}-2 --fleet {given['Fleet']}",
        )


def _bucket(service: Service, account: Account, bucket: str) -> None:
    where = {} if account.region == "us-east-1" else {"LocationConstraint": account.region}
    about = {"CreateBucketConfiguration": where} if where else {}
    try:
        service.ask("create_bucket", expected=_THERE, Bucket=bucket, **about)
    except Declined as declined:
        if declined.code == "BucketAlreadyExists":
            raise BadConfig(
                f"bucket {bucket} belongs to another account", next="fleetfold aws deploy --stack NAME"
            ) from None
    owned = {"Bucket": bucket, "ExpectedBucketOwner": account.id}
    service.ask(
        "put_public_access_block", **owned,
        PublicAccessBlockConfiguration={
            "BlockPublicAcls": True, "BlockPublicPolicy": True, "IgnorePublicAcls": True,
            "RestrictPublicBuckets": True,
        },
    )  # fmt: skip
    service.ask(
        "put_bucket_tagging", **owned,
        Tagging={"TagSet": [{"Key": "fleetfold", "Value": bucket.partition("-code-")[0]}]},
    )  # fmt: skip


_THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


class Followed:
    """A file that somebody else reads: how far they are. It may be read again from the beginning."""

    def __init__(self, file: IO[bytes], size: int, told: Callable[[int, int], None]) -> None:
        self._file, self._size, self._told = file, size, told
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self._told(self._file.tell(), self._size)
        return data

    def __len__(self) -> int:
        return self._size


def _put(service: Service, account: Account, bucket: str, key: str, what: "Followed | bytes") -> None:
    """Under a key that says its digest: what is there is the same."""
    owned = {"Bucket": bucket, "Key": key, "ExpectedBucketOwner": account.id}
    try:
        service.ask("head_object", expected=["404", "NoSuchKey", "NotFound"], **owned)
    except Declined:
        service.ask("put_object", **owned, Body=what)
