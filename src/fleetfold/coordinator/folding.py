"""What has arrived, folded into the next model: sources from the arrival records, in order of seats.

The model is written as it is made, under its version's key. The same set of updates gives the same
bytes, so a second folder writes what the first one wrote, and either may be the one that is heard. Noise
is never the same: with it each folder has a key of its own (hiding.py).
"""

import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from fleetfold import layout
from fleetfold.coordinator.hiding import Hide, pieces
from fleetfold.coordinator.policy import method, optimizer
from fleetfold.coordinator.sources import opened
from fleetfold.coordinator.stepping import Stepping
from fleetfold.fold.fold import fold_shard, measured
from fleetfold.fold.plan import LAPTOP, Shard, Site, plan_fold
from fleetfold.fold.privacy import factors
from fleetfold.fold.recipe import ChunkFold, Recipe, Source, Unfit
from fleetfold.fold.robust import distances, norms_squared, rounded
from fleetfold.fold.tensors import Header, write_header
from fleetfold.ledger import Arrival
from fleetfold.messages import Metrics
from fleetfold.ports import Objects
from fleetfold.round.state import Round
from fleetfold.settings import Settings

HERE = replace(LAPTOP, threads=min(4, os.cpu_count() or 1))
"""More threads than that wait for memory."""
AWAY = Site(name="a store", bandwidth=100e6, latency=0.03, memory=128 << 20)
"""Where the objects lie in a store: many are asked for at once."""
OPENED = 32
"""Updates that are opened at once there."""


class ModelHeader(Struct, frozen=True, omit_defaults=True):
    """What a model's own header says. No times: the same updates make the same file. Of a private release
    the examples are not told."""

    run: str
    version: int
    round: int
    updates: int
    examples: int
    release: int = 0  # which private one of the run's it is


class Made(Struct, frozen=True):
    """A model that is durable: its key, its sha256, and which private release it is."""

    model: str
    digest: str
    release: int = 0


CUT = frozenset({"mean", "median", "trimmed_mean"})
"""Folds that make each coordinate of itself alone, whatever the others are."""


def is_cut(settings: Settings) -> bool:
    """Whether each part of such a fold follows from the same part of the updates alone. A server optimizer
    has a state, a length or distance is of whole updates, noise is drawn once: those folds are made by one
    function, in whose memory neither the model nor the updates are. The user's own is made there too."""
    plain = settings.server == "none" and not settings.norm_most and not settings.noise
    return plain and settings.fold in CUT


class Folder(Protocol):
    """Makes the next model of a round: as `fold_round` does, and to the same bytes."""

    def __call__(
        self, objects: Objects, round: Round, arrivals: Sequence[Arrival], settings: Settings,
        model: Header, own: ChunkFold | None, hide: Hide | None = None, site: Site = ...,
    ) -> Made: ...  # fmt: skip


def fold_round(
    objects: Objects, round: Round, arrivals: Sequence[Arrival], settings: Settings,
    model: Header, own: ChunkFold | None, hide: Hide | None = None, site: Site = HERE,
) -> Made:  # fmt: skip
    """Fold `arrivals`, in the order given, into the model after `round.base`. `own`: the user's fold, where
    there is one; `hide`: makes it a private release, under a key of its own; `site`: how far off the objects
    are. The model's header says how many updates are in it.

    Raises Unfit, naming the arrivals' keys, and what `hide` does.
    """
    version, release = round.base + 1, 0
    weights = [weight(arrival, settings) for arrival in arrivals]
    fresh = [freshness(arrival, round, settings) for arrival in arrivals]
    at_once = OPENED if site.latency else 1
    # Read once and in order, all of it is what a store is asked for by few requests.
    whole = Shard(0, model.size - model.begin) if site.latency and hide is None and is_cut(settings) else None
    with opened(
        objects, round.run, round.base, arrivals, weights, model, at_once,
        lazily=whole is not None, shard=whole,
    ) as (plain, bases):  # fmt: skip
        sources = [replace(s, factor=f) for s, f in zip(plain, fresh, strict=True)]
        how = method(settings, own, len(sources))
        recipe = Recipe(method=how.chunk, base=round.base, bases=bases)
        if settings.norm_most or settings.fold == "clipped_mean":
            sources = _clipped(sources, model, recipe, settings)
        if how.selection is not None:
            apart = rounded(measured(sources, model, distances, recipe))
            kept = how.selection(apart, how.byzantine, len(sources) - how.byzantine)
            sources, arrivals = [sources[k] for k in kept], [arrivals[k] for k in kept]
        if hide is not None:
            hidden = hide(_lengths(sources, model, recipe))
            sources = [replace(s, factor=float(f)) for s, f in zip(sources, hidden.factors, strict=True)]
            recipe = replace(recipe, divisor=hidden.divisor, noise=hidden.noise)
            release = hidden.number
        passed = partial(passes, site, sources, model)
        if settings.server != "none":
            state = layout.state(round.run, version, release)
            stepping = Stepping(objects, round.run, round.base, model, optimizer(settings), state)
            after = stepping.advance(lambda step: passed(replace(recipe, after=step, floats_only=True)))
            recipe = replace(recipe, after=after)
        examples = 0 if release else sum(arrival.examples for arrival in arrivals)
        about = ModelHeader(round.run, version, round.number, len(arrivals), examples, release)
        header = write_header(model.layout, msgspec.json.encode(about))
        digest = hashlib.sha256()
        key = layout.model(round.run, version, release)
        with closing(passed(recipe)) as folded:
            objects.put(key, hashed(chain([header], folded), digest.update))
    return Made(key, digest.hexdigest(), release)


def found(objects: Objects, round: Round, release: int) -> Made:
    """A release that was made before, as it lies there."""
    key, digest = layout.model(round.run, round.base + 1, release), hashlib.sha256()
    for piece in pieces(objects, key):
        digest.update(piece)
    return Made(key, digest.hexdigest(), release)


def release_of(model: Header) -> int:
    """Which private release a model of the run is, that is not its first."""
    return msgspec.json.decode(model.metadata, type=ModelHeader).release


def passes(
    site: Site, sources: Sequence[Source], model: Header, recipe: Recipe
) -> Generator[memoryview, None, None]:
    """The folded bytes of the whole model, shard by shard."""
    how = plan_fold(model, len(sources), model.size - model.begin, site)
    for shard in how.shards:
        yield from fold_shard(
            sources, model, shard, recipe, threads=how.threads, depth=how.depth, chunk=how.chunk
        )


def _clipped(sources: Sequence[Source], model: Header, recipe: Recipe, settings: Settings) -> list[Source]:
    """Sources whose differences to their models are brought to the length that the run allows.

    Where it names none it is the median of those that came, which fewer than half of the updates cannot
    push beyond the honest ones. Raises Unfit for those that are refused outright.
    """
    norms = _lengths(sources, model, recipe)
    most = settings.norm_most
    if most and (far := [s.name for s, norm in zip(sources, norms, strict=True) if norm > most]):
        raise Unfit(far, f"lies further than {most:g} from its model (norm_most)")
    if settings.fold != "clipped_mean":
        return list(sources)
    clip = settings.clip or float(np.median(norms))
    return [
        replace(s, factor=s.factor * float(f)) for s, f in zip(sources, factors(norms, clip), strict=True)
    ]


def _lengths(sources: Sequence[Source], model: Header, recipe: Recipe) -> NDArray[np.float64]:
    """How far each update lies from its model, all its floats together. Raises Unfit."""
    squared = rounded(measured(sources, model, norms_squared, recipe, together=False))
    return np.asarray(np.sqrt(squared))


def weight(arrival: Arrival, settings: Settings) -> float:
    """Of an update in the fold: its examples or 1. With noise always 1: examples are what a device says, and
    would buy it more of the model than is hidden."""
    return float(arrival.examples) if settings.weight == "examples" and not settings.noise else 1.0


def freshness(arrival: Arrival, round: Round, settings: Settings) -> float:
    """What of an update's difference to its model counts: all, or of a stale one 1/(1+s)^a, a =
    `settings.staleness`. Of itself, not against others: a fold of stale updates goes less far (FedBuff;
    Nguyen et al., 2022)."""
    return math.pow(1.0 + round.base - arrival.base, -settings.staleness)


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
    means = {name: total / weights for name, (total, weights) in sums.items() if weights}
    return {name: mean if math.isfinite(mean) else None for name, mean in means.items()}


def hashed(
    parts: Iterator[bytes | memoryview], update: Callable[[bytes | memoryview], None]
) -> Iterator[bytes | memoryview]:
    """The parts as they pass, each told to `update` too."""
    for part in parts:
        update(part)
        yield part
