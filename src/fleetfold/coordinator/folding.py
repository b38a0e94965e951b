"""What has arrived, folded into the next model: sources from the arrival records, in order of seats.

The model is written as it is made, under its version's key. The same set of updates gives the same
bytes, so a second folder writes what the first one wrote, and either may be the one that is heard.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.coordinator.policy import method, optimizer
from fleetfold.coordinator.stepping import Stepping
from fleetfold.errors import BadUpdate
from fleetfold.fold.fold import After, ChunkFold, Source, Unfit, fold, measured
from fleetfold.fold.robust import distances, rounded
from fleetfold.fold.tensors import PREFIX, Header, header_length, parse_header, write_header
from fleetfold.ledger import Arrival
from fleetfold.messages import Metrics
from fleetfold.ports import Objects
from fleetfold.round.state import Round
from fleetfold.settings import Settings

THREADS = 2
"""Chunks that are folded at once: reading and adding then overlap, on as little as two cores."""
HEADER_LIMIT = 1 << 28
"""Bytes of header that a file of our own may have."""


class ModelHeader(Struct, frozen=True):
    """What a model's own header says. No times: the same updates make the same file."""

    run: str
    version: int
    round: int
    updates: int
    examples: int


def header_of(objects: Objects, key: str) -> Header:
    """The header of a file of tensors. Raises KeyError, or BadUpdate if it is not one."""
    size = objects.size(key)
    if size is None:
        raise KeyError(key)
    prefix = bytearray(min(PREFIX, size))
    objects.read(key, 0, memoryview(prefix))
    head = bytearray(header_length(bytes(prefix), size, HEADER_LIMIT))
    objects.read(key, 0, memoryview(head))
    return parse_header(bytes(head), size)


def fold_round(
    objects: Objects, round: Round, arrivals: Sequence[Arrival], settings: Settings,
    model: Header, own: ChunkFold | None,
) -> tuple[str, str]:  # fmt: skip
    """Fold `arrivals`, in the order given, into the model after `round.base`. → its key and sha256.
    `own`: the user's fold, where there is one. The model's header says how many updates are in it.

    Raises Unfit, naming the arrivals' keys.
    """
    version = round.base + 1
    key = layout.model(round.run, version)
    sources = [_source(objects, arrival, weight(arrival, round, settings)) for arrival in arrivals]
    how = method(settings, own, len(sources))
    if how.selection is not None:
        apart = rounded(measured(sources, model, distances))
        kept = how.selection(apart, how.byzantine, len(sources) - how.byzantine)
        sources, arrivals = [sources[k] for k in kept], [arrivals[k] for k in kept]
    about = ModelHeader(
        round.run, version, round.number, len(arrivals), sum(arrival.examples for arrival in arrivals)
    )
    digest = hashlib.sha256()
    passes = partial(_passes, sources, model, how.chunk)
    after = None
    if settings.server != "none":
        stepping = Stepping(objects, round.run, round.base, model, optimizer(settings))
        after = stepping.advance(passes)
    chunks = passes(after, False)
    parts = _file(write_header(model.layout, msgspec.json.encode(about)), chunks)
    objects.put(key, _hashed(parts, digest.update))
    return key, digest.hexdigest()


def _passes(
    sources: Sequence[Source], model: Header, method: ChunkFold | None, after: After | None, floats: bool
) -> Iterator[memoryview]:
    return fold(sources, model, method, threads=THREADS, after=after, floats_only=floats)


def weight(arrival: Arrival, round: Round, settings: Settings) -> float:
    """Of an update in the fold: its examples or 1, less if it is stale.

    The staleness discount 1/(1+s)^a is FedBuff's (Nguyen et al., 2022), a = `settings.staleness`.
    """
    own = float(arrival.examples) if settings.weight == "examples" else 1.0
    stale = round.base - arrival.base
    return own / math.pow(1.0 + stale, settings.staleness)


def summary(arrivals: Sequence[Arrival]) -> dict[str, Metrics]:
    """What the devices reported, each number averaged by examples: of training, and of the model that
    they were given ("devices")."""
    trained = average((a.metrics, a.examples) for a in arrivals)
    evaluated = average((a.evaluation.metrics, a.evaluation.examples) for a in arrivals if a.evaluation)
    return {name: metrics for name, metrics in (("trained", trained), ("devices", evaluated)) if metrics}


def average(reported: Iterable[tuple[Metrics, int]]) -> Metrics:
    """Mean of each number over those who reported it, weighted by their examples."""
    sums: dict[str, tuple[float, int]] = {}
    for metrics, examples in reported:
        for name, value in metrics.items():
            if value is not None:
                total, weights = sums.get(name, (0.0, 0))
                sums[name] = (total + value * examples, weights + examples)
    return {name: total / weights for name, (total, weights) in sums.items() if weights}


def _source(objects: Objects, arrival: Arrival, weight: float) -> Source:
    key = arrival.key
    gone = "is no longer the file that was admitted"

    def read(offset: int, into: memoryview) -> None:
        if objects.read(key, offset, into) != len(into):
            raise Unfit([key], gone)

    try:
        return Source(name=key, weight=weight, header=header_of(objects, key), read=read)
    except (KeyError, BadUpdate):
        raise Unfit([key], gone) from None


def _file(header: bytes, chunks: Iterator[memoryview]) -> Iterator[bytes | memoryview]:
    yield header
    yield from chunks


def _hashed(
    parts: Iterator[bytes | memoryview], update: Callable[[bytes | memoryview], None]
) -> Iterator[bytes | memoryview]:
    for part in parts:
        update(part)
        yield part
