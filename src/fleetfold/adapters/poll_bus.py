"""The coordinator's end of a bus without a broker: a box in the records for each device, mail in the bucket.

invite, command, grant ─▶ box (compare-and-set) ─▶ mail in the bucket (layout.mail) ─▶ device
words in the bucket ─▶ hear ─▶ whoever handles what devices say ─▶ renew ─▶ the next mail, fresh addresses

An address is good for as long as its signature is: a device that is silent for longer has to be enrolled
anew. Mail is the one object that may be written twice: with fresh addresses, for who has only dead ones.
"""

import secrets
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.posting import LIFETIME, packed, signed
from fleetfold.errors import Unavailable, shown
from fleetfold.messages import LIMIT, PROTOCOL, Command, Grant, Mail, Task, Words, encode
from fleetfold.ports import Control, Letter, Objects, Records, Signer, fetch


class FleetBus(Control, Protocol):
    """The bus of the devices that have a connection."""

    def grant(self, grant: Grant) -> None: ...
    def command(self, command: Command) -> None: ...


BOXES, SOME = "polls/", "polling"
"""Records: of each device that polls; that there is one at all: other fleets do not look for any."""
TRIES = 50
"""Lost compare-and-sets in a row after which something is wrong with the store."""
COMMANDS = 8
"""Commands that wait in a box; older ones are dropped."""


class Box(Struct, frozen=True, kw_only=True):
    """What a device is told, with keys instead of addresses. `number`: of the mail that is not written yet.
    `life`: "": cut off."""

    device: str
    life: str
    number: int = 1
    heard: str = ""
    task: Task | None = None
    commands: tuple[Command, ...] = ()
    grant: Grant | None = None


_BOX = msgspec.json.Decoder(Box)
_WORDS = msgspec.json.Decoder(Words)


class Heard(Struct, frozen=True):
    """Words of a device: (last word of a topic, message) each, still to be understood."""

    device: str
    number: int
    digest: str
    said: tuple[tuple[str, bytes], ...]


def messages(heard: Heard) -> list[str]:
    """The words as the broker's rules would have queued them."""
    return [
        msgspec.json.encode({"device": heard.device, "word": word, "said": b64encode(said).decode()}).decode()
        for word, said in heard.said
    ]


class PollBus:
    """`clock`: seconds since the epoch."""

    def __init__(
        self, records: Records, objects: Objects, signer: Signer, clock: Callable[[], float]
    ) -> None:
        self._records, self._objects, self._signer, self._clock = records, objects, signer, clock

    def invite(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            packed(task.device, "task", task)
            self._tell(task.device, lambda box, task=task: replace(box, task=task))  # type: ignore[misc]

    def withdraw(self, devices: Sequence[str]) -> None:
        for device in devices:
            self._tell(device, lambda box: replace(box, task=None))

    def grant(self, grant: Grant) -> None:
        self._tell(grant.device, lambda box: replace(box, grant=grant))

    def command(self, command: Command) -> None:
        def told(box: Box) -> Box:
            others = tuple(each for each in box.commands if each.id != command.id)
            return replace(box, commands=(*others, command)[-COMMANDS:])

        self._tell(command.device, told)

    def polls(self, devices: Sequence[str]) -> set[str]:
        """Those of the devices that poll."""
        if self._records.get(SOME) is None:
            return set()
        found = self._records.get_many([BOXES + device for device in devices])
        boxes = (_BOX.decode(record.value) for record in found.values())
        return {box.device for box in boxes if box.life}

    # What devices say

    def hear(self, key: str) -> Heard | str:
        """The words under that key; a `str` says why they mean nothing. They may come again."""
        where = layout.words_of(key)
        box = self._box(where[0]) if where else None
        if where is None or box is None or box[0].life != where[1]:
            return "words of no device that polls here"
        try:
            data = fetch(self._objects, key) if (self._objects.size(key) or 0) <= LIMIT else b""
            words = _WORDS.decode(data)
        except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return f"words that are none: {shown(str(error), 100)}"
        if words.v != PROTOCOL:
            return f"words of version {words.v}, here it is {PROTOCOL}"
        said = tuple((word, text.encode()) for word, text in words.said)
        return Heard(where[0], where[2], sha256(data).hexdigest(), said)

    def renew(self, heard: Heard) -> None:
        """They have been taken care of: the device is told so, and where it goes on."""

        def told(box: Box) -> Box:
            # What it was told before it said this, it had: no command twice, and no grant.
            had = heard.number >= box.number
            box = replace(box, commands=(), grant=None) if had else box
            return replace(box, heard=heard.digest)

        self._tell(heard.device, told, waiting=heard.number)
        box = self._box(heard.device)
        if box is not None and heard.number > 2:  # what it has left behind
            for key in (layout.mail, layout.words):
                self._objects.delete(key(heard.device, box[0].life, heard.number - 2))

    # Boxes

    def _box(self, device: str) -> tuple[Box, int] | None:
        record = self._records.get(BOXES + device)
        return (_BOX.decode(record.value), record.version) if record else None

    def _tell(self, device: str, change: Callable[[Box], Box], waiting: int | None = None) -> None:
        """`waiting`: the number of the mail that the device is known to wait for. Where that one lies there
        already, and leads to addresses that have died, it is written again; else the next one is written."""
        for _ in range(TRIES):
            known = self._box(device)
            if known is None or not known[0].life:
                return
            box = change(self._current(known[0]))
            number = box.number if waiting is None else min(waiting, box.number)
            after = replace(box, number=max(number + 1, box.number))
            if after == known[0] or self._records.swap(BOXES + device, encode(after), known[1]):
                self._write(after, number)
                return
        raise Unavailable(f"lost {TRIES} compare-and-sets on {BOXES}{device}")

    def _current(self, box: Box) -> Box:
        """Without a task whose time is over."""
        over = box.task is not None and not box.task.late and self._clock() > box.task.deadline
        return replace(box, task=None) if over else box

    def _write(self, box: Box, number: int) -> None:
        """Mail `number`, which leads to the one that is not written yet."""
        mail, words = (key(box.device, box.life, box.number) for key in (layout.mail, layout.words))
        said = Mail(
            device=box.device, number=box.number, heard=box.heard, commands=box.commands, grant=box.grant,
            task=signed(box.task, self._signer) if box.task else None,
            fetch=self._signer.to_fetch(mail, box.device, LIFETIME),
            say=self._signer.to_deliver(words, box.device, LIFETIME, LIMIT),
        )  # fmt: skip
        self._objects.put(layout.mail(box.device, box.life, number), [encode(said)])


class Divided:
    """One bus of two: devices that poll, and the others. Each has the letters; whoever is told of one is told
    of all."""

    def __init__(self, others: FleetBus, polled: PollBus) -> None:
        self._others, self._polled = others, polled

    def invite(self, tasks: Sequence[Task]) -> None:
        polls = self._polled.polls([task.device for task in tasks])
        self._others.invite([task for task in tasks if task.device not in polls])
        self._polled.invite([task for task in tasks if task.device in polls])

    def letters(self) -> Sequence[Letter]:
        return self._others.letters()

    def acknowledge(self, receipts: Sequence[str]) -> None:
        self._others.acknowledge(receipts)

    def withdraw(self, devices: Sequence[str]) -> None:
        polls = self._polled.polls(devices)
        self._others.withdraw([device for device in devices if device not in polls])
        self._polled.withdraw([device for device in devices if device in polls])

    def grant(self, grant: Grant) -> None:
        self._of(grant.device).grant(grant)

    def command(self, command: Command) -> None:
        self._of(command.device).command(command)

    def _of(self, device: str) -> "FleetBus | PollBus":
        return self._polled if self._polled.polls([device]) else self._others


def open_box(records: Records, device: str) -> tuple[str, int]:
    """A new life of the device's box; what it had before leads nowhere any more. → its life and number."""
    life = secrets.token_hex(8)
    records.swap(SOME, b"{}", 0)
    _replace(records, Box(device=device, life=life))
    return life, 1


def close_box(records: Records, device: str) -> None:
    """The device is told nothing any more, and what it says is not heard."""
    if records.get(BOXES + device) is not None:
        _replace(records, Box(device=device, life=""))


def _replace(records: Records, box: Box) -> None:
    while True:
        record = records.get(BOXES + box.device)
        if records.swap(BOXES + box.device, encode(box), record.version if record else 0):
            return
