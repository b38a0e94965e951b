"""Who is invited: pure rules over the registry. Chance comes in as one number in (0, 1) per device.

A rule takes (fleet, k, draws) and returns at most k names. A new rule is one function and one line in
RULES; the user's own has the same shape. Whatever the rule, `choose` first seats the devices that
have waited far longer than their share, so none is starved for ever.
"""

from collections.abc import Callable, Sequence
from math import log

from fleetfold.errors import BadConfig
from fleetfold.round.fleet import Device

Rule = Callable[[Sequence[Device], int, Sequence[float]], Sequence[str]]

SHARPNESS = 3.0
"""How strongly `turnaround` prefers the fast: a device twice as slow is 2**3 times less likely."""

STARVED = 8.0
"""A device that has waited this many times its fair share of rounds is invited whatever the rule says."""


def by_turnaround(fleet: Sequence[Device], k: int, draws: Sequence[float]) -> list[str]:
    """Draw k without replacement, each weighted by 1 / turnaround ** SHARPNESS. Untimed ones first.

    Weighted sampling by exponential keys: Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006. The idea of the weights is the forerunner's probabilistic client selection.
    """

    def key(device: Device, draw: float) -> tuple[bool, float]:
        if device.turnaround is None:
            return (False, draw)
        return (True, -log(draw) * max(device.turnaround, 1e-6) ** SHARPNESS)

    ranked = sorted(zip(fleet, draws, strict=True), key=lambda pair: key(*pair))
    return [device.name for device, _ in ranked[:k]]


def fastest(fleet: Sequence[Device], k: int, draws: Sequence[float]) -> list[str]:
    """The k with the smallest turnaround, untimed ones first."""
    ranked = sorted(fleet, key=lambda d: (d.turnaround is not None, d.turnaround or 0.0, d.name))
    return [device.name for device in ranked[:k]]


def everyone(fleet: Sequence[Device], k: int, draws: Sequence[float]) -> list[str]:
    return [device.name for device in fleet]


def at_random(fleet: Sequence[Device], k: int, draws: Sequence[float]) -> list[str]:
    """k of them, each as likely as any other."""
    ranked = sorted(zip(draws, (d.name for d in fleet), strict=True))
    return [name for _, name in ranked[:k]]


def most_recent(fleet: Sequence[Device], k: int, draws: Sequence[float]) -> list[str]:
    """The k that were heard of last."""
    ranked = sorted(fleet, key=lambda d: (-d.last_seen, d.name))
    return [device.name for device in ranked[:k]]


RULES: dict[str, Rule] = {
    "turnaround": by_turnaround,
    "fastest": fastest,
    "all": everyone,
    "random": at_random,
    "recent": most_recent,
}


def choose(
    rule: Rule, fleet: Sequence[Device], k: int, draws: Sequence[float], round: int
) -> tuple[str, ...]:
    """The cohort of `round`: at most k names (all, if the rule is `everyone`), sorted: a seat each.

    fleet: the eligible devices; draws: one number in (0, 1) for each. Raises BadConfig when the user's
    rule returns something else than names of the fleet.
    """
    if not fleet or (k < 1 and rule is not everyone):
        return ()
    starved = _starved(fleet, k, round) if rule is not everyone else []
    names = {device.name for device in fleet}
    chosen = list(rule(fleet, k, draws))
    if strangers := [name for name in chosen if name not in names]:
        raise BadConfig(f"the selection rule chose {strangers[0]!r}, which is not an eligible device")
    limit = len(fleet) if rule is everyone else k
    return tuple(sorted(list(dict.fromkeys([*starved, *chosen]))[:limit]))


def _starved(fleet: Sequence[Device], k: int, round: int) -> list[str]:
    """Those not invited for STARVED times their fair share of rounds, the longest waiting first.

    At most a quarter of the seats, so that a fleet that waits as a whole does not overrule the rule.
    """
    fair = max(1.0, len(fleet) / k)
    waiting = [d for d in fleet if round - d.last_round > STARVED * fair]
    waiting.sort(key=lambda d: (d.last_round, d.name))
    return [device.name for device in waiting[: max(1, k // 4)]]
