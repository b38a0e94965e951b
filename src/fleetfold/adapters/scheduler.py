"""Wake-ups by EventBridge Scheduler: one schedule for each run and minute, which deletes itself when used.

    wake_at(run, 12:34:56) ─▶ at(12:35:00) ─▶ tick {"run": run}

Schedules are kept to the minute: a wake-up comes within the minute or two after it is due, at least once, and
one that is due already in the next minute.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from typing import Any

from fleetfold.adapters.boto import Declined, Service

MINUTE = 60
LEAST = 5.0
"""Seconds that a schedule is made ahead of its time: none may be in the past when it is there."""
FAR = 365 * 86_400.0
"""Seconds ahead of the furthest wake-up; whoever waits longer looks in between."""


class ScheduledAlarm:
    """`client`: boto3's of "scheduler", which asks once (boto.client). `target_arn`: of the function that
    is woken, by the role `role_arn`; the schedules lie in `group`. `clock`: seconds since the epoch."""

    def __init__(
        self, client: Any, group: str, target_arn: str, role_arn: str, *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._service = Service(client, f"schedule group {group}", sleep=sleep, chance=chance)
        self._group, self._clock = group, clock
        self._target, self._role = target_arn, role_arn

    def wake_at(self, run: str, time: float) -> None:
        now = self._clock()
        minute = ceil(min(max(time, now + LEAST), now + FAR) / MINUTE)
        at = datetime.fromtimestamp(minute * MINUTE, UTC)
        try:
            self._service.ask(
                "create_schedule", expected=["ConflictException"],
                Name=name(run, minute), GroupName=self._group,
                ScheduleExpression=f"at({at:%Y-%m-%dT%H:%M:%S})", ScheduleExpressionTimezone="UTC",
                FlexibleTimeWindow={"Mode": "OFF"}, ActionAfterCompletion="DELETE",
                Target={"Arn": self._target, "RoleArn": self._role, "Input": json.dumps({"run": run})},
            )  # fmt: skip
        except Declined:
            return  # the run is woken in that minute already


def name(run: str, minute: int) -> str:
    """The schedule's, of at most 64 characters: as much of the run's name as there is room for, and a digest
    of all of it. `minute`: since the epoch."""
    return f"{run[:36]}-{hashlib.sha256(run.encode()).hexdigest()[:12]}-{minute}"
