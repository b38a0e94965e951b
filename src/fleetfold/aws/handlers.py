"""The six functions as Lambda calls them: an event in, out what a queue or the workflow wants to know."""

from typing import Any

import msgspec

from fleetfold.aws import mail, steps
from fleetfold.aws.telling import ignored, logger, measured, troubled
from fleetfold.aws.workflow import Standing
from fleetfold.wiring.aws import Cloud
from fleetfold.wiring.aws import cloud as made

Event = dict[str, Any]


@logger.inject_lambda_context(clear_state=True)
def initiate(event: Event, context: object) -> None:
    cloud = _cloud("initiate", event)
    rounds, token = event.get("rounds", steps.ENDLESS), event.get("token", "")
    steps.initiate(cloud, event["run"], rounds, token, event.get("execution", ""))


@logger.inject_lambda_context(clear_state=True)
def collect(event: Event, context: object) -> Event:
    return _again(steps.collect(_cloud("collect", event), mail.batch(event)))


@logger.inject_lambda_context(clear_state=True)
def status(event: Event, context: object) -> Event:
    return _again(steps.status(_cloud("status", event), mail.batch(event)))


@logger.inject_lambda_context(clear_state=True)
def tick(event: Event, context: object) -> None:
    steps.tick(_cloud("tick", event), event["run"])


@logger.inject_lambda_context(clear_state=True)
def fold_shard(event: Event, context: object) -> Event:
    cloud = _cloud("fold_shard", event)
    return steps.fold_shard(cloud, event["run"], event["round"], event["fold"], event["shard"])


@logger.inject_lambda_context(clear_state=True)
def publish(event: Event, context: object) -> Any:
    told = msgspec.convert(event, Standing)
    return msgspec.to_builtins(steps.publish(_cloud("publish", event), told, event["folded"]))


def _cloud(function: str, event: Event) -> Cloud:
    """Made with the first call in a process; each line of the log says which run it is about."""
    logger.append_keys(**{name: event[name] for name in ("run", "round", "shard") if name in event})
    return made(function, ignored, troubled, measured)


def _again(failed: list[str]) -> Event:
    """Messages of a batch that come again; the others do not."""
    return {"batchItemFailures": [{"itemIdentifier": id} for id in failed]}
