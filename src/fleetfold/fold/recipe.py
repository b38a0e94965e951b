"""What is folded, and what is made of it.

    model = base + Σ weight / total · factor · (update − its base) + noise,  then `after`

Whole models from one base, whose shares sum to 1, need no base: they are summed as they are (`Mix`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.fold.codecs import Read
from fleetfold.fold.plan import Chunk
from fleetfold.fold.wire import Wire

Array = NDArray[Any]
Floats = NDArray[np.float64]

ChunkFold = Callable[[Array, Floats], Array]
"""The user's own fold, coordinate by coordinate: (updates [n, elements], shares [n], summing to 1) →
[elements]. Given a chunk at a time, of one dtype: fp32, or fp64 where the model is."""

After = Callable[[Chunk, Floats], Array]
"""What becomes of a folded chunk of floats: (where it lies, its values, not yet rounded) → the chunk that
is written instead, of any dtype."""

Noise = Callable[[Chunk], Floats]
"""What is added to a folded chunk of floats, for privacy."""


class Source(Struct, frozen=True, kw_only=True):
    """One update to be folded."""

    name: str  # to say which one failed
    weight: float
    wire: Wire
    read: Read  # may raise Unfit
    file: tuple[int, int] | None = None  # an open one and where its tensors begin, where `read` reads that
    sent: int = 0  # values, of top-k
    base: int = 0  # version of the model that it was trained from
    factor: float = 1.0  # by which its difference to that model is scaled, wherever it is folded


class Unfit(Exception):
    """Some updates cannot be folded: fold again without them."""

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(f"{', '.join(names)}: {reason}")
        self.names, self.reason = tuple(names), reason


NOT_FINITE = "holds values that are not finite"
NOT_BOOLEAN = "holds booleans that are neither true nor false"


class Recipe(Struct, frozen=True, kw_only=True):
    """What is made of the updates. `method` None: the weighted mean (FedAvg; McMahan et al.,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017)."""

    method: ChunkFold | None = None
    base: int = 0  # version of the model that the mean of differences is added to
    bases: Mapping[int, Read] = {}  # models by version: that one, and those the updates were trained from
    divisor: float | None = None  # of the weights; None: their sum, over the updates that carry a tensor
    noise: Noise | None = None
    after: After | None = None
    floats_only: bool = False


MEAN = Recipe()


class Mix(Struct, frozen=True):
    """How the updates that carry a stretch are mixed: which, their weights, and what of which model is
    added. Nothing is, where all are whole models from the same base: their shares sum to 1."""

    members: tuple[int, ...]
    weights: Floats
    models: tuple[tuple[int, float], ...]  # (version, by how much)


def mixed(sources: Sequence[Source], carrying: Sequence[int], recipe: Recipe) -> Mix:
    """The mix of the sources with these numbers: differences, each to its own base, added to the newest model
    (FedBuff; Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022)."""
    chosen = [sources[k] for k in carrying]
    total = sum(s.weight for s in chosen) if recipe.divisor is None else recipe.divisor
    weights = np.array([s.weight / total * s.factor for s in chosen], np.float64)
    models = {recipe.base: 1.0}
    for source, weight in zip(chosen, weights.tolist(), strict=True):
        if not source.wire.form.delta:
            models[source.base] = models.get(source.base, 0.0) - weight
    plain = recipe.divisor is None and all(
        s.factor == 1.0 and s.base == recipe.base and not s.wire.form.delta for s in chosen
    )
    return Mix(tuple(carrying), weights, () if plain and chosen else tuple(models.items()))
