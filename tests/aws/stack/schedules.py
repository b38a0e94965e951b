"""EventBridge Scheduler's clock: LocalStack keeps schedules and never fires them, so this does.

every half second: list ─▶ those due ─▶ target invoked ─▶ those that ask for it deleted, a while later

At least once, as on the real one; a schedule that has fired lies there a while. It does not show: a precision
of a minute, retries, flexible windows, rates and cron.
"""

import re
import threading
import time
from calendar import timegm
from contextlib import suppress
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.aws.stack.calls import Calls

LOOK = 0.5
"""Seconds between two looks."""
LINGER = 3.0
"""Seconds that a schedule lies there after it has fired."""
_AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")


class Schedules:
    """`ahead`: seconds by which its clock is ahead of the machine's. `fired`: names, in order."""

    def __init__(self, scheduler: Any, functions: Any, states: Any, calls: Calls) -> None:
        self._scheduler, self._functions, self._states, self._calls = scheduler, functions, states, calls
        self.ahead, self.fired, self.troubles = 0.0, list[str](), list[str]()
        self._done: dict[tuple[str, str], tuple[str, float]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ending.wait(LOOK):
            try:
                self._look()
            except (BotoCoreError, ClientError, ValueError) as error:
                if not self._ending.is_set():
                    self.troubles.append(repr(error))

    def _look(self) -> None:
        listed = [
            one
            for page in self._scheduler.get_paginator("list_schedules").paginate()
            for one in page["Schedules"]
        ]
        for one in listed:
            place = (one["GroupName"], one["Name"])
            with suppress(self._scheduler.exceptions.ResourceNotFoundException):
                self._consider(place, self._scheduler.get_schedule(GroupName=place[0], Name=place[1]))

    def _consider(self, place: tuple[str, str], about: dict[str, Any]) -> None:
        if about.get("State", "ENABLED") != "ENABLED":
            return
        expression, now = about["ScheduleExpression"], time.time() + self.ahead
        found = _AT.fullmatch(expression)
        if found is None or about.get("ScheduleExpressionTimezone", "UTC") not in ("UTC", "Etc/UTC"):
            raise ValueError(f"schedule {place}: {expression} is not emulated")
        if timegm(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) > now:
            return
        done = self._done.get(place)
        if done is None or done[0] != expression:
            self._fire(place, about["Target"])
            self._done[place] = (expression, time.monotonic())
        elif about.get("ActionAfterCompletion") == "DELETE" and time.monotonic() - done[1] > LINGER:
            self._scheduler.delete_schedule(GroupName=place[0], Name=place[1])
            del self._done[place]

    def _fire(self, place: tuple[str, str], target: dict[str, Any]) -> None:
        arn, said = target["Arn"], target.get("Input", "{}")
        about = {"kind": "call", "role": target["RoleArn"], "by": f"schedule {place[1]}", "status": 200}
        if ":lambda:" in arn:
            self._calls.note(**about, service="lambda", operation="Invoke", request={"FunctionName": arn})
            self._functions.invoke(FunctionName=arn, InvocationType="Event", Payload=said.encode())
        elif ":states:" in arn:
            self._calls.note(
                **about, service="stepfunctions", operation="StartExecution", request={"stateMachineArn": arn}
            )
            self._states.start_execution(stateMachineArn=arn, input=said)
        else:
            raise ValueError(f"schedule {place}: target {arn} is not emulated")
        self.fired.append(place[1])
