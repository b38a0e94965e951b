"""What other processes on this machine leave for the hub, as records: runs to drive, commands to pass on.

    run --hub ─▶ queue/{run}        ask ─▶ commands/{id} ─▶ hub ⇄ device ─▶ answers/{id} ─▶ ask
    status    ◀─ hub/status

Runs are driven one after another, in the order in which they came: a device has one task at a time.
"""

import msgspec
from msgspec import Struct

from fleetfold.errors import Unavailable
from fleetfold.messages import Answer, Command, encode
from fleetfold.ports import Records

QUEUE, COMMANDS, ANSWERS, STATUS = "queue/", "commands/", "answers/", "hub/status"
TELL = 5.0
"""Seconds between two statuses."""


class Waiting(Struct, frozen=True):
    """A run in the queue. `at`: when it came, in seconds since the epoch; 0: it has left."""

    run: str
    at: float


class Status(Struct, frozen=True, kw_only=True):
    """How the hub fares, as it told last. Times in seconds since the epoch."""

    pid: int
    started_at: float
    told_at: float
    broker: str
    connected: bool
    why: str = ""  # why it is not connected
    door: str = ""
    run: str = ""  # that it drives
    saying: str = ""  # what stands in its way
    online: int = 0
    known: int = 0
    ignored: dict[str, int] = {}  # messages that mean nothing here, by reason
    refused: dict[str, int] = {}  # requests at the door, by reason


_WAITING = msgspec.json.Decoder(Waiting)
_COMMAND = msgspec.json.Decoder(Command)
_ANSWER = msgspec.json.Decoder(Answer)
_STATUS = msgspec.json.Decoder(Status)


def queue(records: Records, run: str, at: float) -> None:
    records.put_many([(QUEUE + run, encode(Waiting(run, at)))])


def leave(records: Records, run: str) -> None:
    """The run has ended; it may come again."""
    queue(records, run, 0.0)


def queued(records: Records) -> list[str]:
    """Runs to drive, in their order."""
    found = (_WAITING.decode(record.value) for _, record in records.scan(QUEUE))
    return [w.run for w in sorted((w for w in found if w.at), key=lambda w: (w.at, w.run))]


def order(records: Records, command: Command) -> None:
    """Have the hub pass the command on."""
    records.put_many([(COMMANDS + command.id, encode(command))])


def ordered(records: Records) -> list[Command]:
    """Commands that have come, the ones that were passed on among them."""
    return [_COMMAND.decode(record.value) for _, record in records.scan(COMMANDS) if record.value]


def passed(records: Records, command: Command) -> None:
    records.put_many([(COMMANDS + command.id, b"")])


def answered(records: Records, answer: Answer) -> None:
    records.put_many([(ANSWERS + answer.id, encode(answer))])


def answer(records: Records, id: str) -> Answer | None:
    found = records.get(ANSWERS + id)
    return None if found is None else _ANSWER.decode(found.value)


def tell(records: Records, status: Status) -> None:
    records.put_many([(STATUS, encode(status))])


def status(records: Records) -> Status | None:
    """What the hub told last; None: it never ran."""
    found = records.get(STATUS)
    try:
        return None if found is None else _STATUS.decode(found.value)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the hub's status is of another version: {error}", next="fleetfold hub") from None
