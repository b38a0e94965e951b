"""Wake-ups by EventBridge Scheduler. The emulator stores schedules and never fires one: what is seen here is
what is asked for, and not that anybody is woken."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from fleetfold.adapters import boto
from fleetfold.adapters.scheduler import FAR, ScheduledAlarm, name
from fleetfold.errors import Unavailable
from tests.aws.conftest import Aws
from tests.aws.weather import LOST, THROTTLED, UNREACHED, Weather, refused

NOON = datetime(2026, 11, 5, 12, 0, tzinfo=UTC).timestamp()
TICK, ROLE = "arn:aws:lambda:eu-central-1:1:function:tick", "arn:aws:iam::1:role/scheduler"
SERIAL = count()


@pytest.fixture
def client(aws: Aws) -> Iterator[Any]:
    client = boto.client("scheduler")
    yield client
    client.close()


@pytest.fixture
def group(client: Any) -> str:
    made = f"group-{next(SERIAL)}"
    client.create_schedule_group(Name=made)
    return made


@pytest.fixture
def alarm(client: Any, group: str) -> ScheduledAlarm:
    return ScheduledAlarm(client, group, TICK, ROLE, clock=lambda: NOON, sleep=lambda seconds: None)


def schedules(client: Any, group: str) -> list[dict[str, Any]]:
    found = client.list_schedules(GroupName=group)["Schedules"]
    return [client.get_schedule(GroupName=group, Name=schedule["Name"]) for schedule in found]


def times(client: Any, group: str) -> list[str]:
    return sorted(schedule["ScheduleExpression"] for schedule in schedules(client, group))


def test_a_wake_up_is_one_schedule_that_deletes_itself(
    alarm: ScheduledAlarm, client: Any, group: str
) -> None:
    alarm.wake_at("r", NOON + 200)
    (made,) = schedules(client, group)
    assert made["ScheduleExpression"] == "at(2026-11-05T12:04:00)"
    assert made["ScheduleExpressionTimezone"] == "UTC"
    assert made["FlexibleTimeWindow"] == {"Mode": "OFF"}
    assert made["ActionAfterCompletion"] == "DELETE"
    assert (made["Target"]["Arn"], made["Target"]["RoleArn"]) == (TICK, ROLE)
    assert json.loads(made["Target"]["Input"]) == {"run": "r"}


def test_the_same_wake_up_twice_is_one_and_so_are_two_of_one_minute(
    alarm: ScheduledAlarm, client: Any, group: str
) -> None:
    for seconds in (200, 200, 181, 240):
        alarm.wake_at("r", NOON + seconds)
    assert times(client, group) == ["at(2026-11-05T12:04:00)"]


def test_two_runs_and_two_minutes_have_schedules_of_their_own(
    alarm: ScheduledAlarm, client: Any, group: str
) -> None:
    for run, seconds in (("r", 60), ("r", 61), ("s", 60)):
        alarm.wake_at(run, NOON + seconds)
    assert len(schedules(client, group)) == 3


def test_what_is_due_already_wakes_in_the_next_minute(alarm: ScheduledAlarm, client: Any, group: str) -> None:
    for seconds in (-1e6, -1, 0, 3):
        alarm.wake_at("r", NOON + seconds)
    assert times(client, group) == ["at(2026-11-05T12:01:00)"]


def test_nobody_is_woken_before_it_is_due(client: Any, group: str) -> None:
    for seconds in range(0, 130, 7):
        asked = ScheduledAlarm(client, group, TICK, ROLE, clock=lambda: NOON)
        asked.wake_at(f"r{seconds}", NOON + seconds)
        (made,) = [s for s in schedules(client, group) if s["Name"].startswith(f"r{seconds}-")]
        at = datetime.fromisoformat(made["ScheduleExpression"][3:-1] + "+00:00").timestamp()
        assert seconds <= at - NOON <= seconds + 65


def test_a_wake_up_that_is_never_due_is_one_within_a_year(
    alarm: ScheduledAlarm, client: Any, group: str
) -> None:
    alarm.wake_at("r", float("inf"))
    (at,) = times(client, group)
    assert datetime.fromisoformat(at[3:-1] + "+00:00").timestamp() <= NOON + FAR + 60


@pytest.mark.parametrize("run", ["r", "a" * 64, "A.b_c-" * 10, "9" * 63 + "."])
def test_every_run_has_a_name_that_a_schedule_may_have(
    run: str, alarm: ScheduledAlarm, client: Any, group: str
) -> None:
    alarm.wake_at(run, NOON + 1e10)
    (made,) = schedules(client, group)
    assert re.fullmatch(r"[0-9a-zA-Z\-_.]{1,64}", made["Name"])
    assert json.loads(made["Target"]["Input"]) == {"run": run}


def test_runs_whose_names_begin_alike_are_not_taken_for_one() -> None:
    assert name("a" * 63 + "b", 1) != name("a" * 63 + "c", 1)
    assert len(name("a" * 64, 999_999_999)) <= 64


@pytest.mark.parametrize("fate", [THROTTLED, refused("InternalServerException", 500), UNREACHED, LOST])
def test_a_wake_up_that_was_not_taken_is_asked_for_again(
    fate: Any, alarm: ScheduledAlarm, client: Any, group: str
) -> None:
    Weather(client).ahead = {"CreateSchedule": [fate, fate]}
    alarm.wake_at("r", NOON + 60)
    assert times(client, group) == ["at(2026-11-05T12:01:00)"]


def test_a_group_that_is_not_there_is_told(client: Any) -> None:
    Weather(client).ahead = {"CreateSchedule": [refused("ResourceNotFoundException", 404)]}
    with pytest.raises(Unavailable, match="schedule group g is not there\n  next: fleetfold aws status"):
        ScheduledAlarm(client, "g", TICK, ROLE).wake_at("r", 0.0)
