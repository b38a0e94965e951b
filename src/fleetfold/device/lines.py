"""What a device's waiting process and its worker say to each other: JSON, one message a line.

supervisor ──Do, Granted, Denied, Look──▶ worker
           ◀─Said, Answered, Asked, Spent, Step, Ready, Done── worker
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fleetfold.device.terms import Terms
from fleetfold.messages import Answer, Ask, Command, Grant, Report, Task


class Orders(Struct, frozen=True):
    """What a worker is started with. `transfer`: module:name of what makes its way to objects."""

    home: str
    device: str
    terms: Terms
    life: str
    transfer: str
    socket: int = -1  # inherited file descriptor


class Do(Struct, frozen=True, tag=True):
    """One piece of work; neither: load the app, so that what is wrong with it is known now."""

    task: Task | None = None
    command: Command | None = None


class Granted(Struct, frozen=True, tag=True):
    grant: Grant


class Denied(Struct, frozen=True, tag=True):
    """There is no answer to what was asked."""

    sentence: str


class Look(Struct, frozen=True, tag=True):
    """What was unavailable may be there again: do not wait any longer."""


class Said(Struct, frozen=True, tag=True):
    report: Report


class Answered(Struct, frozen=True, tag=True):
    answer: Answer


class Asked(Struct, frozen=True, tag=True):
    ask: Ask


class Spent(Struct, frozen=True, tag=True):
    bytes: int


class Step(Struct, frozen=True, tag=True):
    """How far it is. `done` of `total` bytes, where that is known."""

    what: Literal["loading", "fetching", "training", "evaluating", "delivering", "paused"]
    reason: str = ""
    done: int = 0
    total: int = 0


class Ready(Struct, frozen=True, tag=True):
    """The app is loaded. `sentence`: why not."""

    sentence: str = ""
    next: str = ""


class Done(Struct, frozen=True, tag=True):
    """The piece of work has come to its end."""


ToWorker = Do | Granted | Denied | Look
FromWorker = Said | Answered | Asked | Spent | Step | Ready | Done
TO_WORKER: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder(ToWorker)
FROM_WORKER: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder(FromWorker)


def line(message: Struct) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def listen(
    read: Callable[[int], bytes], decoder: "msgspec.json.Decoder[Any]", hear: Callable[[Any], None]
) -> None:
    """Hear every line, until the other side is gone."""
    rest = b""
    while True:
        try:
            said = read(1 << 16)
        except OSError:
            said = b""
        if not said:
            return
        *whole, rest = (rest + said).split(b"\n")
        for each in whole:
            hear(decoder.decode(each))
