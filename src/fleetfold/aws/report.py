"""How a stack fares, in lines: itself, what waits and what was laid aside, the workflow, the runs."""

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from fleetfold.adapters.boto import Declined
from fleetfold.adapters.dynamo import DynamoRecords
from fleetfold.aws.deploy import Account
from fleetfold.aws.stack import Stack
from fleetfold.aws.stacks import Stacks
from fleetfold.layout import valid_name
from fleetfold.ledger import Ledger

QUEUES = ("Arrivals", "Said")
NEWEST = 10
"""Runs, and executions, that are told of."""


class Line(Struct, frozen=True):
    """`bad`: somebody should look; `next`: a command."""

    what: str
    text: str
    bad: bool = False
    next: str = ""


def status(account: Account, stacks: Stacks, stack: Stack) -> Iterator[Line]:
    standing, _ = stacks.look(stack.name)
    if standing is None:
        yield Line("stack", f"{stack.name} is not in {stack.region} any more", True, "fleetfold aws deploy")
        return
    stands = standing.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
    yield Line(
        "stack", f"{stack.name} in {stack.region}, {standing.status}: fleet {stack.fleet}", not stands,
        "" if stands else f"fleetfold aws deploy --stack {stack.name}",
    )  # fmt: skip
    for queue in QUEUES:
        yield Line(queue.lower(), _depth(account, stack.outputs[queue]))
        aside = _depth(account, stack.outputs[f"{queue}Dead"])
        if not aside.startswith("0 "):
            url = stack.outputs[f"{queue}Dead"]
            yield Line(
                "laid aside", f"{aside}, that no function could take in", True,
                f"aws sqs receive-message --queue-url {url}",
            )  # fmt: skip
    yield from _executions(account, stack)
    yield from _runs(account, stack)


def _depth(account: Account, url: str) -> str:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    service = account.service("sqs", "the queue")
    try:
        found = service.ask(
            "get_queue_attributes",
            expected=["AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"],
            QueueUrl=url, AttributeNames=names,
        )["Attributes"]  # fmt: skip
    except Declined:
        return "0 messages: there is no such queue"
    waiting, taken = (int(found[name]) for name in names)
    return f"{waiting + taken} messages" + (f", {taken} being taken in" if taken else "")


def _executions(account: Account, stack: Stack) -> Iterator[Line]:
    service = account.service("stepfunctions", f"workflow {stack.machine}")
    for state, bad in (("RUNNING", False), ("FAILED", True), ("TIMED_OUT", True)):
        found = service.ask(
            "list_executions", stateMachineArn=stack.machine, statusFilter=state, maxResults=NEWEST
        )["executions"]  # fmt: skip
        for one in found:
            about: dict[str, Any] = service.ask("describe_execution", executionArn=one["executionArn"])
            run = json.loads(about.get("input") or "{}").get("run", "")
            why = f": {about['cause'][:200]}" if about.get("cause") else ""
            next = f"aws stepfunctions redrive-execution --execution-arn {one['executionArn']}" if bad else ""
            since = f"{one['startDate']:%Y-%m-%d %H:%M}"
            yield Line("workflow", f"run {run} {state.lower()}, begun {since}{why}", bad, next)


def _runs(account: Account, stack: Stack) -> Iterator[Line]:
    records = DynamoRecords(account.clients["dynamodb"], stack.table)
    ledger = Ledger(records, alone=False)
    names = [key.removeprefix("runs/") for key, _ in records.scan("runs/")]
    known = [ledger.run(name) for name in names if valid_name(name)]
    found = [entry[0] for entry in known if entry]
    for run in sorted(found, key=lambda run: -run.started_at)[:NEWEST]:
        yield Line("run", f"{run.name} {run.state.value}, round {run.round}: {run.reason}")
    if not found:
        yield Line("run", "none yet", next="fleetfold run APP --aws")
