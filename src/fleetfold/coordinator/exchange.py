"""What goes through an exchange of messages: who is sent what, and what the answers have to be.

    Outgoing … Outgoing, Terms ─▶ Batch (an object, named by the round's record) ─▶ tasks ─▶ Reply … Reply

An app of another framework opens it (Flower's ServerApp); here nothing of that framework is known.
"""

import hashlib
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.coordinator.intake import Gate
from fleetfold.coordinator.opening import cohort_of
from fleetfold.coordinator.policy import draw
from fleetfold.coordinator.sources import Headers
from fleetfold.errors import BadConfig
from fleetfold.fold.gate import Admitted, ExpectedAnswer, admit_answer
from fleetfold.fold.tensors import Header
from fleetfold.ledger import Arrival, place
from fleetfold.messages import LIMIT, Envelope, Metrics, Task, UpdateHeader, encode
from fleetfold.ports import Objects, fetch
from fleetfold.round.run import Run
from fleetfold.round.state import Policy, Round
from fleetfold.settings import count

ROOM = LIMIT * 3 // 4
"""Bytes of a task with its message: addresses that are signed take the rest."""
SPARE = 64 << 20
"""Bytes that an answer may have beside four times what was sent."""


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message to one device. `content`: key of the object with its tensors, the sha256 and bytes of it."""

    device: str
    message: Envelope
    content: str
    digest: str
    size: int


class Terms(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What answers have to be, and what is made of them."""

    timeout: float = 3600.0  # seconds for which the app waits
    wanted: int = 0  # answers that it wants, where more were asked; 0: of all
    alike: bool = False  # answers' tensors have the names and shapes of most; if undecided, of what was sent
    weight: str = ""  # a metric that each answer has to report: its weight
    same_metrics: bool = False  # answers report the metrics that most of them do
    fold: str = ""  # mean, median, trimmed_mean, krum or multi_krum of the answers; "": none
    trim: float = 0.0  # of trimmed_mean: the share that is cut off at either end
    byzantine: int = 0  # of krum and multi_krum: answers that may be anything
    kept: int = 0  # of multi_krum: answers that are averaged
    into: str = ""  # key of the object with the fold; "": one of the round's own
    label: str = ""  # what the app calls the exchange: "train"
    turn: int = 0  # the app's own number of the round that it belongs to


class Batch(Struct, frozen=True):
    terms: Terms
    sent: tuple[Outgoing, ...]


class Reply(Struct, frozen=True, kw_only=True):
    """An answer that counts: the device, its message, where its tensors lie and what they are."""

    device: str
    message: Envelope
    key: str
    header: Header
    metrics: Metrics


class Fold(Struct, frozen=True):
    """What the answers were folded into: an object with their tensors' names."""

    key: str
    digest: str


_BATCH = msgspec.json.Decoder(Batch)
_HEADER = msgspec.json.Decoder(UpdateHeader)


def opened(
    objects: Objects, run: Run, number: int, sent: Sequence[Outgoing], terms: Terms, now: float
) -> Round:
    """The round of exchange `number`, of which everything but its record is written. Raises BadConfig."""
    ordered = tuple(sorted(sent, key=lambda each: each.device))
    where = layout.round(run.name, number, "message")
    wanted = max(1, min(terms.wanted or len(ordered), len(ordered)))
    target = count(run.settings.target, wanted)
    policy = Policy(
        target=target, quorum=min(count(run.settings.quorum, wanted), target),
        deadline=terms.timeout, lease=run.settings.lease,
    )  # fmt: skip
    return Round(
        run=run.name, number=number, kind="message", base=0,
        cohort=cohort_of(objects, where, [each.device for each in ordered]), invited=len(ordered),
        policy=policy, opened_at=now, batch=save(objects, where, Batch(terms, ordered)),
        label=terms.label, turn=terms.turn, sent=sum(each.size for each in ordered) // max(1, len(ordered)),
    )  # fmt: skip


def gate(round: Round, batch: Batch, headers: Headers) -> Gate:
    """What the answers of an exchange have to be; headers of those that may count are noted."""
    sent = {each.device: each for each in batch.sent}

    def admitted(device: str, read: Callable[[int, int], bytes], size: int) -> Admitted:
        asked = sent[device]
        expected = ExpectedAnswer(
            run=round.run, round=round.number, device=device, message=asked.message, most=most(asked),
            weight=batch.terms.weight,
        )  # fmt: skip
        found = admit_answer(read, size, expected)
        headers.note(layout.update(place(round), device), found.table)
        return found

    return admitted


def reply(headers: Headers, arrival: Arrival) -> Reply:
    """An answer that the gate has admitted. Raises KeyError if it is gone."""
    header = headers.of(arrival.key)
    update = _HEADER.decode(header.metadata)
    assert update.message is not None  # the gate has seen to that
    return Reply(
        device=arrival.device, message=update.message, key=arrival.key, header=header,
        metrics=arrival.metrics,
    )  # fmt: skip


def save(objects: Objects, where: str, batch: Batch) -> str:
    """Write the batch of the round with that key. → the batch's key, by its own digest. Raises BadConfig for
    a message that is too large to be sent."""
    text = encode(batch)
    for sent in batch.sent:
        if (size := len(encode(sent.message))) > ROOM:
            raise BadConfig(
                f"the message to {sent.device} has {size} bytes beside its tensors, at most {ROOM} are sent",
                next="put large values into an ArrayRecord",
            )
    key = layout.batch(where, hashlib.sha256(text).hexdigest()[:16])
    objects.put(key, [text])
    return key


def load(objects: Objects, key: str) -> Batch:
    return _BATCH.decode(fetch(objects, key))


def most(sent: Outgoing) -> int:
    """Bytes that the answer to it may have."""
    return 4 * sent.size + SPARE


def tasks(round: Round, run: Run, batch: Batch) -> list[Task]:
    """One for each message."""
    where = place(round)
    return [
        Task(
            run=round.run, round=round.number, kind=round.kind, device=each.device,
            model=each.content, digest=each.digest, size=each.size,
            update=layout.update(where, each.device), most=most(each),
            seed=draw(run.settings.seed, round.kind, round.number, each.device) >> 32,
            deadline=round.deadline_at, settings=run.settings.app, message=each.message,
        )
        for each in batch.sent
    ]  # fmt: skip
