"""What the functions and the workflow wrote of one run, in order of time, also while it is written.

Every line is JSON of powertools' logger, or Lambda's own word of a function that was killed.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from fleetfold.adapters.boto import Declined, Service
from fleetfold.aws.stack import Stack
from fleetfold.errors import shown

LOOK = 2.0
"""Seconds between two looks while following."""
LATE = 30.0
"""Seconds by which CloudWatch may show lines after it shows younger ones."""


class Line(Struct, frozen=True):
    """`at`: seconds since the epoch; `function`: what wrote it; `more`: what else it says, by name."""

    at: float
    function: str
    level: str
    text: str
    more: dict[str, Any] = {}


def lines(logs: Service, stack: Stack, run: str, since: float) -> list[Line]:
    """Of that run since then, in order of time."""
    found = _all(logs, stack, run, since)
    return [line for line, _ in sorted(found, key=lambda each: each[0].at)]


def followed(
    logs: Service, stack: Stack, run: str, since: float, show: Callable[[Line], None], *,
    clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
) -> None:  # fmt: skip
    """Show lines as they come, each once, until interrupted."""
    seen: dict[str, float] = {}
    while True:
        news = [(line, id) for line, id in _all(logs, stack, run, since) if id not in seen]
        for line, id in sorted(news, key=lambda each: each[0].at):
            seen[id] = line.at
            show(line)
        since = max(since, clock() - LATE)
        seen = {id: at for id, at in seen.items() if at >= since - LATE}
        sleep(LOOK)


def _all(logs: Service, stack: Stack, run: str, since: float) -> Iterator[tuple[Line, str]]:
    groups = {f"/aws/lambda/{name}": what for what, name in stack.functions.items()}
    groups[f"/aws/vendedlogs/states/{stack.name}"] = "workflow"
    for group, what in groups.items():
        more: dict[str, str] = {}
        while True:
            try:
                page = logs.ask(
                    "filter_log_events", expected=["ResourceNotFoundException"], logGroupName=group,
                    startTime=int(since * 1000), filterPattern=f'?"{run}" {_DYING}', **more,
                )  # fmt: skip
            except Declined:
                break
            for event in page["events"]:
                text = event["message"].rstrip()
                line = _line(what, event["timestamp"] / 1000, text)
                if is_of(run, line, text):
                    yield line, event["eventId"]
            if not page.get("nextToken"):
                break
            more = {"nextToken": page["nextToken"]}


def is_of(run: str, line: Line, text: str) -> bool:
    """Whether the line is about that run, or about a function that was killed at whatever it did."""
    if line.more:
        return bool(line.more.get("run", run if run in text else "") == run)
    return any(word in text for word in (run, *DEATHS))


DEATHS = ("Task timed out", "Runtime.ExitError", "Runtime.OutOfMemory")
"""What Lambda writes of a function that it killed, or that died: it knows of no runs."""
_DYING = " ".join(f'?"{words}"' for words in DEATHS)
_OWN = {
    "level", "message", "timestamp", "service", "location", "function_name", "_aws", "cold_start",
    "function_memory_size", "function_arn", "function_request_id", "xray_trace_id",
}  # fmt: skip
"""What is in the line already, or is the machine's."""


def _line(what: str, at: float, text: str) -> Line:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return Line(at, what, "", shown(text, 1000))
    more = {name: value for name, value in said.items() if name not in _OWN and value not in ("", None)}
    level = str(said.get("level", ""))
    return Line(at, what, level, shown(str(said.get("message", said.get("type", ""))), 1000), more)
