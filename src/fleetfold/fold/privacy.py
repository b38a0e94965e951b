"""Differential privacy of a device: its whole part in the model is clipped, and hidden in Gaussian noise.

    delta ─▶ × factors ─▶ sum ÷ expected updates ─▶ + noise ─▶ the model        one release a round,
    norm  ─▶ below the clip? ─▶ count + noise ─▶ the next round's clip          z for both together

Neighbours: two fleets, in one of which a device counts for nothing, in the sum and in the count. How many
updates there were, and whose, is not hidden, nor what devices report. McMahan et al., "Learning
Differentially Private Recurrent Language Models", 2018; Andrew et al., "Differentially Private Learning
with Adaptive Clipping", 2021.
"""

from math import exp, inf, sqrt

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.errors import BadConfig

Array = NDArray[np.float64]

COUNT_SHARE = 20.0
"""The noise on the count of updates below the clip is the number of updates over this, unless told
otherwise: the default of Andrew et al., which at 100 updates a round costs z = 1 half a percent."""


class Privacy(Struct, frozen=True, kw_only=True):
    """How a run hides its devices. Defaults are those of Andrew et al. Raises BadConfig out of range."""

    noise_multiplier: float  # z: noise of a whole round, over what one device can change
    clip: float = 0.1  # L2 norm of a delta; with `adaptive` the first round's
    adaptive: bool = True  # the clip follows a quantile of the norms
    target_quantile: float = 0.5  # share of the updates that are to lie below the clip
    clip_rate: float = 0.2  # the clip changes by at most about exp(this) a round
    count_noise: float | None = None  # std, in updates; None: updates / COUNT_SHARE
    epsilon: float | None = None  # the budget; None: spend without end, and say how much
    delta: float | None = None  # None: by the size of the fleet

    def __post_init__(self) -> None:
        for name, value, most in (
            ("noise_multiplier", self.noise_multiplier, inf),
            ("clip", self.clip, inf),
            ("target_quantile", self.target_quantile, 1.0),
            ("clip_rate", self.clip_rate, inf),
            ("count_noise", self.count_noise, inf),
            ("epsilon", self.epsilon, inf),
            ("delta", self.delta, 1.0),
        ):
            if value is not None and not 0 < value < most:
                room = "above 0" if most == inf else f"between 0 and {most:g}"
                raise BadConfig(f"privacy: {name} = {value} is not {room}")


def factors(norms: Array, clip: float) -> Array:
    """[n] L2 norms of deltas → [n] factors in [0, 1] that bring them to `clip` at most: min(1, clip / norm).

    Rounded so that norm × factor never exceeds `clip`; an infinite norm gives 0. NaN stays NaN, for the
    fold's own test to find. McMahan et al., 2018, FlatClip.
    """
    return np.where(norms <= clip, 1.0, np.nextafter(clip / np.maximum(norms, clip), 0.0))


def below(norms: Array, clip: float) -> int:
    """How many of the [n] norms `clip` leaves as they are: exact, to be noised before anybody sees it."""
    return int(np.count_nonzero(norms <= clip))


def next_clip(clip: float, below: float, updates: int, settings: Privacy) -> float:
    """The clip of the next round; the same one, unless it is adaptive.

    below: the count, with noise of std `count_deviation` added; updates: how many were counted, ≥ 1.
    C ← C · exp(−clip_rate · (below / updates − target_quantile)): Andrew et al., 2021, Algorithm 1.
    """
    if not settings.adaptive:
        return clip
    return clip * exp(-settings.clip_rate * (below / updates - settings.target_quantile))


def count_deviation(settings: Privacy, updates: int) -> float:
    """Standard deviation σ_b, in updates, of the noise on the count below the clip."""
    return updates / COUNT_SHARE if settings.count_noise is None else settings.count_noise


def effective_noise(settings: Privacy, updates: int) -> float:
    """z_Δ: noise on the sum of the deltas over the clip, so that sum and count together cost what
    `noise_multiplier` = z says. Without adaptive clipping there is no count, and z_Δ = z.

    updates: expected in a round. Raises BadConfig where the count alone would tell more than z allows.
    z_Δ = (z⁻² − (2 σ_b)⁻²)^(−1/2): Andrew et al., 2021, Theorem 1; a device changes the count, taken from
    its middle, by a half.
    """
    z = settings.noise_multiplier
    if not settings.adaptive:
        return z
    count = count_deviation(settings, updates)
    if not 2 * count > z:
        raise BadConfig(
            f"privacy: noise_multiplier {z:g} cannot be kept with adaptive clipping over {updates} updates, "
            f"whose count has noise {count:g}; it takes more than {z / 2:g}",
            next="a fixed clip, more devices in a round, or a larger count_noise",
        )
    return z / sqrt(1 - (z / (2 * count)) ** 2)


def deviation(settings: Privacy, clip: float, updates: int) -> float:
    """Standard deviation of the noise on each coordinate of the mean delta: z_Δ · clip / updates.

    updates: the number that the sum of clipped deltas is divided by, every update weighing the same: the
    expected one, told beforehand, not the number that came. clip: this round's.
    """
    return effective_noise(settings, updates) * clip / updates


def noise(length: int, std: float, generator: np.random.Generator) -> Array:
    """[length] of Gaussian noise, float64. Chunk after chunk in order it is the draw of the whole.

    The caller seeds `generator` from os.urandom, afresh for each fold, and keeps the seed nowhere: who has
    it takes the noise off. So no run's seed, no two folds of one state, no two threads. Add it in 64 bits
    and round once, to the model's dtype.

    Honestly: noise made of floats is not quite Gaussian, and which last bits a sum can have tells of its
    parts (Mironov, "On significance of the least significant bits for differential privacy", 2012). 53
    bits rounded once to 24 or 11 leave little of that to see, for float64 models nothing is rounded off;
    neither is a proof. Nor are numpy's generators cryptographic. ε is that of the ideal noise.
    """
    drawn = generator.standard_normal(length)
    drawn *= std
    return drawn
