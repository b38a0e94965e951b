"""What other processes on this machine leave for the hub, as records: runs to drive; and how it fares. What
they want of single devices lies there too (coordinator/errands.py).

    run --hub ─▶ hub/queue          status    ◀─ hub/status

Runs are driven one after another, in the order in which they came: a device has one task at a time. Each is
one record, changed by compare-and-set, which holds what waits and nothing else: none of them grows for ever.
"""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.coordinator.errands import changed, listed
from fleetfold.errors import Unavailable
from fleetfold.messages import encode
from fleetfold.ports import Records

QUEUE, STATUS = "hub/queue", "hub/status"
TELL = 5.0
"""Seconds between two statuses."""


class Waiting(Struct, frozen=True):
    """A run in the queue. `at`: when it came, in seconds since the epoch; `times`: how often."""

    run: str
    at: float
    times: int = 1


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


_WAITING = msgspec.json.Decoder(tuple[Waiting, ...])
_STATUS = msgspec.json.Decoder(Status)


# Runs


def queue(records: Records, run: str, at: float) -> None:
    """To the end of the queue; a run that is in it keeps its place."""

    def queued(waiting: tuple[Waiting, ...]) -> tuple[Waiting, ...]:
        if any(each.run == run for each in waiting):
            return tuple(replace(w, times=w.times + 1) if w.run == run else w for w in waiting)
        return (*waiting, Waiting(run, at))

    changed(records, QUEUE, _WAITING, queued)


def leave(records: Records, ended: Waiting) -> None:
    """The run has ended. If it was put into the queue once more meanwhile, it stays there."""
    changed(records, QUEUE, _WAITING, lambda waiting: tuple(each for each in waiting if each != ended))


def queued(records: Records) -> tuple[Waiting, ...]:
    """Runs to drive, in their order."""
    return listed(records, QUEUE, _WAITING)


# How the hub fares


def tell(records: Records, status: Status) -> None:
    records.put_many([(STATUS, encode(status))])


def status(records: Records) -> Status | None:
    """What the hub told last; None: it never ran."""
    found = records.get(STATUS)
    try:
        return None if found is None else _STATUS.decode(found.value)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the hub's status is of another version: {error}", next="fleetfold hub") from None
