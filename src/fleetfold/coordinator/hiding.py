"""A model with noise on it is a release: counted before it can be seen, taken up by its round alone.

    lengths ─▶ factors, count + noise ─▶ release record ─▶ sum + noise ─▶ ….release-7 ─▶ DONE ─▶ the model
                                         counted from here                each under its own key

So a death can only count too much, two folders never write one key, and a whole release of the same updates
that a dead folder left is taken up as it is. The seed of the noise is in no record and in no file.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from fleetfold import layout
from fleetfold.coordinator.accountant import affordable, default_delta, spent
from fleetfold.errors import BadConfig
from fleetfold.fold.plan import Chunk
from fleetfold.fold.privacy import (
    COUNT_SHARE,
    Privacy,
    below,
    count_deviation,
    deviation,
    factors,
    next_clip,
    noise,
)
from fleetfold.fold.recipe import Noise
from fleetfold.ledger import Arrival, Ledger, Release
from fleetfold.messages import Metrics
from fleetfold.ports import Objects
from fleetfold.round.state import Round
from fleetfold.settings import Settings

Floats = NDArray[np.float64]

ENTROPY = 32
"""Bytes of chance that the noise of one release is drawn from."""
FIRST_CLIP = 0.1
"""The clip that an adaptive one begins at, unless told otherwise: that of Andrew et al."""
LEAST = 2.0**-100
"""Factors below it count for nothing: a weight in fp32 would have few digits left, and exceed the clip."""
PIECE = 1 << 22
"""Bytes of a model that are read at a time."""
MODEL, COUNT = 0, 1
"""What a release draws noise for: each has streams of its own."""

KEPT = (
    ("fold", "mean", "noise is made for a mean of clipped updates"),
    ("mode", "rounds", "a device's updates would count in the rounds of others of its own"),
    ("late", "drop", "a late update would count in the round of another update of its device"),
    ("partial", False, "which tensors a device sends tells of it"),
    ("norm_most", 0.0, "who is refused by its exact length is told so, and everybody is clipped as it is"),
)
"""What must be so where privacy is promised: (setting, its only value, why)."""
NEEDS_NOISE = ("clip_quantile", "epsilon", "dp_delta")


class Overspent(Exception):
    """One more release would exceed the budget."""


class Hidden(Struct, frozen=True):
    """A release that is written down: how its updates are to be folded."""

    number: int
    factors: Floats  # [updates]
    divisor: float
    noise: Noise


Hide = Callable[[Floats], Hidden]
"""Makes a release of updates with these lengths [n]. Raises Overspent."""


def check(settings: Settings) -> None:
    """Raises BadConfig where privacy is asked for and cannot be given: tried before anything is made."""
    if not settings.noise:
        if idle := [name for name in NEEDS_NOISE if getattr(settings, name)]:
            raise BadConfig(
                f"{idle[0]} = {getattr(settings, idle[0]):g} hides nothing without noise",
                next="set noise, for instance --noise 1 --clip 1",
            )
        return
    for name, only, why in KEPT:
        if getattr(settings, name) != only:
            told = f"{getattr(settings, name)}"
            raise BadConfig(f"noise and {name} = {told}: {why}", next=f"set {name} = {only}, or noise = 0")
    if not settings.clip and not settings.clip_quantile:
        raise BadConfig(
            "noise needs a clip: how far one update may move the model",
            next="--clip 1, or --clip-quantile 0.5 to have it follow the updates",
        )
    asked = terms(settings, 1)
    spent(asked, 1, settings.devices)  # whoever shows ε can compute it
    if why := excess(asked, 0, settings.devices):
        raise BadConfig(f"round 1 {why}", next="more noise, a larger epsilon, or a larger dp_delta")


def terms(settings: Settings, expected: int) -> Privacy:
    """What the settings promise for rounds of so many updates.

    The count of an adaptive clip has at least the noise that leaves the models' at 1.16 times z.
    """
    adaptive = settings.clip_quantile > 0
    return Privacy(
        noise_multiplier=settings.noise,
        clip=settings.clip or FIRST_CLIP,
        adaptive=adaptive,
        target_quantile=settings.clip_quantile or 0.5,
        count_noise=max(expected / COUNT_SHARE, settings.noise) if adaptive else None,
        epsilon=settings.epsilon or None,
        delta=settings.dp_delta or None,
    )


def excess(asked: Privacy, releases: int, devices: int) -> str:
    """What one more release than `releases` would do to the budget; "" if that allows it."""
    if affordable(asked, releases, devices):
        return ""
    return (
        f"would bring ε to {math.ceil(100 * spent(asked, releases + 1, devices)) / 100:.2f}, "
        f"the budget is {asked.epsilon:g}"
    )


def stopped(ledger: Ledger, run: str, settings: Settings, number: int) -> str:
    """Why round `number` must not be opened; "" if it may."""
    if not settings.noise:
        return ""
    why = excess(terms(settings, 1), len(ledger.releases(run)), len(ledger.fleet()))
    return f"stopped: round {number} {why}" if why else ""


def set_of(arrivals: Sequence[Arrival]) -> str:
    """The digest of a set of updates. Raises BadConfig if a device is in it twice, for it is hidden once."""
    devices = [arrival.device for arrival in arrivals]
    if len(set(devices)) < len(devices):
        twice = next(name for name in devices if devices.count(name) > 1)
        raise BadConfig(f"noise: two updates of {twice} are in one round, which hides only one")
    return hashlib.sha256("\n".join(sorted(arrival.key for arrival in arrivals)).encode()).hexdigest()


def whole(ledger: Ledger, objects: Objects, round: Round, updates: str) -> Release | None:
    """The release of exactly these updates that an earlier folder of this round finished, if one did."""
    for release in ledger.releases(round.run):
        key = layout.model(round.run, round.base + 1, release.number)
        if (release.round, release.updates) == (round.number, updates) and objects.size(key) is not None:
            return release
    return None


def hide(
    ledger: Ledger, round: Round, settings: Settings, updates: str, before: int, entropy: bytes,
    lengths: Floats,
) -> Hidden:  # fmt: skip
    """Write down one more release of the run, and say how it is made. Raises Overspent.

    `before`: the release that the round's base is, 0 if it is none; `lengths`: of the updates' differences to
    it, exact: nothing exact leaves this function but the factors.
    """
    expected, seed = round.policy.target, int.from_bytes(entropy, "little")
    asked = terms(settings, expected)
    last = ledger.release(round.run, before)
    clip = last.next_clip if last else asked.clip
    following = clip
    if asked.adaptive:
        told = below(lengths, clip) + noise(1, count_deviation(asked, expected), _chance(seed, COUNT))[0]
        following = next_clip(clip, float(told), len(lengths), asked)
    shrunk = factors(lengths, clip)
    shrunk[shrunk < LEAST] = 0.0
    number = _count(ledger, round, asked, Release(
        number=0, round=round.number, updates=updates, clip=clip, next_clip=following,
    ))  # fmt: skip
    return Hidden(number, shrunk, float(expected), _noise(seed, deviation(asked, clip, expected)))


def spending(ledger: Ledger, round: Round, settings: Settings, release: int) -> Metrics:
    """What is shown of the privacy of a round whose model is that release."""
    asked, devices = terms(settings, round.policy.target), len(ledger.fleet())
    releases, made = len(ledger.releases(round.run)), ledger.release(round.run, release)
    return {
        "epsilon": spent(asked, releases, devices),
        "delta": default_delta(devices) if asked.delta is None else asked.delta,
        "clip": made.clip if made else None,
        "releases": float(releases),
    }


def take_up(ledger: Ledger, objects: Objects, round: Round) -> None:
    """Make the release of a round that is done the run's model; let go of all that the round has made."""
    version = round.base + 1
    for key in (layout.state, layout.model) if round.release else ():
        source = key(round.run, version, round.release)
        if objects.size(source) is not None:  # else it has been done
            objects.put(key(round.run, version), pieces(objects, source))
    for release in ledger.releases(round.run):
        for key in (layout.state, layout.model) if release.round == round.number else ():
            objects.delete(key(round.run, version, release.number))


def pieces(objects: Objects, key: str) -> Iterator[memoryview]:
    """An object, a part at a time. Raises KeyError."""
    done = 0
    with closing(objects.open(key)) as reader:
        while n := reader.read(done, room := memoryview(bytearray(PIECE))):
            yield room[:n]
            done += n


def _count(ledger: Ledger, round: Round, asked: Privacy, release: Release) -> int:
    """The release's number, once it is durable that there is one more."""
    devices = len(ledger.fleet())
    while True:
        before = len(ledger.releases(round.run))
        if why := excess(asked, before, devices):
            raise Overspent(f"folding them {why}")
        if ledger.save_release(round.run, replace(release, number=before + 1)):
            return before + 1


def _noise(seed: int, deviation: float) -> Noise:
    """The same chunk gets the same noise in every pass of one fold; no two chunks share a draw."""

    def drawn(chunk: Chunk) -> Floats:
        return noise(chunk.count, deviation, _chance(seed, MODEL, chunk.first))

    return drawn


def _chance(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))
