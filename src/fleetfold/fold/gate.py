"""What an update must be before it counts, told from its first bytes and its size alone.

    known device, round and kind · layout equal to the model's · size exact · header within bounds

An update's identity comes from where it was written; its header must agree. Whether its values are
finite is seen later, in the fold's own pass. Work and memory are bounded by the model's own header.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from fleetfold.errors import BadUpdate
from fleetfold.fold.tensors import METADATA_LIMIT, PREFIX, Header, header_length, parse_header
from fleetfold.messages import PROTOCOL, Kind, UpdateHeader

METRICS_LIMIT = 64
"""Metrics that an update may report, and characters in the name of one."""
EXAMPLES_LIMIT = 1 << 40
"""More examples than any device has: above it, a weight is an attack."""


class Expected(Struct, frozen=True, kw_only=True):
    """What is expected at one update's key."""

    run: str
    round: int
    kind: Kind
    device: str
    model: Header | None  # None: no tensors, an evaluation


_HEADER = msgspec.json.Decoder(UpdateHeader)


def admit(read: Callable[[int, int], bytes], size: int, expected: Expected) -> tuple[UpdateHeader, Header]:
    """The update's header, if the update may count. Raises BadUpdate with the reason.

    read: (offset, length) → those bytes of the update file, of `size` bytes.
    """
    model = expected.model
    room = sum(len(t.name) + 200 for t in model.tensors) * 4 if model else 0
    begin = header_length(read(0, min(size, PREFIX)), size, room + METADATA_LIMIT)
    body = sum(t.stop - t.start for t in model.tensors) if model else 0
    if size - begin != body:
        word = "cut off" if size - begin < body else "too long"
        raise BadUpdate(f"{word}: {size - begin} bytes of tensors, the model has {body}")
    header = parse_header(read(0, begin), size)
    _same_layout(header, model)
    try:
        update = _HEADER.decode(header.metadata)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadUpdate(f"header names no update: {str(error)[:200]}") from None
    _same_identity(update, expected)
    if not 0 < update.examples <= EXAMPLES_LIMIT:
        raise BadUpdate(f"{update.examples} examples")
    _small(update)
    return update, header


def _small(update: UpdateHeader) -> None:
    """Metrics go into records and onto screens: few, and with names that fit there."""
    evaluated = update.evaluation.metrics if update.evaluation else {}
    for metrics in (update.metrics, evaluated):
        if len(metrics) > METRICS_LIMIT:
            raise BadUpdate(f"{len(metrics)} metrics, at most {METRICS_LIMIT}")
        if long := [name for name in metrics if not 0 < len(name) <= METRICS_LIMIT]:
            raise BadUpdate(f"the name of metric {long[0][:40]!r}… has {len(long[0])} characters")


def _same_layout(header: Header, model: Header | None) -> None:
    theirs, ours = header.layout, model.layout if model else {}
    if theirs == ours:
        return
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
