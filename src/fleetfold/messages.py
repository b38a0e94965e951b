"""What a coordinator and a device say to each other. Small: they carry keys and numbers, never tensors.

    coordinator ──Task──▶ device ──(update file, with an UpdateHeader)──▶ objects
                ◀─Report─ device    Ask ⇄ Grant: fresh addresses    Command ⇄ Answer: of one device
                          device ──Presence──▶ who is there, and how it fares

Each is one msgspec class, so the JSON, its validation and its schema are the same text.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from fleetfold.errors import shown

PROTOCOL = 1
"""Version of every message here; a message of another version is ignored with that reason."""

Kind = Literal["train", "evaluate", "message"]
Metrics = dict[str, float | None]
"""Numbers by name. None where a device computed NaN or infinity, which JSON cannot say."""
State = Literal["accepted", "progress", "delivered", "refused", "failed"]
SETTLED: frozenset[State] = frozenset({"delivered", "refused", "failed"})
"""Answers to a task; the other states only tell that it is being worked on."""
LIMIT = 128 * 1024
"""Bytes of one message, as AWS IoT Core has it."""
LONGEST = LIMIT // 4
"""Bytes of what a device says; what is longer is ignored."""


class Timings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long each step took on the device, in seconds of its own clock; None: not taken."""

    download: float | None = None
    compute: float | None = None
    upload: float | None = None


class Form(Struct, frozen=True, omit_defaults=True):
    """How an update travels: its codec (fold/codecs.py), whether it is the difference to the model that the
    device was given, and which of the model's tensors it carries: a bit each, in hex; "" is all of them."""

    codec: str = "full"
    delta: bool = False
    carried: str = ""


class Envelope(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of an app that has messages of its own (Flower's), apart from the tensors of its content."""

    id: str
    type: str = ""  # "train", "evaluate", "query", "train.mine"
    src: int = 0  # the app's own numbers of who sends it and to whom
    dst: int = 0
    group: str = ""
    ttl: float = 0.0  # seconds from `created` for which somebody waits for the answer
    created: float = 0.0  # seconds since the epoch
    reply_to: str = ""  # of an answer: what it answers
    app: str = ""  # fingerprint of the app's files
    records: Any = None  # the content, but for its tensors
    error: tuple[int, str] | None = None  # instead of a content


class Task(Struct, frozen=True, kw_only=True):
    """Invites one device to one round: where the model is, where to put the update, until when."""

    v: int = PROTOCOL
    run: str
    round: int
    kind: Kind
    device: str
    model: str  # where to fetch the global model
    digest: str  # sha256 of that file, in hex
    size: int = 0  # bytes of that file
    update: str  # where to put the update
    most: int = 0  # bytes that the update's file may have
    known: str = ""  # sha256 of a model that the device is known to have
    difference: str = ""  # where to fetch what turns that one into this one
    seed: int  # the device's own for this round: the same seed trains the same update
    deadline: float  # seconds since the epoch, by the coordinator's clock
    late: bool = False  # an update that comes after the deadline counts too: do not leave off by yourself
    evaluate: bool = False  # evaluate the model that was received, before training it
    form: Form = Form()  # what the update is to be
    partial: bool = False  # whether it may carry fewer tensors than that
    sent: int = 0  # how many values, of top-k
    feedback: bool = False  # what a codec leaves behind is added to the next update
    settings: dict[str, Any] = field(default_factory=dict)  # the app's own
    message: Envelope | None = None  # of kind "message": what is to be answered; its tensors are the model


class Report(Struct, frozen=True, kw_only=True):
    """A device's answer to a task. At least once, in any order; the update file is what counts."""

    v: int = PROTOCOL
    run: str
    round: int
    kind: Kind
    device: str
    state: State
    reason: str = ""
    took: Timings = Timings()


class Presence(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device says of itself when it connects, when that changes, and by its last will (`online`
    false). None, "": it does not know, or will not say."""

    v: int = field(default_factory=lambda: PROTOCOL)
    device: str
    online: bool = True
    available: bool = True  # for a task, by the device's own conditions
    reason: str = ""  # why it is not
    examples: int | None = None
    battery: float | None = None  # of 1
    charging: bool | None = None
    link: Literal["", "unmetered", "metered"] = ""
    memory: int | None = None  # bytes that training may take
    model: str = ""  # sha256 of the newest model that it keeps
    agent: str = ""  # name and version of what runs there


class Ask(Struct, frozen=True, kw_only=True):
    """A device's request for fresh addresses of a task that it has: its own have expired, or the update is
    to go in parts."""

    v: int = PROTOCOL
    run: str
    round: int
    kind: Kind
    device: str
    parts: int = 0  # of the update; 0: it goes in one piece
    first: int = 0  # the part that the addresses are to begin with


class Grant(Struct, frozen=True, kw_only=True):
    """The answer to an `Ask`. `updates`: one address, or those of the parts from `first` on; as many as
    fit a message. `reason`: why there are none."""

    v: int = PROTOCOL
    run: str
    round: int
    kind: Kind
    device: str
    parts: int = 0
    first: int = 0
    model: str = ""
    updates: tuple[str, ...] = ()
    reason: str = ""


class Command(Struct, frozen=True, kw_only=True):
    """Something for one device outside of any round. `evaluate`: score the model at `model` on its data;
    `get`: put its current tensors at `upload`; `set`: take the model at `model` for its own, without
    training; `cancel`: leave off the task at hand."""

    v: int = PROTOCOL
    id: str
    device: str
    what: Literal["evaluate", "get", "set", "cancel"]
    run: str = ""  # whose model, or whose task is left off; "": whichever it is
    model: str = ""
    digest: str = ""
    size: int = 0
    upload: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


class Answer(Struct, frozen=True, kw_only=True):
    """A device's answer to a `Command`, under the same id."""

    v: int = PROTOCOL
    id: str
    device: str
    state: Literal["done", "refused", "failed"]
    reason: str = ""
    examples: int | None = None  # of evaluate
    metrics: Metrics = field(default_factory=dict)
    digest: str = ""  # of the tensors that `get` put there
    size: int = 0


class Evaluation(Struct, frozen=True, kw_only=True):
    """What the model that a device was given scored on the device's own data."""

    examples: int
    metrics: Metrics


class UpdateHeader(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who made an update, for which round, of how many examples. Lies in the update file's header, where
    what is not said takes no room; the version is always said."""

    v: int = field(default_factory=lambda: PROTOCOL)
    run: str
    round: int
    kind: Kind
    device: str
    examples: int
    metrics: Metrics = field(default_factory=dict)
    evaluation: Evaluation | None = None
    took: Timings = Timings()
    form: Form = Form()
    extra: Any = None  # any JSON that the trainer returned
    message: Envelope | None = None  # of kind "message": the answer; its tensors are the update's


class Mail(Struct, frozen=True, kw_only=True):
    """What a device that has no connection finds at its address: what it is told now, and where it goes on.
    `heard`: sha256 of the newest `Words` of its that have been taken."""

    v: int = PROTOCOL
    device: str
    number: int
    fetch: str  # where the next is found
    say: str  # where words go from now on
    heard: str = ""
    task: Task | None = None
    commands: tuple[Command, ...] = ()
    grant: Grant | None = None


class Words(Struct, frozen=True, kw_only=True):
    """What such a device says, oldest first: the last word of the topic that it would go to, the message."""

    v: int = PROTOCOL
    said: tuple[tuple[str, str], ...]


_FROM_DEVICES: dict[str, "msgspec.json.Decoder[Any]"] = {
    "status": msgspec.json.Decoder(Report),
    "presence": msgspec.json.Decoder(Presence),
    "ask": msgspec.json.Decoder(Ask),
    "answer": msgspec.json.Decoder(Answer),
}


def understood(device: str, word: str, payload: bytes) -> Any:
    """What a device said on the topic of that last word; a `str` says why it means nothing."""
    if word not in _FROM_DEVICES:
        return f"topic of the word {shown(word, 100)}"
    if len(payload) > LONGEST:
        return f"{word} of more than {LONGEST} bytes"
    try:
        said = _FROM_DEVICES[word].decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"{word} that is none: {shown(str(error), 100)}"
    if said.v != PROTOCOL:
        return f"{word} of version {said.v}, here it is {PROTOCOL}"
    if said.device != device:
        return f"{word} of a device in the name of another"
    return said


def encode(message: Struct) -> bytes:
    """One JSON object, the same bytes for the same message."""
    return msgspec.json.encode(message, order="deterministic")
