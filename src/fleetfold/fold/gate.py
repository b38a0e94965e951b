"""What an update must be before it counts, told from its first bytes and its size alone.

    known device, round and kind · the one layout that its form has · size exact · header within bounds

An update's identity comes from where it was written; its header must agree. Whether its values are
finite is seen later, in the fold's own pass. Work and memory are bounded by the model's own header.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from fleetfold.errors import BadUpdate
from fleetfold.fold.tensors import METADATA_LIMIT, PREFIX, Header, elements_of, header_length, parse_header
from fleetfold.fold.wire import OWN_TENSORS, Layout, Wire, carried
from fleetfold.messages import PROTOCOL, Envelope, Form, Kind, Timings, UpdateHeader

METRICS_LIMIT = 64
"""Metrics that an update may report, and characters in the name of one."""
OWN = 1 << 12
"""Bytes that a codec's own tensors may take in a model of few values; they are small beside many."""
ANSWER_HEADER, ANSWER_TENSORS = 16 << 20, 100_000
"""Bytes of header, and tensors, that an answer to a message may have."""
EXAMPLES_LIMIT = 1 << 40
"""More examples than any device has: above it, a weight is an attack."""
SECONDS_LIMIT = 1e9
"""More than any step took on a device: 30 years."""


class Expected(Struct, frozen=True, kw_only=True):
    """What is expected at one update's key."""

    run: str
    round: int
    kind: Kind
    device: str
    model: Header | None  # None: no tensors, an evaluation
    carried: str = ""  # tensors that the run's updates carry: a mask (messages.Form)
    partial: bool = False  # whether fewer will do


class ExpectedAnswer(Struct, frozen=True, kw_only=True):
    """What is expected at the key of an answer to an app's own message."""

    run: str
    round: int
    device: str
    message: Envelope  # that it answers, and which app it is of
    most: int  # bytes that it may have
    weight: str = ""  # a metric that has to be there, finite and not below 0


class Admitted(Struct, frozen=True):
    """What the gate says of an update, and where its tensors begin; `table`: its file's header."""

    header: UpdateHeader
    begin: int
    table: Header


_HEADER = msgspec.json.Decoder(UpdateHeader)


def admit(read: Callable[[int, int], bytes], size: int, expected: Expected) -> Admitted:
    """The update's header, if the update may count. Raises BadUpdate with the reason.

    read: (offset, length) → those bytes of the update file, of `size` bytes.
    """
    model = expected.model
    tensors = model.tensors if model else ()
    header_most, most = _bounds(model)
    begin = header_length(read(0, min(size, PREFIX)), size, header_most)
    if size - begin > most:
        raise BadUpdate(f"too long: {size - begin} bytes of tensors, at most {most} are those of an update")
    header = parse_header(read(0, begin), size, len(tensors) + len(OWN_TENSORS))
    try:
        update = _HEADER.decode(header.metadata)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadUpdate(f"header names no update: {str(error)[:200]}") from None
    _same_identity(update, expected)
    if model is None:
        _same_layout(header.layout, {})
        if update.form != Form():
            raise BadUpdate("an evaluation carries nothing: it has no form")
    else:
        _carries_what_it_may(model, update.form.carried, expected)
        wire = Wire(model, update.form)
        _same_layout(header.layout, wire.layout(wire.sent(size - begin)))
    for examples in (update.examples, update.evaluation.examples if update.evaluation else 1):
        if not 0 < examples <= EXAMPLES_LIMIT:
            raise BadUpdate(f"{examples} examples")
    if not plausible(update.took):
        raise BadUpdate("took a time that is none")
    _small(update)
    return Admitted(update, begin, header)


def admit_answer(read: Callable[[int, int], bytes], size: int, expected: ExpectedAnswer) -> Admitted:
    """The header of an answer to a message, if it may be handed to the app. Raises BadUpdate with the reason;
    `read` as of `admit`."""
    if size > expected.most:
        raise BadUpdate(f"too long: {size} bytes, at most {expected.most} are read of an answer")
    begin = header_length(read(0, min(size, PREFIX)), size, ANSWER_HEADER)
    header = parse_header(read(0, begin), size, ANSWER_TENSORS)
    try:
        update = _HEADER.decode(header.metadata)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadUpdate(f"header names no answer: {str(error)[:200]}") from None
    asked, answer = expected.message, update.message
    _same_identity(
        update,
        Expected(run=expected.run, round=expected.round, kind="message", device=expected.device, model=None),
    )
    if answer is None or answer.reply_to != asked.id:
        raise BadUpdate(f"answers {answer.reply_to[:80] if answer else ''!r}, it was asked {asked.id!r}")
    if answer.app != asked.app:
        raise BadUpdate(f"comes from another version of the app: {answer.app[:12]}, not {asked.app[:12]}")
    weight = update.metrics.get(expected.weight, 1) if expected.weight else 1
    if expected.weight and answer.error is None and expected.weight not in update.metrics:
        raise BadUpdate(f"reports no {expected.weight[:80]!r}")
    if weight is None or not weight >= 0:
        raise BadUpdate(f"reports a {expected.weight[:80]!r} that is no weight")
    if not 0 < update.examples <= EXAMPLES_LIMIT:
        raise BadUpdate(f"{update.examples} examples")
    if not plausible(update.took):
        raise BadUpdate("took a time that is none")
    _small(update)
    return Admitted(update, begin, header)


def unlike(header: Header, usual: Header) -> str:
    """What tells the tensors of one file from those of another, order and dtypes aside; "": nothing."""
    theirs, ours = ({t.name: t.shape for t in h.tensors} for h in (header, usual))
    for name in sorted(ours.keys() - theirs.keys()):
        return f"tensor {name[:80]!r} is missing"
    for name in sorted(theirs.keys() - ours.keys()):
        return f"tensor {name[:80]!r} is not among them"
    for name, shape in theirs.items():
        if shape != ours[name]:
            return f"tensor {name[:80]!r} has the shape {list(shape)[:8]}, and not {list(ours[name])[:8]}"
    return ""


def largest(model: Header | None) -> int:
    """Bytes that no update's file exceeds, whatever its form; None: of an evaluation's."""
    return PREFIX + sum(_bounds(model))


def _bounds(model: Header | None) -> tuple[int, int]:
    """(bytes of header, bytes of tensors) that an update may have."""
    tensors = model.tensors if model else ()
    header = sum(len(t.name) + 200 for t in tensors) * 4 + METADATA_LIMIT
    return header, sum(max(t.stop - t.start, 6 * elements_of(t.shape)) for t in tensors) + OWN


def plausible(took: Timings) -> bool:
    """Whether these are times that something may have taken."""
    steps = (took.download, took.compute, took.upload)
    return all(step is None or 0 <= step <= SECONDS_LIMIT for step in steps)


def _carries_what_it_may(model: Header, mask: str, expected: Expected) -> None:
    """All that the run's updates carry, or, where `partial` will do, some of it."""
    theirs, ours = ({t.name for t in carried(model, m)} for m in (mask, expected.carried))
    for name in sorted(theirs - ours):
        raise BadUpdate(f"tensor {name[:80]!r} is not for devices to send")
    for name in sorted(ours - theirs) if not expected.partial else ():
        raise BadUpdate(f"tensor {name[:80]!r} is missing")


def _small(update: UpdateHeader) -> None:
    """Metrics go into records and onto screens: few, and with names that fit there."""
    evaluated = update.evaluation.metrics if update.evaluation else {}
    for metrics in (update.metrics, evaluated):
        if len(metrics) > METRICS_LIMIT:
            raise BadUpdate(f"{len(metrics)} metrics, at most {METRICS_LIMIT}")
        if long := [name for name in metrics if not 0 < len(name) <= METRICS_LIMIT]:
            raise BadUpdate(f"the name of metric {long[0][:40]!r}… has {len(long[0])} characters")
        if odd := [name for name in metrics if not name.isprintable()]:
            raise BadUpdate(f"the name of metric {odd[0]!r} cannot be printed")


def _same_layout(theirs: Layout, ours: Layout) -> None:
    for name in sorted(ours.keys() - theirs.keys()):
        raise BadUpdate(f"tensor {name[:80]!r} is missing")
    for name in sorted(theirs.keys() - ours.keys()):
        raise BadUpdate(f"tensor {name[:80]!r} is not in the model")
    for name in ours:
        if theirs[name] != ours[name]:
            (dtype, shape), (want, size) = theirs[name], ours[name]
            raise BadUpdate(
                f"tensor {name[:80]!r} is {dtype}{list(shape)[:8]}, in the model {want}{list(size)[:8]}"
            )
    for name, expected in zip(theirs, ours, strict=True):
        if name != expected:
            raise BadUpdate(f"tensor {name[:80]!r} lies where {expected[:80]!r} is expected")


def _same_identity(update: UpdateHeader, expected: Expected) -> None:
    for name, theirs, ours in (
        ("version", update.v, PROTOCOL),
        ("run", update.run, expected.run),
        ("round", update.round, expected.round),
        ("kind", update.kind, expected.kind),
        ("device", update.device, expected.device),
    ):
        if theirs != ours:
            raise BadUpdate(f"header says {name} {str(theirs)[:80]!r}, it was written for {ours!r}")
