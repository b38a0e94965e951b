"""A coordinator that runs in functions: its ports on S3, DynamoDB, IoT Core, EventBridge Scheduler and Step
Functions. Made once in a process; a vendor's library is loaded with the first client that is made.

FLEETFOLD_{FLEET, BUCKET, TABLE, SCHEDULES, TICK, SCHEDULER_ROLE, FOLDERS}   what functions are told
HOME/runs/{run}/aws.json   a link to what this machine knows of the stack that a run is on
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from fleetfold.ledger import Ledger
from fleetfold.messages import Command, Grant
from fleetfold.ports import Alarm, Control, Letter, Objects, Records, Signer, Uploads
from fleetfold.view import Row


class Workflow(Protocol):
    """The state machine's end of a task token."""

    def tell(self, token: str, said: bytes) -> None:
        """Let the task go on with that. Nothing happens where none waits by that token (any more)."""


class FleetBus(Control, Protocol):
    """The bus of one turn: its letters are those that the turn is about."""

    def grant(self, grant: Grant) -> None: ...
    def command(self, command: Command) -> None: ...


class Cloud(Struct, frozen=True, kw_only=True):
    """What a function has of the world. `bus`: of a turn, with its letters; `folders`: shards that a fold is
    cut into at most; `clock`: seconds since the epoch; `ignored` hears what is passed over, and why,
    `troubled` of what failed and is tried again, `measured` of each round that has ended."""

    records: Records
    objects: Objects
    uploads: Uploads
    signer: Signer
    alarm: Alarm
    workflow: Workflow
    bus: Callable[[Sequence[Letter]], FleetBus]
    clock: Callable[[], float] = time.time
    folders: int = 40
    ignored: Callable[[str], None] = lambda reason: None
    troubled: Callable[[str], None] = lambda sentence: None
    measured: Callable[[str, Row], None] = lambda run, row: None

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.records, alone=False)
