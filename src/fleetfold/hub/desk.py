"""What other processes on this machine leave for the hub, as records: runs to drive, commands to pass on.

    run --hub ─▶ hub/queue          ask ─▶ hub/commands ─▶ hub ⇄ device ─▶ hub/commands ─▶ ask
    status    ◀─ hub/status

Runs are driven one after another, in the order in which they came: a device has one task at a time. Each is
one record, changed by compare-and-set, which holds what waits and nothing else: none of them grows for ever.
"""

from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.errors import BadConfig, Unavailable
from fleetfold.messages import Answer, Command, encode
from fleetfold.ports import Records

QUEUE, COMMANDS, STATUS = "hub/queue", "hub/commands", "hub/status"
_T = TypeVar("_T")
TELL = 5.0
"""Seconds between two statuses."""
MOST = 1000
"""Commands that may wait at once."""
TRIES = 1000
"""Lost compare-and-sets in a row after which something is wrong with the store."""


class Waiting(Struct, frozen=True):
    """A run in the queue. `at`: when it came, in seconds since the epoch; `times`: how often."""

    run: str
    at: float
    times: int = 1


class Errand(Struct, frozen=True):
    """A command that somebody waits for. `until`: seconds since the epoch, when nobody does any more."""

    command: Command
    until: float
    answer: Answer | None = None


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
_ERRANDS = msgspec.json.Decoder(tuple[Errand, ...])
_STATUS = msgspec.json.Decoder(Status)


# Runs


def queue(records: Records, run: str, at: float) -> None:
    """To the end of the queue; a run that is in it keeps its place."""

    def queued(waiting: tuple[Waiting, ...]) -> tuple[Waiting, ...]:
        if any(each.run == run for each in waiting):
            return tuple(replace(w, times=w.times + 1) if w.run == run else w for w in waiting)
        return (*waiting, Waiting(run, at))

    _change(records, QUEUE, _WAITING, queued)


def leave(records: Records, ended: Waiting) -> None:
    """The run has ended. If it was put into the queue once more meanwhile, it stays there."""
    _change(records, QUEUE, _WAITING, lambda waiting: tuple(each for each in waiting if each != ended))


def queued(records: Records) -> tuple[Waiting, ...]:
    """Runs to drive, in their order."""
    return _read(records, QUEUE, _WAITING)


# Commands


def order(records: Records, command: Command, now: float, until: float) -> None:
    """Have the hub pass the command on. Raises BadConfig where too many wait."""

    def ordered(errands: tuple[Errand, ...]) -> tuple[Errand, ...]:
        waiting = tuple(each for each in errands if each.until > now)
        if len(waiting) >= MOST:
            raise BadConfig(f"{MOST} commands are waiting for answers already", next="fleetfold hub status")
        return (*(errands if len(errands) < MOST else waiting), Errand(command, until))

    _change(records, COMMANDS, _ERRANDS, ordered)


def done(records: Records, id: str) -> None:
    """Nobody waits for that command any more."""
    _change(records, COMMANDS, _ERRANDS, lambda errands: tuple(e for e in errands if e.command.id != id))


def ordered(records: Records, now: float) -> list[Command]:
    """Commands that somebody waits for and that have no answer, those that were passed on among them."""
    errands = _read(records, COMMANDS, _ERRANDS)
    return [each.command for each in errands if each.answer is None and each.until > now]


def answered(records: Records, answers: Collection[Answer]) -> list[Answer]:
    """Have them found by whoever waits. The first one counts. → those that nobody waits for, from that
    device at least."""
    strays: list[Answer] = []

    def taken(errands: tuple[Errand, ...]) -> tuple[Errand, ...]:
        waiting = {(e.command.id, e.command.device): n for n, e in enumerate(errands)}
        found = list(errands)
        strays.clear()
        for answer in answers:
            place = waiting.get((answer.id, answer.device))
            if place is None or found[place].answer is not None:
                strays.append(answer)
            else:
                found[place] = replace(found[place], answer=answer)
        return tuple(found)

    if answers:
        _change(records, COMMANDS, _ERRANDS, taken)
    return strays


def expired(records: Records, before: float) -> list[Command]:
    """Commands for which nobody has waited since; they are forgotten."""
    gone: list[Command] = []

    def kept(errands: tuple[Errand, ...]) -> tuple[Errand, ...]:
        gone[:] = [each.command for each in errands if each.until < before]
        return tuple(each for each in errands if each.until >= before)

    _change(records, COMMANDS, _ERRANDS, kept)
    return gone


def answer(records: Records, id: str) -> Answer | None:
    found = (each.answer for each in _read(records, COMMANDS, _ERRANDS) if each.command.id == id)
    return next(found, None)


def files(command: Command) -> list[str]:
    """Keys of what lies there for this command alone."""
    return [key for key in (command.model, command.upload) if key.startswith(folder(command.id))]


def folder(id: str) -> str:
    """What keys begin with of what lies there for that command alone."""
    return f"commands/{id}."


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


def _read(records: Records, key: str, decoder: "msgspec.json.Decoder[tuple[_T, ...]]") -> tuple[_T, ...]:
    found = records.get(key)
    return decoder.decode(found.value) if found else ()


def _change(
    records: Records, key: str, decoder: "msgspec.json.Decoder[tuple[_T, ...]]",
    change: Callable[[tuple[_T, ...]], tuple[_T, ...]],
) -> None:  # fmt: skip
    for _ in range(TRIES):
        found = records.get(key)
        old = decoder.decode(found.value) if found else ()
        new = change(old)
        if new == old or records.swap(key, msgspec.json.encode(new), found.version if found else 0):
            return
    raise Unavailable(f"lost {TRIES} compare-and-sets on {key}")
