"""What a coordinator and a device say to each other. Small: they carry keys and numbers, never tensors.

    coordinator ──Task──▶ device ──(update file, with an UpdateHeader)──▶ objects
                  ◀──Report── device

Each is one msgspec class, so the JSON, its validation and its schema are the same text.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

PROTOCOL = 1
"""Version of every message here; a message of another version is ignored with that reason."""

Kind = Literal["train", "evaluate"]
Metrics = dict[str, float | None]
"""Numbers by name. None where a device computed NaN or infinity, which JSON cannot say."""


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


class Task(Struct, frozen=True, kw_only=True):
    """Invites one device to one round: where the model is, where to put the update, until when."""

    v: int = PROTOCOL
    run: str
    round: int
    kind: Kind
    device: str
    model: str  # where to fetch the global model
    digest: str  # sha256 of that file, in hex
    update: str  # where to put the update
    seed: int  # the device's own for this round: the same seed trains the same update
    deadline: float  # seconds since the epoch, by the coordinator's clock
    evaluate: bool = False  # evaluate the model that was received, before training it
    form: Form = Form()  # what the update is to be
    partial: bool = False  # whether it may carry fewer tensors than that
    sent: int = 0  # how many values, of top-k
    feedback: bool = False  # what a codec leaves behind is added to the next update
    settings: dict[str, Any] = field(default_factory=dict)  # the app's own


class Report(Struct, frozen=True, kw_only=True):
    """A device's answer to a task. At least once, in any order; the update file is what counts."""

    v: int = PROTOCOL
    run: str
    round: int
    kind: Kind
    device: str
    state: Literal["delivered", "refused", "failed"]
    reason: str = ""
    took: Timings = Timings()


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


def encode(message: Struct) -> bytes:
    """One JSON object, the same bytes for the same message."""
    return msgspec.json.encode(message, order="deterministic")
