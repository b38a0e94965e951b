"""What each function may do in the account, statement by statement, and why a `*` is in any of them.

    records   read, and change one at a time      objects   below runs/, read, write once, retire
    invite    retained tasks, grants              wake      one-time schedules of the stack's own group
    answer    the task token of the workflow      shard     read updates, write parts of a model

Whoever drives a run may find any of its effects undone, so the five that do have the same rights and
differ by their queues; `fold_shard` reads and writes parts. No `*` is without its reason in REASONS.
"""

from collections.abc import Mapping
from typing import Any

Data = dict[str, Any]

FUNCTIONS = ("initiate", "collect", "status", "tick", "fold_shard", "publish")
"""What the stack runs, by what it does."""
REASONS: Mapping[str, str] = {
    "Updates": "the updates and the plan of any run, which is named when it is begun",
    "Objects": "keys of one run are below runs/, and a run is named when it is begun",
    "Parts": "the models of any run, which is named when it is begun; updates cannot be written by it",
    "Invite": "any device of the fleet may be invited: only its task and grant, never another fleet's",
    "Wake": "schedules are named after run and minute; only in the stack's own group",
    "Write": "a log stream is named by Lambda, in the function's own group",
    "Tell": "a log stream is named by ECS, in the coordinator's own group",
    "Deliver": "log delivery for state machines knows no resources (Step Functions guide, CloudWatch Logs)",
    "Children": "executions are named by Step Functions; only those of the stack's own state machine",
    "Token": "ecr:GetAuthorizationToken knows no resources (service authorization reference)",
    "Provision": "a new device's name and its certificate's id are not known before; nothing can be deleted",
    "Register": "iot:RegisterThing knows no resources (service authorization reference)",
    "iot:Connect": "each holder of a claim makes up its own client id, which no device can have",
    "Track": "a task of Fargate is named by ECS; only those of the stack's own cluster",
    "OnlyOverTls": "a refusal, of everybody and of everything, where the wire is not encrypted",
}
"""Why a statement has a `*` in a resource or an action; by its Sid, or in a policy of IoT Core,
which has none, by its action. There is no other such statement."""


def allow(sid: str, actions: list[str], *resources: Any, when: Data | None = None) -> Data:
    statement = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": list(resources)}
    return statement | ({"Condition": when} if when else {})


def sub(text: str) -> Data:
    return {"Fn::Sub": text}


def arn_of(resource: str) -> Data:
    return {"Fn::GetAtt": [resource, "Arn"]}


def function_arn(name: str) -> Data:
    """By its name, which is known before it is made: the functions and the machine know each other."""
    return sub(f"arn:${{AWS::Partition}}:lambda:${{AWS::Region}}:${{AWS::AccountId}}:function:{named(name)}")


def named(function: str) -> str:
    return f"${{AWS::StackName}}-{function.replace('_', '-')}"


MACHINE = sub("arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:stateMachine:${AWS::StackName}")
BUCKET = sub("arn:${AWS::Partition}:s3:::${Objects}")
_IOT = "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}:topic/fleetfold/${Fleet}/*"
_SCHEDULES = "arn:${AWS::Partition}:scheduler:${AWS::Region}:${AWS::AccountId}:schedule/${Schedules}/*"

_LIST = allow(
    "ObjectsByPrefix", ["s3:ListBucket"], BUCKET, when={"StringLike": {"s3:prefix": ["runs/*", "runs"]}}
)
KEY: Data = {
    "Fn::If": [
        "HasKey",
        allow("Key", ["kms:Decrypt", "kms:GenerateDataKey"], {"Ref": "KmsKey"}),
        {"Ref": "AWS::NoValue"},
    ]
}
"""For a bucket that is encrypted by a key of the user's."""

DRIVE: tuple[Data, ...] = (
    allow(
        "Records",
        [
            "dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query", "dynamodb:PutItem",
            "dynamodb:UpdateItem",
        ],
        arn_of("Table"),
    ),
    allow("Newest", ["dynamodb:Query"], sub("${Table.Arn}/index/newest")),
    allow(
        "Objects",
        [
            "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts",
        ],
        sub("arn:${AWS::Partition}:s3:::${Objects}/runs/*"),
    ),
    _LIST,
    KEY,
    allow("Invite", ["iot:Publish", "iot:RetainPublish"], sub(f"{_IOT}/task"), sub(f"{_IOT}/grant")),
    allow(
        "Wake",
        ["scheduler:CreateSchedule"],
        sub(_SCHEDULES),
    ),
    allow(
        "Lend", ["iam:PassRole"], arn_of("SchedulerRole"),
        when={"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}},
    ),
    allow("Answer", ["states:SendTaskSuccess"], MACHINE),
)  # fmt: skip
"""Of whoever drives a run: any of its effects may be undone, so any of them may be done."""

SHARD: tuple[Data, ...] = (
    allow("Updates", ["s3:GetObject"], sub("arn:${AWS::Partition}:s3:::${Objects}/runs/*")),
    allow("Parts", ["s3:PutObject"], sub("arn:${AWS::Partition}:s3:::${Objects}/runs/*/models/*")),
    _LIST,
    KEY,
)


def of(function: str) -> list[Data]:
    """The statements of the function's role."""
    write = allow("Write", ["logs:CreateLogStream", "logs:PutLogEvents"], arn_of(f"{resource(function)}Log"))
    own: dict[str, list[Data]] = {
        "collect": [_takes("Arrivals")],
        "status": [_takes("Said")],
        "tick": [allow("Fail", ["sqs:SendMessage"], arn_of("SaidDead"))],
    }
    return [*(SHARD if function == "fold_shard" else DRIVE), *own.get(function, []), write]


def resource(function: str) -> str:
    """The function's name among the template's resources."""
    return "".join(word.capitalize() for word in function.split("_"))


def role(service: str, statements: list[Data], *, when: Data | None = None) -> Data:
    """A role that `service` may take. What is written next to a `*` of its statements is its reason."""
    trust: Data = {
        "Effect": "Allow",
        "Principal": {"Service": f"{service}.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    sids = [s.get("Sid", "") for s in statements]
    why = {sid: REASONS[sid] for sid in sids if sid in REASONS}
    return {
        "Type": "AWS::IAM::Role",
        **({"Metadata": {"Wildcards": why}} if why else {}),
        "Properties": {
            "AssumeRolePolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [trust | ({"Condition": when} if when else {})],
            },
            "Policies": [
                {
                    "PolicyName": "fleetfold",
                    "PolicyDocument": {"Version": "2012-10-17", "Statement": statements},
                }
            ],
        },
    }


def _takes(queue: str) -> Data:
    return allow("Take", ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"], arn_of(queue))
