"""Whether IAM would have allowed a call: what the call needs, and what a role's policies say. By IAM's rules
for one account: no Deny, and an Allow. Emulators ask nobody; so their logs are asked afterwards.

    wanted(call)   ─▶ [(action, resource's ARN, context)]        a call that is not known is an error
    allowed(documents, action, resource, context)                a condition that is not known is an error

It does not know boundaries, session policies, organizations, and resources' own policies.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

REGION, ACCOUNT = "us-east-1", "000000000000"
Context = Mapping[str, str]
Wanted = tuple[str, str, Context]


class Unknown(Exception):
    """Something that this matcher does not understand: it says neither yes nor no."""


def allowed(
    documents: Sequence[Mapping[str, Any]], action: str, resource: str, context: Context | None = None
) -> bool:
    effects = {
        statement["Effect"]
        for document in documents
        for statement in _listed(document["Statement"])
        if _is_about(statement, action, resource) and _holds(statement.get("Condition", {}), context or {})
    }
    return effects == {"Allow"}


def _is_about(statement: Mapping[str, Any], action: str, resource: str) -> bool:
    if rest := set(statement) - {
        "Sid",
        "Effect",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    }:
        raise Unknown(f"{sorted(rest)} in a statement")

    def among(name: str, value: str, fold: bool) -> bool:
        said = f"Not{name}" not in statement
        patterns = _listed(statement[name if said else f"Not{name}"])
        return said == any(_like(pattern, value, fold) for pattern in patterns)

    return among("Action", action, True) and among("Resource", resource, False)


def _holds(condition: Mapping[str, Any], context: Context) -> bool:
    for operator, tests in condition.items():
        for key, wanted in tests.items():
            have = next((value for name, value in context.items() if name.lower() == key.lower()), None)
            if not _compared(operator, have, [_text(value) for value in _listed(wanted)]):
                return False
    return True


def _compared(operator: str, have: str | None, wanted: Sequence[str]) -> bool:
    if operator.endswith("IfExists"):
        return have is None or _compared(operator.removesuffix("IfExists"), have, wanted)
    match operator:
        case "StringEquals" | "Bool":
            return have in wanted
        case "StringNotEquals":
            return have not in wanted
        case "StringLike" | "ArnLike" | "ArnEquals":
            return have is not None and any(_like(pattern, have) for pattern in wanted)
        case "StringNotLike":
            return have is None or not any(_like(pattern, have) for pattern in wanted)
        case "Null":
            return (have is None) == (wanted == ["true"])
    raise Unknown(f"condition {operator}")


def _like(pattern: str, value: str, fold: bool = False) -> bool:
    text = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(text, value, re.DOTALL | (re.IGNORECASE if fold else 0)) is not None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# What calls need


def wanted(call: Mapping[str, Any], machine: str = "*") -> list[Wanted]:
    """Of a line of the log (tests/aws/stack/calls.py). `machine`: the name of the one state machine whose
    tokens are answered, for a token does not say."""
    asked = call.get("request") or {}
    missing = call.get("error") in ("NoSuchKey", "404") or call.get("status") == 404
    made = _BY_SERVICE.get(call["service"])
    if made is None:
        raise Unknown(f"calls of {call['service']}")
    return list(made(call["operation"], asked, missing, machine))


def _arn(service: str, rest: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{rest}"


_OBJECTS = {
    "GetObject": "GetObject", "HeadObject": "GetObject", "PutObject": "PutObject",
    "CreateMultipartUpload": "PutObject", "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject",
    "AbortMultipartUpload": "AbortMultipartUpload", "ListParts": "ListMultipartUploadParts",
    "DeleteObject": "DeleteObject",
}  # fmt: skip
_BUCKETS = {
    "ListObjects": "ListBucket", "ListObjectsV2": "ListBucket", "HeadBucket": "ListBucket",
    "ListMultipartUploads": "ListBucketMultipartUploads", "GetBucketLocation": "GetBucketLocation",
}  # fmt: skip


def _s3(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    bucket = f"arn:aws:s3:::{asked['Bucket']}"
    if operation in _BUCKETS:
        about = {"s3:prefix": asked["Prefix"]} if asked.get("Prefix") else {}
        yield f"s3:{_BUCKETS[operation]}", bucket, about
    elif operation == "DeleteObjects":
        for one in asked["Delete"]["Objects"]:
            yield "s3:DeleteObject", f"{bucket}/{one['Key']}", {}
    elif operation in _OBJECTS:
        yield f"s3:{_OBJECTS[operation]}", f"{bucket}/{asked['Key']}", {}
        if missing and operation in ("GetObject", "HeadObject"):
            # Who may not list is told 403 and not 404 of what is not there.
            yield "s3:ListBucket", bucket, {"s3:prefix": asked["Key"]}
    else:
        raise Unknown(f"s3 {operation}")


_TRANSACTED = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
_ITEMS = ("GetItem", "PutItem", "UpdateItem", "DeleteItem", "DescribeTable")


def _dynamodb(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    def table(name: str) -> str:
        return name if name.startswith("arn:") else _arn("dynamodb", f"table/{name}")

    if operation in ("Query", "Scan"):
        index = f"/index/{asked['IndexName']}" if asked.get("IndexName") else ""
        yield f"dynamodb:{operation}", table(asked["TableName"]) + index, {}
    elif operation in _ITEMS:
        yield f"dynamodb:{operation}", table(asked["TableName"]), {}
    elif operation in ("BatchGetItem", "BatchWriteItem"):
        for name in asked["RequestItems"]:
            yield f"dynamodb:{operation}", table(name), {}
    elif operation == "TransactWriteItems":
        for one in asked["TransactItems"]:
            for kind, about in one.items():
                yield f"dynamodb:{_TRANSACTED[kind]}", table(about["TableName"]), {}
    else:
        raise Unknown(f"dynamodb {operation}")


def _iot(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    if operation != "Publish":
        raise Unknown(f"iot-data {operation}")
    topic = _arn("iot", f"topic/{asked['topic']}")
    yield "iot:Publish", topic, {}
    if asked.get("retain"):
        yield "iot:RetainPublish", topic, {}


def _scheduler(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    group = asked.get("GroupName") or "default"
    if operation in ("CreateSchedule", "UpdateSchedule", "GetSchedule", "DeleteSchedule"):
        yield f"scheduler:{operation}", _arn("scheduler", f"schedule/{group}/{asked['Name']}"), {}
    else:
        raise Unknown(f"scheduler {operation}")
    if target := asked.get("Target"):
        yield "iam:PassRole", target["RoleArn"], {"iam:PassedToService": "scheduler.amazonaws.com"}


def _states(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    if operation == "StartExecution":
        yield "states:StartExecution", asked["stateMachineArn"], {}
    elif operation in ("SendTaskSuccess", "SendTaskFailure", "SendTaskHeartbeat"):
        yield f"states:{operation}", _arn("states", f"stateMachine:{machine}"), {}
    elif operation in ("DescribeExecution", "StopExecution"):
        yield f"states:{operation}", asked["executionArn"], {}
    elif operation == "ListExecutions":
        yield "states:ListExecutions", asked["stateMachineArn"], {}
    else:
        raise Unknown(f"stepfunctions {operation}")


def _lambda(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    if operation != "Invoke":
        raise Unknown(f"lambda {operation}")
    name = asked["FunctionName"]
    yield "lambda:InvokeFunction", name if name.startswith("arn:") else _arn("lambda", f"function:{name}"), {}


_MAIL = ("SendMessage", "ReceiveMessage", "DeleteMessage", "GetQueueAttributes", "ChangeMessageVisibility")


def _sqs(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    if (action := operation.removesuffix("Batch")) not in _MAIL:
        raise Unknown(f"sqs {operation}")
    yield f"sqs:{action}", _arn("sqs", asked["QueueUrl"].rpartition("/")[2]), {}


def _sts(operation: str, asked: Mapping[str, Any], missing: bool, machine: str) -> Iterator[Wanted]:
    if operation != "GetCallerIdentity":
        raise Unknown(f"sts {operation}")
    return iter(())


_BY_SERVICE = {
    "s3": _s3, "dynamodb": _dynamodb, "iot-data": _iot, "scheduler": _scheduler, "stepfunctions": _states,
    "lambda": _lambda, "sqs": _sqs, "sts": _sts,
}  # fmt: skip
