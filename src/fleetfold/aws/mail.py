"""What queues bring, understood: which run each message is for, and what devices and their broker say.

S3 ─▶ an object was created ─▶ an update, or the last of its parts ─▶ a letter for its run
IoT ─▶ {"device", "word", "said"} ─▶ a letter, a sighting, an ask, an answer      {"lifecycle"} ─▶ a sighting

Anybody may have written it. What cannot be understood is counted with its reason and does not come again.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal
from urllib.parse import unquote_plus

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.coordinator.registrar import short
from fleetfold.errors import shown
from fleetfold.messages import SETTLED, Answer, Ask, Presence, Report, understood
from fleetfold.ports import Letter, Objects
from fleetfold.round.fleet import Sighting

Ignored = Callable[[str], None]
"""Hears why something that came is passed over, each time."""


class Message(Struct, frozen=True):
    """One of a queue's. `at`: when it was sent, in seconds since the epoch."""

    id: str
    body: str
    at: float


class Said(Struct, frozen=True):
    """What devices said, each with the id of the message that brought it."""

    letters: tuple[Letter, ...] = ()
    sightings: tuple[tuple[str, Sighting], ...] = ()
    asks: tuple[tuple[str, Ask], ...] = ()
    answers: tuple[tuple[str, Answer], ...] = ()


class _Sent(Struct, frozen=True):
    sent: str = msgspec.field(name="SentTimestamp", default="0")


class _Queued(Struct):
    id: str = msgspec.field(name="messageId")
    body: str
    attributes: _Sent = _Sent()


class _Batch(Struct):
    records: list[_Queued] = msgspec.field(name="Records")


class _Object(Struct):
    key: str


class _Entity(Struct):
    object: _Object


class _Created(Struct):
    s3: _Entity
    event: str = msgspec.field(name="eventName", default="")


class _Notification(Struct):
    records: list[_Created] = msgspec.field(name="Records", default_factory=list)
    event: str = msgspec.field(name="Event", default="")


class _Lifecycle(Struct):
    device: str = msgspec.field(name="clientId")
    event: Literal["connected", "disconnected"] = msgspec.field(name="eventType")
    at: float = msgspec.field(name="timestamp")  # milliseconds since the epoch
    session: int | None = msgspec.field(name="versionNumber", default=None)


class _FromBroker(Struct):
    device: str = ""
    word: str = ""
    said: str = ""
    lifecycle: _Lifecycle | None = None


_NOTIFICATION = msgspec.json.Decoder(_Notification)
_FROM_BROKER = msgspec.json.Decoder(_FromBroker)
_UPDATE = re.compile(r"runs/([^/]+)/rounds/([0-9]{6,9})(-evaluate|-message)?/updates/([^/]+)\.safetensors")


def batch(event: Any) -> list[Message]:
    """The messages of one batch, as a queue gives it to a function."""
    found = msgspec.convert(event, _Batch, strict=False)
    return [Message(each.id, each.body, _seconds(each.attributes.sent)) for each in found.records]


def created(messages: Iterable[Message], objects: Objects, ignored: Ignored) -> list[Letter]:
    """Updates that lie there now, as reports of their delivery. One that comes in parts is there with the
    last of them, whichever that is."""
    letters = list[Letter]()
    looked = dict[str, bool]()
    for message in messages:
        for key in _keys(message, ignored):
            if key.startswith(layout.POLL):
                continue  # of devices without a connection: see `words`
            part = layout.part_of(key)
            whole = part[0] if part else key
            report = reported(whole)
            if report is None:
                ignored("an object that is no update")
                continue
            if part and whole not in looked:
                looked[whole] = objects.size(whole) is not None
            if part is None or looked[whole]:
                letters.append(Letter(f"{message.id}/{len(letters)}", report))
    return letters


def words(messages: Iterable[Message]) -> list[tuple[Message, str]]:
    """Keys of what devices without a connection have put there to say, each with the message that told."""
    silent: Ignored = lambda reason: None  # noqa: E731 - `created` has told
    return [(each, key) for each in messages for key in _keys(each, silent) if layout.words_of(key)]


def reported(key: str) -> Report | None:
    """The report of an update that lies under `key`; None if that is no update's."""
    found = _UPDATE.fullmatch(key)
    if found is None or not layout.valid_name(found[1]) or not layout.valid_name(found[4]):
        return None
    where = layout.round_of(key)
    kind = layout.kind_of(where)
    if where != layout.round(found[1], int(found[2]), kind) or layout.update(where, found[4]) != key:
        return None
    return Report(run=found[1], round=int(found[2]), kind=kind, device=found[4], state="delivered")


def said(messages: Iterable[Message], ignored: Ignored) -> Said:
    """What devices say, and what their broker says of them. That an update was delivered the bucket says
    itself; its device has only been seen."""
    letters, sightings = list[Letter](), list[tuple[str, Sighting]]()
    asks, answers = dict[str, tuple[str, Ask]](), list[tuple[str, Answer]]()
    for message in messages:
        found = _understood(message)
        match found:
            case str():
                ignored(found)
            case Sighting():
                sightings.append((message.id, found))
            case Presence():
                says = short(found)
                seen = Sighting(device=says.device, at=message.at, online=says.online, says=says)
                sightings.append((message.id, seen))
            case Ask():
                asks[found.device] = (message.id, found)  # one at a time of each
            case Answer():
                answers.append((message.id, found))
            case Report():
                sightings.append((message.id, Sighting(device=found.device, at=message.at)))
                if found.state in SETTLED and found.state != "delivered":
                    letters.append(Letter(f"{message.id}/{len(letters)}", found))
    return Said(tuple(letters), tuple(sightings), tuple(asks.values()), tuple(answers))


def message_of(letter: Letter) -> str:
    """The id of the message that brought it, which may have brought others."""
    return letter.receipt.rpartition("/")[0]


def by_run(letters: Sequence[Letter]) -> dict[str, list[Letter]]:
    found = dict[str, list[Letter]]()
    for letter in letters:
        found.setdefault(letter.report.run, []).append(letter)
    return found


def _keys(message: Message, ignored: Ignored) -> Iterator[str]:
    """Of the objects that one notification speaks of. In it they are quoted as in a form."""
    try:
        found = _NOTIFICATION.decode(message.body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        ignored(f"notification that is none: {shown(str(error), 100)}")
        return
    if not found.records and found.event != "s3:TestEvent":
        ignored("notification of nothing")
    for each in found.records:
        if each.event.removeprefix("s3:").startswith("ObjectCreated"):
            yield unquote_plus(each.s3.object.key)
        else:
            ignored(f"notification of {shown(each.event, 40)}")


def _understood(message: Message) -> Any:
    """A Sighting, or one of a device's messages; a `str` says why it is neither."""
    try:
        found = _FROM_BROKER.decode(message.body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return f"message of no broker: {shown(str(error), 100)}"
    if found.lifecycle is not None:
        event = found.lifecycle
        plausible = 0 <= event.at < 1e14 and 0 <= (event.session or 0) < 1 << 53
        if not layout.valid_name(event.device) or not plausible:
            return "lifecycle of no device"
        # Where a broker does not number its connections their order in time has to do.
        session = int(event.at) if event.session is None else event.session
        return Sighting(
            device=event.device, at=event.at / 1000, online=event.event == "connected", session=session
        )
    if not layout.valid_name(found.device):
        return "message of no device"
    try:
        payload = base64.b64decode(found.said, validate=True)
    except (binascii.Error, ValueError):
        return "message that is not in base64"
    return understood(found.device, found.word, payload)


def _seconds(milliseconds: str) -> float:
    return int(milliseconds) / 1000 if milliseconds.isdecimal() and len(milliseconds) < 15 else 0.0
