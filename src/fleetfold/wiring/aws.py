"""A coordinator that runs in functions: its ports on S3, DynamoDB, IoT Core, EventBridge Scheduler and Step
Functions. Made once in a process; a vendor's library is loaded with the first client that is used.

FLEETFOLD_{FLEET, BUCKET, TABLE, SCHEDULES, TICK, SCHEDULER_ROLE, FOLDERS, IOT}   what functions are told
HOME/runs/{run}/aws.json   a link to what this machine knows of the stack that a run is on
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.adapters.memory import NoAlarm
from fleetfold.adapters.poll_bus import Divided, PollBus
from fleetfold.coordinator.folding import AWAY
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.policy import policies
from fleetfold.coordinator.turns import Turn, Turns, no_turn
from fleetfold.errors import BadConfig
from fleetfold.fold.plan import LAMBDA, Site
from fleetfold.layout import FLEET
from fleetfold.ledger import Ledger
from fleetfold.messages import Command, Grant
from fleetfold.ports import Alarm, Control, Letter, Objects, Records, Signer, Uploads
from fleetfold.settings import Settings
from fleetfold.view import Row
from fleetfold.wiring.faults import faulty


class Workflow(Protocol):
    """The state machine's end of a task token."""

    def tell(self, token: str, said: bytes) -> None:
        """Let the task go on with that. Nothing happens where none waits by that token (any more)."""


class FleetBus(Control, Protocol):
    """The bus of one turn: its letters are those that the turn is about."""

    def grant(self, grant: Grant) -> None: ...
    def command(self, command: Command) -> None: ...


class Cloud(Struct, frozen=True, kw_only=True):
    """What a function has of the world. `bus`: with the letters of one call; `site`: what a fold has
    here; `turn`: at a round that many report to at once; `clock`: seconds since the epoch. `ignored` hears
    what is passed over, and why, `troubled` of what failed and is tried again, `measured` of each round that
    has ended."""

    records: Records
    objects: Objects
    uploads: Uploads
    signer: Signer
    alarm: Alarm
    workflow: Workflow
    bus: Callable[[Sequence[Letter]], FleetBus]
    polled: PollBus | None = None  # of devices without a connection, whose part of `bus` it is
    clock: Callable[[], float] = time.time
    site: Site = LAMBDA
    turn: Turn = no_turn
    ignored: Callable[[str], None] = lambda reason: None
    troubled: Callable[[str], None] = lambda sentence: None
    measured: Callable[[str, Row], None] = lambda run, row: None

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.records, alone=False)


# In a function


@lru_cache
def cloud(
    function: str, ignored: Callable[[str], None], troubled: Callable[[str], None],
    measured: Callable[[str, Row], None],
) -> Cloud:  # fmt: skip
    """Of the function of that name, by its environment. Raises BadConfig."""
    from fleetfold.adapters.scheduler import ScheduledAlarm
    from fleetfold.adapters.stepfunctions import StepFunctions

    store, kept = objects(_told("BUCKET")), faulty(function, records(_told("TABLE")))
    spoken = partial(bus, _told("FLEET"), store.signer, os.environ.get("FLEETFOLD_IOT", ""))
    polled = PollBus(kept, store.objects, store.signer, time.time)
    alarm = ScheduledAlarm(_client("scheduler"), _told("SCHEDULES"), _told("TICK"), _told("SCHEDULER_ROLE"))
    return Cloud(
        records=kept, turn=Turns(kept, time.time, time.sleep, random.random),
        objects=faulty(function, store.objects),
        uploads=faulty(function, uploads(_told("BUCKET"))), signer=store.signer,
        alarm=faulty(function, alarm), workflow=faulty(function, StepFunctions(_client("stepfunctions"))),
        bus=lambda letters: faulty(function, Divided(spoken(letters=letters), polled)), polled=polled,
        site=replace(LAMBDA, folders=int(os.environ.get("FLEETFOLD_FOLDERS") or LAMBDA.folders)),
        ignored=ignored, troubled=troubled, measured=measured,
    )  # fmt: skip


def _told(name: str) -> str:
    found = os.environ.get(f"FLEETFOLD_{name}", "")
    if not found:
        raise BadConfig(f"FLEETFOLD_{name} is not set: this runs as a function", next="fleetfold aws deploy")
    return found


# Wherever credentials of the account are


class Store(Struct, frozen=True):
    objects: Objects
    signer: Signer


@lru_cache
def objects(bucket: str, region: str = "") -> Store:
    """What lies in a bucket, and who signs addresses in it. Raises BadConfig, Unavailable."""
    from fleetfold.adapters.parted import Parted
    from fleetfold.adapters.stores import open_store

    about: dict[str, Any] = {"region": region} if region else {}
    if not os.environ.get("AWS_ACCESS_KEY_ID"):  # then a person's: obstore does not read ~/.aws
        about["credential_provider"] = _credentials()
    store = open_store(f"s3://{bucket}", **about)
    return Store(Parted(store), store)


@lru_cache
def records(table: str, region: str = "") -> Records:
    """What lies in a table, whose index holds the devices by when they were last seen."""
    from fleetfold.adapters.dynamo import DynamoRecords

    return DynamoRecords(_client("dynamodb", **_in(region)), table, index=_seen)


def uploads(bucket: str) -> Uploads:
    from fleetfold.adapters.multipart import Uploads as Multipart

    return Multipart(_client("s3"), bucket)


def bus(
    fleet: str, signer: Signer, host: str = "", region: str = "", letters: Sequence[Letter] = ()
) -> FleetBus:
    """The bus of that fleet. `host`: of the account's own endpoint, unless the environment says another."""
    from fleetfold.adapters.iot import IotBus

    elsewhere = {"AWS_ENDPOINT_URL_IOT_DATA_PLANE", "AWS_ENDPOINT_URL"} & os.environ.keys()
    endpoint = {"endpoint_url": f"https://{host}"} if host and not elsewhere else {}
    return IotBus(_client("iot-data", **endpoint, **_in(region)), fleet, signer, time.time, letters)


def messenger(run: str, settings: Settings, store: Store, ledger: Ledger, control: Control) -> Messenger:
    """The exchanges of a run on the stack, by the process of its app, which is elsewhere: functions take in
    what devices say."""
    return Messenger(
        run, ledger, store.objects, control, NoAlarm(), policies(settings), time.time,
        site=replace(AWAY, name="the stack's bucket"),
    )  # fmt: skip


def _in(region: str) -> dict[str, str]:
    return {"region_name": region} if region else {}


def _credentials() -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:
        raise BadConfig("there are no credentials of an AWS account here", next="aws configure") from None


class _LastSeen(Struct):
    last_seen: float = 0.0


_LAST_SEEN = msgspec.json.Decoder(_LastSeen)


def _seen(key: str, value: bytes) -> tuple[str, float] | None:
    return (FLEET, _LAST_SEEN.decode(value).last_seen) if key.startswith(FLEET) else None


@lru_cache
def _client(service: str, **about: str) -> Any:
    """One of each kind in a process."""
    from fleetfold.adapters import boto

    return _Later(partial(boto.client, service, **about))


class _Later:
    """What takes long to make, and may not be needed."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)
