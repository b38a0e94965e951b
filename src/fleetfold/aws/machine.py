"""The workflow as data: one execution of the state machine drives one run, and nothing runs while it waits.

    Open ──(task token: closed by quorum or deadline)──▶ Fold × shards ──▶ Publish ──▶ next round ──▶ Open
      └◀── nobody answered for a while: ask again           │   └◀── unfit: another set is to be folded
    Turns are counted: before its 25,000 events are used up, an execution starts the next one and ends.

Every state may run twice: what it calls asks the ledger first. So a failed execution can be redriven, and two
of them for one run only ask twice. JSONPath throughout, for the emulators know nothing else.
"""

import json
from typing import Any

Data = dict[str, Any]

OPEN_EVENTS, FOLD_EVENTS = 25, 430
"""Events of an execution's history that a round takes to be opened, and to be folded: 40 shards at 7 events
each, most of them tried twice."""
SPENT = 50 * (OPEN_EVENTS + FOLD_EVENTS)
"""Events after which an execution starts the next one, which is after 50 rounds; it may have 25,000."""
INLINE = 40
"""Shards that one execution folds by itself at once, which is as many as it may; beyond, each is a child."""
AT_ONCE = 200
"""Children that fold at once: 1,000 functions are what a fresh account may run, and others need some."""
PATIENCE = 3600
"""Seconds that the first round is waited for, if the input does not say."""
ENDLESS = 1_000_000
"""Rounds to train, if the input does not say: as many as the run has."""
LONGEST = 900
"""Seconds that a function may take, and so a state that calls it, after which it is tried again."""

ALREADY = "StepFunctions.ExecutionAlreadyExistsException"
OURS = ["BadConfig", "BadUpdate"]
"""Errors that the next try would meet again: the user's and the device's."""
WIRE = [
    "Lambda.ServiceException", "Lambda.AWSLambdaException", "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException", "Lambda.ClientExecutionTimeoutException", "Lambda.Unknown",
    "Sandbox.Timedout", "Runtime.ExitError", "Unavailable",
]  # fmt: skip
"""Errors of Lambda itself, of a function that was killed or ran out of time or memory, and our own word for a
wire that is down."""


def machine(*, coordinator: bool = False) -> Data:
    """The definition, with `${Partition}`, `${Initiate}`, `${FoldShard}`, `${Publish}` (ARNs of functions)
    and `${FoldExecution}` (STANDARD or EXPRESS) left to be filled in; with `coordinator` also `${Cluster}`,
    `${Task}`, `${Subnets}`, `${SecurityGroup}` and `${Container}` of a task on Fargate.

    Input: {"run", "rounds"?: how many to train, "patience"?: whole seconds to wait for the first, at least 1,
    "coordinator"?: true to have a long-lived process drive the run}. `Open` is told how many rounds are yet
    to be trained, with the one that is due.
    """
    first = "Coordinated" if coordinator else "Open"
    states = {
        "Defaults": {
            "Type": "Pass",
            "Result": {"rounds": ENDLESS, "patience": PATIENCE},
            "ResultPath": "$.defaults",
            "Next": "Input",
        },
        "Input": {
            "Type": "Pass",
            "Parameters": {"asked.$": "States.JsonMerge($.defaults, $, false)"},
            "OutputPath": "$.asked",
            "Next": "Count",
        },
        "Count": {
            "Type": "Pass",
            "Parameters": {"rounds.$": "$.rounds", "events": 0},
            "ResultPath": "$.count",
            "Next": first,
        },
        **(_coordinated() if coordinator else {}),
        "Open": {
            "Type": "Task",
            "Comment": "Opens the round that is due; whoever closes it answers with its Standing.",
            "Resource": "arn:${Partition}:states:::lambda:invoke.waitForTaskToken",
            "Parameters": {
                "FunctionName": "${Initiate}",
                "Payload": {
                    "run.$": "$.run",
                    "rounds.$": "$.count.rounds",
                    "token.$": "$$.Task.Token",
                    "execution.$": "$$.Execution.Name",
                },
            },
            "TimeoutSecondsPath": "$.patience",
            "ResultPath": "$.standing",
            "Retry": _retry(also=["States.TaskFailed"]),
            "Catch": [{"ErrorEquals": ["States.Timeout"], "ResultPath": "$.silence", "Next": "Turn"}],
            "Next": "Stands",
        },
        "Stands": {
            "Type": "Choice",
            "Choices": [
                {**_is("phase", "folding"), "Next": "Cut"},
                {"And": [_is("phase", "next"), _is("kind", "train")], "Next": "Trained"},
                {**_is("phase", "next"), "Next": "Enough"},
                {**_is("phase", "ended"), "Next": "Ended"},
                {"Variable": "$.standing.reason", "IsPresent": True, "Next": "Failed"},
            ],
            "Default": "Failed without a word",
        },
        "Cut": {**_count(events=FOLD_EVENTS), "Next": "Fold how"},
        "Fold how": {
            "Type": "Choice",
            "Choices": [
                {"Variable": "$.count.events", "NumericGreaterThan": SPENT, "Next": "Anew"},
                {"Variable": f"$.standing.shards[{INLINE}]", "IsPresent": True, "Next": "Fold by children"},
                {"Variable": "$.standing.shards[0]", "IsPresent": True, "Next": "Fold"},
            ],
            "Default": "Fold whole",
        },
        "Fold": {**_map({"Mode": "INLINE"}), "MaxConcurrency": INLINE, "Next": "Publish"},
        "Fold by children": {
            **_map({"Mode": "DISTRIBUTED", "ExecutionType": "${FoldExecution}"}),
            "MaxConcurrency": AT_ONCE,
            "Next": "Publish",
        },
        "Fold whole": {
            "Type": "Pass",
            "Comment": "Not cut: Publish folds it alone.",
            "Result": [],
            "ResultPath": "$.folded",
            "Next": "Publish",
        },
        "Publish": {
            "Type": "Task",
            "Resource": "${Publish}",
            "Parameters": {
                **{f"{name}.$": f"$.standing.{name}" for name in STANDING},
                "folded.$": "$.folded",
            },
            "ResultPath": "$.standing",
            "TimeoutSeconds": LONGEST + 60,
            "Retry": _retry(also=["States.Timeout", "States.TaskFailed"]),
            "Next": "Stands",
        },
        "Trained": {**_count(rounds=-1), "Next": "Enough"},
        "Enough": {
            "Type": "Choice",
            "Comment": "A model that is to be evaluated is, before an execution of so many rounds ends.",
            "Choices": [
                {
                    "And": [
                        {"Variable": "$.standing.due", "IsPresent": True},
                        _is("due", "evaluate"),
                    ],
                    "Next": "Patience",
                },
                {"Variable": "$.count.rounds", "NumericLessThanEquals": 0, "Next": "Ended"},
            ],
            "Default": "Patience",
        },
        "Patience": {
            "Type": "Pass",
            "InputPath": "$.standing.patience",
            "ResultPath": "$.patience",
            "Next": "Turn",
        },
        "Turn": {**_count(events=OPEN_EVENTS), "Next": "Long enough"},
        "Long enough": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.count.events", "NumericGreaterThanEquals": SPENT, "Next": "Anew"}],
            "Default": "Open",
        },
        "Anew": {
            "Type": "Task",
            "Comment": "Twice is once: the name of the next execution is made of this one's.",
            "Resource": "arn:${Partition}:states:::states:startExecution",
            "Parameters": {
                "StateMachineArn.$": "$$.StateMachine.Id",
                "Name.$": "States.Hash($$.Execution.Id, 'SHA-256')",
                "Input": {
                    "run.$": "$.run",
                    "rounds.$": "$.count.rounds",
                    "patience.$": "$.patience",
                    "AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID.$": "$$.Execution.Id",
                },
            },
            "ResultPath": "$.anew",
            "Retry": [{"ErrorEquals": [ALREADY], "MaxAttempts": 0}, *_retry(also=["States.TaskFailed"])],
            "Catch": [{"ErrorEquals": [ALREADY], "ResultPath": "$.anew", "Next": "Ended"}],
            "Next": "Ended",
        },
        "Ended": {"Type": "Succeed"},
        "Failed": {"Type": "Fail", "Error": "RunFailed", "CausePath": "$.standing.reason"},
        "Failed without a word": {"Type": "Fail", "Error": "RunFailed", "Cause": "fleetfold show says why"},
    }
    return {
        "Comment": "One run of fleetfold: rounds are opened, waited for, folded and published",
        "StartAt": "Defaults",
        "States": states,
    }


STANDING = ("run", "phase", "round", "kind", "fold", "shards", "patience")
"""What a Standing says, all of which Publish is told again."""


def text(*, coordinator: bool = False) -> str:
    """The definition as JSON; the same each time."""
    return json.dumps(machine(coordinator=coordinator), separators=(",", ":"))


def _map(how: Data) -> Data:
    shard = {
        "Type": "Task",
        "Resource": "${FoldShard}",
        "TimeoutSeconds": LONGEST + 60,
        "Retry": _retry(also=["States.Timeout", "States.TaskFailed"]),
        "End": True,
    }
    return {
        "Type": "Map",
        "ItemsPath": "$.standing.shards",
        "ItemSelector": {
            **{f"{name}.$": f"$.standing.{name}" for name in ("run", "round", "kind", "fold")},
            "shard.$": "$$.Map.Item.Value",
        },
        "ItemProcessor": {"ProcessorConfig": how, "StartAt": "Shard", "States": {"Shard": shard}},
        "ResultPath": "$.folded",
    }


def _coordinated() -> Data:
    """For an app that needs a process that lives as long as the run; when it has left, Open sees how the run
    stands, so that nothing depends on how the task ended."""
    return {
        "Coordinated": {
            "Type": "Choice",
            "Choices": [
                {
                    "And": [
                        {"Variable": "$.coordinator", "IsPresent": True},
                        {"Variable": "$.coordinator", "BooleanEquals": True},
                    ],
                    "Next": "Coordinate",
                }
            ],
            "Default": "Open",
        },
        "Coordinate": {
            "Type": "Task",
            "Resource": "arn:${Partition}:states:::ecs:runTask.sync",
            "Parameters": {
                "LaunchType": "FARGATE",
                "Cluster": "${Cluster}",
                "TaskDefinition": "${Task}",
                "NetworkConfiguration": {
                    "AwsvpcConfiguration": {
                        "Subnets.$": "States.StringSplit('${Subnets}', ',')",
                        "SecurityGroups": ["${SecurityGroup}"],
                        "AssignPublicIp": "ENABLED",
                    }
                },
                "Overrides": {
                    "ContainerOverrides": [{"Name": "${Container}", "Command.$": "States.Array($.run)"}]
                },
            },
            "ResultPath": None,
            "Retry": _retry(also=["States.TaskFailed"]),
            "Next": "Open",
        },
    }


def _retry(*, also: list[str]) -> list[Data]:
    """Up to so many more tries, whose pauses double and are drawn at random below that; `also` after the
    wire's."""
    pauses = {"BackoffRate": 2, "MaxDelaySeconds": 60, "JitterStrategy": "FULL"}
    return [
        {"ErrorEquals": OURS, "MaxAttempts": 0},
        {"ErrorEquals": WIRE, "IntervalSeconds": 1, "MaxAttempts": 6, **pauses},
        {"ErrorEquals": also, "IntervalSeconds": 2, "MaxAttempts": 3, **pauses},
    ]


def _count(*, rounds: int = 0, events: int = 0) -> Data:
    """What is counted: rounds yet to be trained, and events of the history."""
    return {
        "Type": "Pass",
        "Parameters": {
            "rounds.$": f"States.MathAdd($.count.rounds, {rounds})",
            "events.$": f"States.MathAdd($.count.events, {events})",
        },
        "ResultPath": "$.count",
    }


def _is(name: str, value: str) -> Data:
    return {"Variable": f"$.standing.{name}", "StringEquals": value}
